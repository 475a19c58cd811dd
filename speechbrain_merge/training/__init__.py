"""How experts are trained, with or without merging them afterwards.

It knows torch and SpeechBrain, and of this package the names of a model's
parts alone (``speechbrain_merge.weights``), so that ``decoder`` or
``encoder.layers.3`` means the same here as in a merge.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.training.balanced import balanced_sampler
from speechbrain_merge.training.clipping import ClipAllGroups
from speechbrain_merge.training.distillation import (
    LearningWithoutForgetting,
    mean_posterior_loss,
)
from speechbrain_merge.training.freezing import freeze
from speechbrain_merge.training.frozen import FrozenModels
from speechbrain_merge.training.guided_ctc import guided_ctc_loss
from speechbrain_merge.training.layerwise_decay import (
    layerwise_decay,
    layerwise_groups,
)
from speechbrain_merge.training.moving_average import MovingAverage
from speechbrain_merge.training.sampling import RunSampler
from speechbrain_merge.training.saves import forget_earlier_saves
from speechbrain_merge.training.schedules import learning_rate_schedule
from speechbrain_merge.training.slanted_triangular import (
    SlantedTriangularScheduler,
)
