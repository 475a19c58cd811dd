"""Entropy of outputs: what counts, and where it is found."""

import math
from types import SimpleNamespace

import pytest
import torch

from speechbrain_merge.brain.entropy import entropy, scores_of


def test_the_formula_by_hand():
    table = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    by_hand = (math.log(2) + (0.5 * math.log(4) + 0.5 * math.log(2))) / 2
    scores = table.log()
    assert entropy(scores).item() == pytest.approx(by_hand)
    # logits and log-probabilities are the same
    assert entropy(scores + 3.0).item() == pytest.approx(by_hand)
    assert entropy(scores.half()).item() == pytest.approx(by_hand, rel=1e-3)


def test_gradients_are_finite_and_right():
    scores = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1.0, 0.5])
    assert torch.autograd.gradcheck(lambda s: entropy(s, lengths), scores)
    forbidden = torch.randn(1, 3, 4)
    forbidden[..., 2] = -torch.inf
    forbidden.requires_grad_()
    value = entropy(forbidden)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(forbidden.grad).all()


def test_padding_and_blanks_do_not_count():
    scores = torch.randn(2, 8, 5)
    each = torch.distributions.Categorical(logits=scores).entropy()
    lengths = torch.tensor([1.0, 0.625])
    padded = scores.clone()
    padded[1, 5:] = torch.nan
    expected = torch.cat([each[0], each[1, :5]]).mean()
    torch.testing.assert_close(entropy(padded, lengths), expected)
    padded.requires_grad_()
    entropy(padded, lengths).backward()
    assert (padded.grad[1, 5:] == 0).all()
    said = scores.argmax(dim=-1) != 2
    said[1, 5:] = False
    torch.testing.assert_close(
        entropy(scores, lengths, skip_blank=2), each[said].mean()
    )
    silent = torch.zeros(1, 3, 2)
    silent[..., 0] = 5
    silent.requires_grad_()
    nothing = entropy(silent, skip_blank=0)
    nothing.backward()
    assert nothing == 0 and (silent.grad == 0).all()


def test_where_scores_are():
    scores, lengths = torch.randn(2, 4, 5), torch.tensor([1.0, 0.5])
    batch = SimpleNamespace(tokens_eos=(torch.ones(2, 4), lengths))
    for predictions, outputs in (
        ((scores, lengths), None),
        ((scores, lengths, None), None),
        ((scores, None, None), "tokens_eos"),
        (scores, "tokens_eos"),
        ({"a": scores}, lambda found, batch: (found["a"], lengths)),
    ):
        found = scores_of(predictions, batch, outputs)
        assert found[0] is scores and found[1] is lengths
    for predictions in ((scores, None), scores, (scores, scores), (lengths,)):
        with pytest.raises(ValueError, match="Say by `outputs`"):
            scores_of(predictions, batch)
    with pytest.raises(ValueError, match="needs scores"):
        entropy(scores[0])
    with pytest.raises(ValueError, match="one for each"):
        entropy(scores, lengths[:1])
