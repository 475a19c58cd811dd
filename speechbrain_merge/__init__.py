"""Model merging for speech recognition, inside SpeechBrain.

Collect checkpoints (``CheckpointPool``), choose and merge them by error rate
(``MergeStage``), in the recipe that trained them (``MergeMixin``); merge again
with a domain more or less (``remerge``); or merge files by hand (``merge``).

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.brain import MergeMixin, Run
from speechbrain_merge.brain.coefficient_learning import learn_coefficients
from speechbrain_merge.brain.landscape import Landscape
from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.evaluation.barrier import barrier
from speechbrain_merge.pool import CheckpointPool, read_merges
from speechbrain_merge.stage import MergeResult, MergeStage
from speechbrain_merge.stage.extending import remerge
