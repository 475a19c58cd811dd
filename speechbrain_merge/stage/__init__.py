"""The merge stage: its settings, its members, its job and its result.

A ``MergeStage`` says what to merge and how to choose; ``resolve`` makes a frozen
``MergeJob`` of it, which ``MergeMixin`` of the Brain runs; a ``MergeResult`` is
kept. What a pool remembers can be merged again (``remerge``), with a domain more
or less. Nothing here runs a Brain.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.stage.job import MergeJob, resolve
from speechbrain_merge.stage.merge_stage import MergeStage
from speechbrain_merge.stage.result import MergeResult
from speechbrain_merge.stage.selection import Scoring, Selection
