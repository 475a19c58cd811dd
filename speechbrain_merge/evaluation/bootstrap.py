r"""Bootstrap confidence intervals of error rates and of their differences.

The bootstrap [1] draws the test set again and again, with replacement, and looks
how the rate spreads. With two systems each draw is the same for both
(``paired_bootstrap``), so that what is hard for both does not blur the
difference. Utterances of one speaker stand or fall together: where speakers or
recordings are known, they are what should be drawn. Pass them as ``blocks``.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> said = {f"u{i}": "one two three four" for i in range(50)}
>>> bad = {name: "one too three for" for name in said}
>>> good = dict(bad, **{f"u{i}": said[f"u{i}"] for i in range(10)})
>>> before, after = score_utterances(said, bad), score_utterances(said, good)
>>> found = paired_bootstrap(before, after, replicates=1000)
>>> found.difference, found.high < 0, found.probability_of_improvement
(-10.0, True, 1.0)

References
----------
[1] M. Bisani, H. Ney, "Bootstrap Estimates for Confidence Intervals in ASR
Performance Evaluation", ICASSP 2004.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy

from speechbrain_merge.evaluation.error_rates import UtteranceScore, pair_scores

# replicates x units drawn at once: bounds the memory to about 32 MiB
DRAWS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """An error rate and its confidence interval.

    Arguments
    ---------
    rate : float
        Error rate in %.
    low : float
        Lower end of the confidence interval, in %.
    high : float
        Upper end of the confidence interval, in %.
    standard_error : float
        Standard deviation of the rate over the replicates, in points.
    units : int
        Utterances, or blocks, that were drawn from.

    Example
    -------
    >>> Interval(10.0, 9.0, 11.0, 0.5, 100).rate
    10.0
    """

    rate: float
    low: float
    high: float
    standard_error: float
    units: int


@dataclasses.dataclass(frozen=True)
class BootstrapComparison:
    """A difference of two error rates and its confidence interval.

    Arguments
    ---------
    difference : float
        Rate of the second system minus that of the first, in points. Below 0,
        the second is better.
    low : float
        Lower end of its confidence interval.
    high : float
        Upper end of its confidence interval.
    probability_of_improvement : float
        Share of the replicates in which the second system is better.
    standard_error : float
        Standard deviation of the difference over the replicates.
    units : int
        Utterances, or blocks, that were drawn from.

    Example
    -------
    >>> BootstrapComparison(-1.0, -1.5, 0.1, 0.96, 0.4, 80).high < 0
    False
    """

    difference: float
    low: float
    high: float
    probability_of_improvement: float
    standard_error: float
    units: int


def confidence_interval(
    scores: Sequence[UtteranceScore],
    blocks: Optional[Mapping] = None,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of one system's error rate [1].

    Arguments
    ---------
    scores : sequence of UtteranceScore
        Scores of the utterances.
    blocks : dict
        Utterance name to speaker or recording: draw these, not utterances.
    replicates : int
        Test sets to draw.
    level : float
        Probability that the interval is to cover, by percentiles.
    seed : int
        Same seed, same interval.

    Returns
    -------
    Interval

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {f"u{i}": "one two" for i in range(100)}
    >>> heard = {f"u{i}": "one two" if i % 2 else "one" for i in range(100)}
    >>> interval = confidence_interval(score_utterances(said, heard))
    >>> interval.rate, 19 < interval.low < 21, 29 < interval.high < 31
    (25.0, True, True)
    """
    counts = _add_blocks(
        [(a.id, (a.errors, a.words)) for a, _ in pair_scores(scores, scores)],
        blocks,
    )
    totals = _draw_totals(counts, replicates, seed)
    rates = _quotients(totals[:, 0], totals[:, 1])
    low, high = _percentiles(rates, level)
    errors, words = counts.sum(axis=0)
    return Interval(
        rate=float(100 * errors / words),
        low=low,
        high=high,
        standard_error=float(rates.std(ddof=1)),
        units=len(counts),
    )


