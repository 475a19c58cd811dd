"""Several systems at once: oracle, selection by confidence, ensemble."""

import math

import pytest
import torch

from speechbrain_merge.evaluation import (
    ensemble_log_probs,
    mean_confidence,
    oracle,
    score_utterances,
    select_by_confidence,
    total,
)

SAID = {"u1": "a b c", "u2": "d e", "u3": "f", "u4": ""}
FIRST = {"u1": "a b c", "u2": "x y", "u3": "", "u4": "noise"}
SECOND = {"u1": "a x y", "u2": "d y", "u3": "g", "u4": ""}


def systems(*heard, said=SAID):
    """Scores of each system."""
    return [score_utterances(said, hypotheses) for hypotheses in heard]


def words(scores):
    """What was recognised."""
    return {score.id: " ".join(score.hypothesis) for score in scores}


def test_the_oracle_takes_the_fewest_errors_of_every_utterance():
    first, second = systems(FIRST, SECOND)
    assert (total(first).errors, total(second).errors) == (4, 4)
    # u3 is a deletion or a substitution, one error each: the first is taken
    best = {"u1": "a b c", "u2": "d y", "u3": "", "u4": ""}
    assert words(oracle([first, second])) == best
    counts = total(oracle([first, second]))
    assert (counts.errors, counts.words, counts.utterances) == (2, 6, 4)
    assert counts.substitutions == counts.deletions == 1
    assert words(oracle([second, first])) == {**best, "u3": "g"}


def test_the_oracle_is_no_worse_than_any_and_needs_no_order():
    first, second = systems(FIRST, SECOND)
    third = systems({**SECOND, "u3": "f"})[0]
    bound = oracle([first, second[::-1], third])
    assert [score.id for score in bound] == list(SAID)
    assert total(bound).errors == 1
    assert oracle([first]) == first


def test_with_several_references_the_rate_counts_not_the_errors():
    said = [{"u": "a b c d"}, {"u": "a b"}]
    long, short = systems({"u": "a b c x y"}, {"u": "a z"}, said=said)
    # 2 errors in 4 words against 1 in 2: level, so the first
    assert (long.pop().errors, short[0].errors) == (2, 1)
    long, short = systems({"u": "a b c x"}, {"u": "a z"}, said=said)
    assert words(oracle([short, long])) == {"u": "a b c x"}


def test_selection_takes_the_surest_and_of_level_ones_the_first():
    first, second = systems(FIRST, SECOND)
    sure = [
        {"u1": 0.5, "u2": 0.9, "u3": 0.0, "u4": 0.3},
        {"u1": 0.5, "u2": 0.8, "u3": 0.1, "u4": 0.0},
    ]
    chosen = select_by_confidence([first, second], sure)
    assert words(chosen) == {
        "u1": "a b c",
        "u2": "x y",
        "u3": "g",
        "u4": "noise",
    }
    assert total(chosen).errors == 4
    turned = select_by_confidence([second, first], sure[::-1])
    assert words(turned) == {**words(chosen), "u1": "a x y"}
    # other names are no harm, the order is none either
    sure[1]["of another set"] = 1.0
    assert select_by_confidence([first, second[::-1]], sure) == chosen


def test_a_confidence_is_the_mean_of_the_words():
    assert mean_confidence(iter([0.1] * 10)) == 0.1
    assert mean_confidence([]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: oracle([]), "no systems"),
        (lambda a, b: oracle([a, b[1:]]), "scored for one system only"),
        (lambda a, b: select_by_confidence([a, b], [{}]), "one dict for each"),
        (
            lambda a, b: select_by_confidence(
                [a, b], [dict.fromkeys(SAID, 1.0), {"u1": 0.5}]
            ),
            "system 2 has no confidence in utterance 'u2'",
        ),
        (
            lambda a, b: select_by_confidence(
                [a], [dict.fromkeys(SAID, math.nan)]
            ),
            "system 1 has no confidence in utterance 'u1'",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*systems(FIRST, SECOND))


def test_the_ensemble_is_the_mean_of_posteriors():
    generator = torch.Generator().manual_seed(0)
    three = torch.randn(3, 2, 7, 5, generator=generator, dtype=torch.float64)
    posteriors = three.softmax(-1)
    logs = list(three.log_softmax(-1))
    mean = ensemble_log_probs(logs)
    torch.testing.assert_close(mean.exp(), posteriors.mean(0))
    torch.testing.assert_close(
        mean.exp().sum(-1), torch.ones(2, 7, dtype=torch.float64)
    )
    weighted = ensemble_log_probs(logs, [1, 2, 5])
    expected = (posteriors * torch.tensor([1, 2, 5]).view(3, 1, 1, 1)).sum(0)
    torch.testing.assert_close(weighted.exp(), expected / 8)
    # a weight of 0 leaves a system out, even one that knows nothing
    broken = torch.full_like(logs[0], math.nan)
    assert torch.equal(ensemble_log_probs([logs[0], broken], [2, 0]), logs[0])


def test_the_ensemble_keeps_what_float32_would_round_to_zero():
    sure = torch.tensor([0.0, -200.0])
    assert sure.exp()[1] == 0
    assert torch.equal(ensemble_log_probs([sure, sure]), sure)
    certain = torch.tensor([0.0, -math.inf])
    mean = ensemble_log_probs([certain, certain])
    assert torch.equal(mean, certain)


@pytest.mark.parametrize(
    ("shapes", "weights", "message"),
    [
        ([], None, "no systems"),
        ([(4, 3), (5, 3)], None, r"\(4, 3\), \(5, 3\)"),
        ([(4, 3), (1, 3)], None, "same number of frames"),
        ([(4, 3), (4, 3)], [1.0], "2 systems but 1 weights"),
        ([(4, 3), (4, 3)], [2.0, -1.0], "none below 0"),
        ([(4, 3), (4, 3)], [0, 0], "one above it"),
        ([(4, 3)], [math.nan], "weights"),
    ],
)
def test_what_has_no_mean_is_refused(shapes, weights, message):
    with pytest.raises(ValueError, match=message):
        ensemble_log_probs([torch.zeros(shape) for shape in shapes], weights)
