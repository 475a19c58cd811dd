"""The merge stage: who takes part, what is asked, and what it came to.

A ``MergeStage`` says what to merge and how to choose; ``MergeMixin`` of the
Brain carries it out and returns a ``MergeResult``. What a pool remembers can be
merged again (``remerge``), with a domain more or less.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.stage.decisive import decisive_settings
from speechbrain_merge.stage.merge_stage import MergeResult, MergeStage