def paired_bootstrap(
    first: Sequence[UtteranceScore],
    second: Sequence[UtteranceScore],
    blocks: Optional[Mapping] = None,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapComparison:
    """Bootstrap of the difference of two systems on the same utterances [1].

    Arguments
    ---------
    first : sequence of UtteranceScore
        Scores of one system: the baseline.
    second : sequence of UtteranceScore
        Scores of the other on the same utterances, in any order.
    blocks : dict
        Utterance name to speaker or recording: draw these, not utterances.
    replicates : int
        Test sets to draw.
    level : float
        Probability that the interval is to cover, by percentiles.
    seed : int
        Same seed, same outcome.

    Returns
    -------
    BootstrapComparison

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u1": "a b", "u2": "c d"}
    >>> scores = score_utterances(said, {"u1": "a b", "u2": "c"})
    >>> paired_bootstrap(scores, scores, replicates=10).difference
    0.0
    """
    counts = _pair_counts(first, second, blocks)
    differences = _differences(_draw_totals(counts, replicates, seed))
    low, high = _percentiles(differences, level)
    errors_a, words_a, errors_b, words_b = counts.sum(axis=0)
    return BootstrapComparison(
        difference=float(100 * errors_b / words_b - 100 * errors_a / words_a),
        low=low,
        high=high,
        probability_of_improvement=float((differences < 0).mean()),
        standard_error=float(differences.std(ddof=1)),
        units=len(counts),
    )


def macro_bootstrap(
    first: Mapping,
    second: Mapping,
    blocks: Optional[Mapping] = None,
    replicates: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapComparison:
    """Bootstrap of the difference of two mean error rates over several sets.

    The mean is the unweighted one over sets, as in ``macro_average``. Each set
    is drawn again by itself, so that all sets stay of their size.

    Arguments
    ---------
    first : dict
        Set to the scores of one system: the baseline.
    second : dict
        The same sets and utterances, scored for the other system.
    blocks : dict
        Utterance name to speaker or recording: draw these, not utterances.
    replicates : int
        Test sets to draw.
    level : float
        Probability that the interval is to cover, by percentiles.
    seed : int
        Same seed, same outcome.

    Returns
    -------
    BootstrapComparison

    Raises
    ------
    ValueError
        Where the systems were not scored on the same sets.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {f"u{i}": "one two" for i in range(50)}
    >>> good = score_utterances(said, said)
    >>> bad = score_utterances(said, {name: "one" for name in said})
    >>> before, after = {"a": bad, "b": good}, {"a": good, "b": good}
    >>> macro_bootstrap(before, after, replicates=100).difference
    -25.0
    """
    if set(first) != set(second) or not first:
        raise ValueError(
            "both systems must be scored on the same sets; got "
            f"{sorted(first)} and {sorted(second)}"
        )
    difference, drawn, units = 0.0, numpy.zeros(replicates), 0
    for place, name in enumerate(sorted(first)):
        counts = _pair_counts(first[name], second[name], blocks)
        totals = _draw_totals(counts, replicates, [seed, place])
        drawn += _differences(totals)
        difference += float(_differences(counts.sum(axis=0)[None])[0])
        units += len(counts)
    low, high = _percentiles(drawn / len(first), level)
    return BootstrapComparison(
        difference=difference / len(first),
        low=low,
        high=high,
        probability_of_improvement=float((drawn < 0).mean()),
        standard_error=float(drawn.std(ddof=1)) / len(first),
        units=units,
    )


def _pair_counts(first, second, blocks):
    """Errors and words of both systems: a row an utterance, or a block."""
    return _add_blocks(
        [
            (a.id, (a.errors, a.words, b.errors, b.words))
            for a, b in pair_scores(first, second)
        ],
        blocks,
    )


def _differences(totals):
    """Rate of the second system minus that of the first, row by row."""
    return _quotients(totals[:, 2], totals[:, 3]) - _quotients(
        totals[:, 0], totals[:, 1]
    )


def _add_blocks(rows, blocks):
    """One row of counts an utterance, or a block of utterances."""
    if blocks is None:
        counts = numpy.array([row for _, row in rows], dtype=float)
    else:
        missing = [name for name, _ in rows if name not in blocks]
        if missing:
            raise ValueError(
                f"{len(missing)} utterances are in no block (such as "
                f"{missing[0]!r}): `blocks` names a speaker for each"
            )
        added = {}
        for name, row in rows:
            block = blocks[name]
            added[block] = added.get(block, 0) + numpy.array(row, dtype=float)
        counts = numpy.array(list(added.values()))
    if not counts[:, 1::2].sum(axis=0).all():
        raise ValueError("there are no reference words to form a rate of")
    return counts


def _draw_totals(counts, replicates, seed):
    """Column totals of test sets drawn with replacement, one a row."""
    if replicates < 2:
        raise ValueError(f"replicates is at least 2, not {replicates}")
    generator = numpy.random.default_rng(seed)
    units = len(counts)
    at_once = max(1, DRAWS_AT_ONCE // units)
    chances = numpy.full(units, 1 / units)
    totals = [
        # how often each unit is drawn into each test set
        generator.multinomial(
            units, chances, size=min(at_once, replicates - start)
        )
        @ counts
        for start in range(0, replicates, at_once)
    ]
    return numpy.concatenate(totals)


def _quotients(errors, words):
    """Rates in % of the replicates; 0 for one that drew no words at all."""
    return 100 * numpy.divide(
        errors, words, out=numpy.zeros_like(errors), where=words > 0
    )


def _percentiles(values, level):
    """The central interval that holds this share of the replicates."""
    if not 0 < level < 1:
        raise ValueError(f"level lies between 0 and 1, not {level}")
    tail = 50 * (1 - level)
    low, high = numpy.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
