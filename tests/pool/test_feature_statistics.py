"""A training goes on with the features that it began with.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin


class ASR(MergeMixin, TinyCTC):
    """The tiny recipe, which collects."""


def train(folder, epochs, scale=1.0, recoverable=False, empty=False):
    """Trains a Brain, whose recipe computes the statistics of its features."""
    torch.manual_seed(0)
    model = tiny_network(0)
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder, model, ASR, epochs=epochs, recoverables={"pool": pool}
    )
    normalize = brain.modules.normalize
    if not recoverable:
        del brain.checkpointer.recoverables["normalizer"]
    if empty:
        normalize.update_until_epoch = torch.inf
    else:
        features = torch.cat([row["feats"] for row in tiny_ctc_data(8, seed=1)])
        normalize(scale * features[None], torch.ones(1), epoch=0)
        normalize.update_until_epoch = 0
    data = tiny_ctc_data(6, seed=1)
    brain.fit(brain.hparams.epoch_counter, data, data)
    return pool


def test_other_statistics_are_refused(tmp_path):
    train(tmp_path, 1)
    with pytest.raises(ValueError, match="run'.*normaliser 'normalize'"):
        train(tmp_path, 2, scale=2.0)
    # summed in another order, for example
    assert len(train(tmp_path, 2, scale=1.00001).candidates()) == 2


def test_statistics_that_are_restored_or_gathered_again(tmp_path):
    train(tmp_path / "restored", 1, recoverable=True)
    pool = train(tmp_path / "restored", 2, scale=2.0, recoverable=True)
    assert len(pool.candidates()) == 2
    train(tmp_path / "gathered", 1, empty=True)
    assert len(train(tmp_path / "gathered", 2, empty=True).candidates()) == 2
