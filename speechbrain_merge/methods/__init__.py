"""The mathematics of merging: weights in, weights out.

A family of methods a file. Nothing here knows of files on disk, of SpeechBrain
or of error rates; see ``base`` for what a method is and how to write one.
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.registry import available, create, register

from speechbrain_merge.methods.average import Average  # isort: skip
from speechbrain_merge.methods.extreme import Extreme  # isort: skip
from speechbrain_merge.methods.slerp import Slerp  # isort: skip
from speechbrain_merge.methods.task_arithmetic import TaskArithmetic  # isort: skip
from speechbrain_merge.methods.ties import TIES  # isort: skip
