"""Candidates scored against the better of two references."""

from fractions import Fraction

import pytest
import torch
from tiny_recipe import WORDS, TinyCTC, tiny_ctc_brain, tiny_ctc_data

import speechbrain as sb
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.scorer import Scorer
from speechbrain_merge.evaluation import BestReferenceStats, from_tracker, total


class TwoReferences(TinyCTC):
    """Every utterance is also transcribed with its first word repeated."""

    def compute_objectives(self, predictions, batch, stage):
        """Errors against the better transcript."""
        if stage == sb.Stage.TRAIN:
            return super().compute_objectives(predictions, batch, stage)
        log_probabilities, lengths = predictions
        found = ctc_greedy_decode(log_probabilities, lengths, blank_id=0)
        said = [words.split() for words in batch.wrd]
        self.wer_metric.append(
            batch.id,
            [[WORDS[label - 1] for label in labels] for labels in found],
            said,
            [[[words[0], *words] for words in said]],
        )
        return torch.zeros(())


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_trials_are_decoded_in_full_and_counted_exactly(tmp_path, average):
    brain = tiny_ctc_brain(
        tmp_path,
        brain_class=TwoReferences,
        wer_computer=lambda: BestReferenceStats(clip=True),
    )
    sets = {"read": tiny_ctc_data(9), "spoken": tiny_ctc_data(6, 1)}
    brain.fit(range(1, 2), sets["read"], sets["spoken"])
    scorer = Scorer(brain, FixedBatches(brain, sets), average=average)
    tally = scorer.score()
    counts = total(from_tracker(brain.wer_metric))
    assert (tally.errors, tally.words) == (counts.errors, counts.words)
    # a model that hears nothing: both transcripts are equally bad, and the
    # averages of their words are counted
    torch.nn.init.zeros_(brain.modules.model.ctc_lin.weight)
    with torch.no_grad():
        brain.modules.model.ctc_lin.bias.copy_(torch.eye(7)[0])
    worse = scorer.score()
    words = sum(
        len(row["wrd"].split())
        for data in sets.values()
        for row in data.data.values()
    )
    assert worse.words == worse.errors == Fraction(2 * words + 15, 2)
    # half of it would show that it loses against this, but nothing is skipped
    again = scorer.score(incumbent=tally, accept="lt")
    assert again.complete and again == worse
    assert again.utterances == 15
