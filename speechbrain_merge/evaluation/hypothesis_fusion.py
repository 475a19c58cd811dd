"""Combinations of several systems' hypotheses, to compare merges with.

A merged model costs as much as one model. What follows decodes every utterance
with each of the systems, and shows what a merge could hope for:

- ``oracle``: of every utterance the hypothesis with the fewest errors. It looks
  at the transcript, so that it is a bound and no system.
- ``select_by_confidence``: of every utterance the hypothesis whose words are
  the most probable in the mean (SBF in [1]).
- ``ensemble_log_probs``: the mean of the posteriors of every frame, which are
  then decoded as one model's (EBF in [1]).

Where systems are level, the one that was named first is taken, so that the
outcome does not hang on a rounding or on the order of a dict. Paper [1] says
neither how a word's confidence becomes that of an utterance, nor what no words
are worth: here it is the mean, and nothing (``mean_confidence``).

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances, total
>>> said = {"u1": "one two", "u2": "three four"}
>>> first = score_utterances(said, {"u1": "one two", "u2": "tree for"})
>>> second = score_utterances(said, {"u1": "won to", "u2": "three for"})
>>> total(oracle([first, second])).errors
1
>>> sure = [{"u1": 0.9, "u2": 0.7}, {"u1": 0.8, "u2": 0.6}]
>>> [
...     " ".join(s.hypothesis)
...     for s in select_by_confidence([first, second], sure)
... ]
['one two', 'tree for']

References
----------
[1] Fu et al., "OTF: Optimal Transport based Fusion of Supervised and
Self-Supervised Learning Models for Automatic Speech Recognition", Interspeech
2023 (arXiv 2306.02541).

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Mapping, Sequence
from typing import Optional

import torch

from speechbrain_merge.evaluation.error_rates import UtteranceScore, pair_scores


def oracle(
    systems: Sequence[Sequence[UtteranceScore]],
) -> list[UtteranceScore]:
    """The best hypothesis of every utterance: the upper bound of a selection.

    Arguments
    ---------
    systems : sequence of sequence of UtteranceScore
        For each system its scores, of the same utterances in any order.

    Returns
    -------
    list of UtteranceScore
        In the order of the first system.

    Raises
    ------
    ValueError
        Where there is no system, or an utterance is missing in one.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u": "one two"}
    >>> heard = ["one", "one two"]
    >>> systems = [score_utterances(said, {"u": text}) for text in heard]
    >>> oracle(systems)[0].hypothesis
    ('one', 'two')
    """
    return [min(scores, key=_cost) for scores in _together(systems)]


def select_by_confidence(
    systems: Sequence[Sequence[UtteranceScore]],
    confidences: Sequence[Mapping],
) -> list[UtteranceScore]:
    """Of every utterance the hypothesis that its system is the surest of.

    Arguments
    ---------
    systems : sequence of sequence of UtteranceScore
        For each system its scores, of the same utterances in any order.
    confidences : sequence of dict
        For each system, utterance name to confidence: see
        ``mean_confidence``.

    Returns
    -------
    list of UtteranceScore
        In the order of the first system.

    Raises
    ------
    ValueError
        Where a confidence is missing or not a number, besides the reasons of
        ``oracle``.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u": "one two"}
    >>> heard = ["one", "one two"]
    >>> systems = [score_utterances(said, {"u": text}) for text in heard]
    >>> select_by_confidence(systems, [{"u": 0.9}, {"u": 0.8}])[0].hypothesis
    ('one',)
    """
    if len(confidences) != len(systems):
        raise ValueError(
            f"{len(systems)} systems but confidences of {len(confidences)}: "
            "give one dict for each system"
        )
    chosen = []
    for scores in _together(systems):
        sure = [
            _confidence(number, known, score.id)
            for number, (known, score) in enumerate(zip(confidences, scores))
        ]
        chosen.append(scores[sure.index(max(sure))])
    return chosen


def mean_confidence(confidences: Sequence[float]) -> float:
    """The confidence of an utterance from those of its words.

    Arguments
    ---------
    confidences : sequence of float
        Of each word (or token), such as the posteriors that a greedy CTC path
        is made of.

    Returns
    -------
    float
        Their mean. No words are no confidence, 0: with any other system that
        heard something, silence is not selected.

    Example
    -------
    >>> mean_confidence([0.5, 1.0]), mean_confidence([])
    (0.75, 0.0)
    """
    values = list(confidences)
    return math.fsum(values) / len(values) if values else 0.0


def ensemble_log_probs(
    log_probs: Sequence[torch.Tensor], weights: Optional[Sequence] = None
) -> torch.Tensor:
    """The mean of several systems' posteriors: ``log Σ w_i exp(log p_i)``.

    It is computed without leaving the logarithms, where posteriors of a sure
    system would be rounded to zero.

    Arguments
    ---------
    log_probs : sequence of torch.Tensor
        Of each system, normalised over the last dimension, such as [frames,
        units] or [batch, frames, units], of the same shape.
    weights : sequence of float, optional
        Of each system, none of them negative; divided by their sum. By
        default all count the same.

    Returns
    -------
    torch.Tensor
        Of the shape of one system, normalised again.

    Raises
    ------
    ValueError
        Where shapes differ, as between models with other units or another
        subsampling, or weights cannot be a mean's.

    Example
    -------
    >>> unsure, sure = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9])
    >>> ensemble_log_probs([unsure.log(), sure.log()]).exp()
    tensor([0.3000, 0.7000])
    >>> ensemble_log_probs([unsure.log(), sure.log()], [3, 1]).exp()
    tensor([0.4000, 0.6000])
    """
    if not len(log_probs):
        raise ValueError("there are no systems to take the mean of")
    shapes = [tuple(one.shape) for one in log_probs]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"posteriors of shapes {shapes} have no mean: the systems need the "
            "same units and the same number of frames"
        )
    weights = [1] * len(shapes) if weights is None else list(weights)
    if len(weights) != len(shapes):
        raise ValueError(f"{len(shapes)} systems but {len(weights)} weights")
    whole = math.fsum(weights)
    if not math.isfinite(whole) or whole <= 0 or min(weights) < 0:
        raise ValueError(
            f"weights {weights}: expected none below 0, and one above it"
        )
    # A system of weight 0 takes no part, whatever it holds
    parts = [
        one + math.log(weight / whole)
        for one, weight in zip(log_probs, weights)
        if weight
    ]
    return torch.stack(parts).logsumexp(0)


def _together(systems):
    """Scores of all systems, utterance by utterance."""
    if not len(systems):
        raise ValueError("there are no systems to choose between")
    pairs = [pair_scores(systems[0], system) for system in systems]
    return [[theirs for _, theirs in row] for row in zip(*pairs)]


def _cost(score):
    """Errors per word; several references may differ in length."""
    return score.errors / max(score.words, 1)


def _confidence(number, known, name):
    """The confidence of one system in one utterance."""
    value = known.get(name, math.nan)
    if math.isnan(value):
        raise ValueError(
            f"system {number + 1} has no confidence in utterance {name!r}: "
            "give a number for every utterance"
        )
    return value
