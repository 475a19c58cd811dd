"""The mathematics of merging: weights in, weights out.

A family of methods a file. Nothing here knows of files on disk, of SpeechBrain
or of error rates; see ``base`` for what a method is and how to write one.
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.plain_function import merge_method
from speechbrain_merge.methods.registry import available, create, register

from speechbrain_merge.methods.average import Average  # isort: skip
from speechbrain_merge.methods.trajectory_weights import trajectory_weights  # isort: skip
from speechbrain_merge.methods.extreme import Extreme  # isort: skip
from speechbrain_merge.methods.slerp import Slerp  # isort: skip
from speechbrain_merge.methods.task_arithmetic import TaskArithmetic  # isort: skip
from speechbrain_merge.methods.analogy import Analogy  # isort: skip
from speechbrain_merge.methods.ties import TIES  # isort: skip
from speechbrain_merge.methods.dare import DARE  # isort: skip
from speechbrain_merge.methods.della import DELLA  # isort: skip
from speechbrain_merge.methods.breadcrumbs import Breadcrumbs  # isort: skip
from speechbrain_merge.methods.consensus import Consensus  # isort: skip
from speechbrain_merge.methods.sce import SCE  # isort: skip
from speechbrain_merge.methods.pcb import PCB  # isort: skip
from speechbrain_merge.methods.restricted import Restricted  # isort: skip
from speechbrain_merge.methods.layer_scaled import LayerScaled  # isort: skip
from speechbrain_merge.methods.karcher import Karcher  # isort: skip
from speechbrain_merge.methods.model_stock import ModelStock  # isort: skip
from speechbrain_merge.methods.multislerp import MultiSlerp  # isort: skip
from speechbrain_merge.methods.nuslerp import NuSlerp  # isort: skip
from speechbrain_merge.methods.task_singular_vectors import TSVM  # isort: skip
from speechbrain_merge.methods.boosted_task_singular_vectors import BoostedTSVM  # isort: skip
from speechbrain_merge.methods.isotropic import IsoC, IsoCTS  # isort: skip
from speechbrain_merge.methods.wudi import WUDI  # isort: skip
from speechbrain_merge.methods.monosoup import MonoSoup  # isort: skip
from speechbrain_merge.methods.ace import ACE  # isort: skip
from speechbrain_merge.methods.opcm import OPCM  # isort: skip
from speechbrain_merge.methods.calibrated import Calibrated  # isort: skip
from speechbrain_merge.methods.boosted import Boosted  # isort: skip
from speechbrain_merge.methods.fisher import Fisher  # isort: skip
from speechbrain_merge.methods.regmean import RegMean  # isort: skip
from speechbrain_merge.methods.attention.merge import AttentionMerge  # isort: skip
from speechbrain_merge.methods.attention.names import (  # isort: skip
    AttentionKey,
    AttentionProjection,
    attention_projections,
)
from speechbrain_merge.methods.attention.pairs import pair_attention  # isort: skip
from speechbrain_merge.methods.learnable_attention_merge import (  # isort: skip
    LearnableAttentionMerge,
)
from speechbrain_merge.methods.parametrization import (  # isort: skip
    fold_attention,
    learned_ratio,
    parametrize_attention,
    source_ratios,
)
from speechbrain_merge.methods.ratio_optimizer import (  # isort: skip
    parameter_groups,
    ratio_optimizer,
)
from speechbrain_merge.methods.adamerging import AdaMerging  # isort: skip
from speechbrain_merge.methods.transport import OptimalTransport  # isort: skip
