"""A Brain with a decoder, which counts how often it scores a trial.

Authors
 * The speechbrain_merge authors 2026
"""

import torch
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.search import GreedySearch

VALID = dict(batch_size=2)


class Decoder:
    """Stands for a recipe's search: what it is told changes the words."""

    def __init__(self, bonus=(0.0,), inner=None, buffer=None):
        self.bonus, self.inner, self.buffer = list(bonus), inner, buffer
        self.decoded = 0

    def __call__(self, log_probabilities):
        """More or less of the blank."""
        self.decoded += 1
        bonus = sum(self.bonus)
        if self.inner is not None:
            bonus += self.inner.bonus[0]
        blank = torch.zeros(log_probabilities.shape[-1])
        blank[0] = bonus
        return log_probabilities + blank


class AnotherDecoder(Decoder):
    """Never says anything."""

    def __call__(self, log_probabilities):
        """Blanks alone."""
        return super().__call__(log_probabilities) - 1e6 * torch.arange(
            log_probabilities.shape[-1]
        )


class MergingCTC(MergeMixin, TinyCTC):
    """Decodes by the decoder of its hyperparameters, and counts scorings."""

    scorings = 0

    def compute_forward(self, batch, stage):
        """The decoder's word counts."""
        found, lengths = super().compute_forward(batch, stage)
        return self.hparams.decoder(found), lengths

    def on_stage_start(self, stage, epoch=None):
        """A pass without an epoch scores a trial."""
        super().on_stage_start(stage, epoch)
        self.scorings += epoch is None


def trained(folder, epochs=4, **hparams):
    """A Brain that has trained, or gone on training, in a results folder."""
    torch.manual_seed(0)
    model = tiny_network(0)
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder,
        model,
        MergingCTC,
        epochs=epochs,
        learning_rate=0.05,
        recoverables={"pool": pool},
        output_folder=str(folder),
        **{
            "decoder": Decoder(),
            "number_of_epochs": epochs,
            "words": ["one", "two"],
            "wer_file": str(folder / "wer.txt"),
            **hparams,
        },
    )
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(12, seed=1),
        tiny_ctc_data(10, seed=50),
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs=dict(VALID),
    )
    brain.pool = pool
    return brain


def ask(brain, search=None, valid=50, method="average", **settings):
    """Runs a merge stage; gives its result, and how many trials it scored."""
    search = search or GreedySearch()
    stage = MergeStage(method, [brain.pool], search=search, **settings)
    before = brain.scorings
    result = brain.merge(stage, tiny_ctc_data(10, seed=valid), VALID)
    return result, brain.scorings - before
