"""The merge stage: its members, its settings and its result.

A ``MergeStage`` says what to merge and how to choose; ``MergeMixin`` of the
Brain carries it out and returns a ``MergeResult``. A recorded merge can be
repeated with domains added or left out (``remerge``).

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.stage.decisive import decisive_settings
from speechbrain_merge.stage.merge_stage import MergeResult, MergeStage
