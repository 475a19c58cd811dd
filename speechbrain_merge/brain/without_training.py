"""Passes of a Brain over data in which nothing is learned.

Authors
 * The speechbrain_merge authors 2026
"""

import random
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

import speechbrain as sb
from speechbrain_merge.brain.ranks import not_distributed


@contextmanager
def without_training(brain, stage):
    """Puts modules in evaluation mode; gradients can still be computed.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Its modules stay in evaluation mode.
    stage : speechbrain.Stage
        The stage that the Brain's hooks are called with.
    """
    if stage != sb.Stage.TRAIN:
        brain.on_stage_start(stage, epoch=None)
    brain.modules.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        # Each process goes through all the data, for itself
        stack.enter_context(not_distributed(brain))
        if any(
            isinstance(m, torch.nn.RNNBase) for m in brain.modules.modules()
        ):
            # cudnn has no gradient of recurrent layers in evaluation mode
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def same_draws():
    """Seeds a pass equally for each model; the random state is restored after.

    A recipe may augment what it hears, or draw how far it sees.
    """
    python, others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(others)
