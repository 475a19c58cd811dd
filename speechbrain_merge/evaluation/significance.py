r"""Whether one system is significantly better than another.

Both tests are paired: the systems are compared on the same utterances, so that
what is hard for both does not blur the difference. The bootstrap lives in
``bootstrap.py``; here is ``mapsswe``, NIST's matched-pair test [1, 2]. It cuts
the utterances into segments that are independent of one another, as at least two
words correct in both systems lie between them, and tests whether the mean
difference of the errors in a segment is zero.

The test's statistic is ``z``, as in NIST's ``sclite``. NIST takes it for normal,
which is right for many segments and wrong for few: of two equally good systems
that differ in two segments, it calls one better half of the time, and of four
in one case of eight. Where the systems differ in fewer than 100 segments, the
p-value is therefore the exact one (``sign_flips.py``), and ``MatchedPairs.test``
says which it is. With fewer than six segments nothing can be significant at
0.05.

Where systems were trained several times, an utterance still is one piece of
evidence: what its scores differ by is added up over the trainings before the
test (``utterances``), as the bootstrap draws all of them together (``blocks``).

Testing many merges against one baseline finds "significance" by chance;
``holm`` [3] corrects the p-values for their number.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> said = {f"u{i}": "one two three four" for i in range(50)}
>>> bad = {name: "one too three for" for name in said}
>>> good = dict(bad, **{f"u{i}": said[f"u{i}"] for i in range(10)})
>>> before, after = score_utterances(said, bad), score_utterances(said, good)
>>> test = mapsswe(before, after)
>>> test.segments, round(test.z, 2), round(test.p_value, 4), test.test
(50, -3.5, 0.002, 'exact')
>>> holm({"average": test.p_value, "ties": 0.2})["ties"]
0.2

References
----------
[1] L. Gillick, S. J. Cox, "Some Statistical Issues in the Comparison of Speech
Recognition Algorithms", ICASSP 1989.
[2] D. S. Pallett, W. M. Fisher, J. G. Fiscus, "Tools for the Analysis of
Benchmark Speech Recognition Tests", ICASSP 1990.
[3] S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
Scandinavian Journal of Statistics 6, 1979.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Optional, Union

import numpy
from scipy.stats import norm

from speechbrain_merge.evaluation.error_rates import UtteranceScore, pair_scores
from speechbrain_merge.evaluation.sign_flips import sign_flip_p_value


@dataclasses.dataclass(frozen=True)
class MatchedPairs:
    """Outcome of the matched-pair sentence-segment word-error test.

    Arguments
    ---------
    z : float
        Mean difference of the errors in a segment, second system minus first,
        over its standard error. Below 0, the second is better. With several
        scores of an utterance, the difference is the sum of theirs.
    p_value : float
        Two-tailed probability of a difference this far from 0 by luck; never 0
        from the exact test.
    segments : int
        Segments in which some system errs.
    mean_difference : float
        Mean difference of the errors in a segment.
    differing : int
        Segments in which one system errs more than the other.
    test : str
        Where the p-value is from: ``"exact"``, the share of all ways to swap
        the systems in some segments that differ at least as much in their
        errors; or ``"normal"``, from z by the normal distribution, as
        ``sclite`` has it.

    Example
    -------
    >>> MatchedPairs(-3.4, 0.0007, 120, -0.3, 110, "normal").p_value < 0.05
    True
    """

    z: float
    p_value: float
    segments: int
    mean_difference: float
    differing: int
    test: str


EXACT_BELOW = 100
"""With fewer differing segments than this, the p-value is the exact one."""


def mapsswe(
    first: Sequence[UtteranceScore],
    second: Sequence[UtteranceScore],
    minimum_correct: int = 2,
    utterances: Optional[Mapping] = None,
) -> MatchedPairs:
    """Matched-pair sentence-segment word-error test [1, 2].

    Arguments
    ---------
    first : sequence of UtteranceScore
        Scores of one system: the baseline.
    second : sequence of UtteranceScore
        Scores of the other against the same references, in any order. Of an
        utterance with several references each system may have been scored
        against another one; it then is one segment as a whole, and so is one
        whose errors were clipped.
    minimum_correct : int
        Words correct in both systems that part one segment from the next. An
        utterance's ends part segments too.
    utterances : dict, optional
        Name of each score to its utterance, where systems were trained several
        times and there are several scores of an utterance. What one training
        mishears, others mishear too: so these scores are no new evidence each.
        Words have to be correct in all of them to part segments, and the
        errors of a segment are added up.

    Returns
    -------
    MatchedPairs

    Raises
    ------
    ValueError
        Where the systems were not scored on the same utterances and words,
        or a score is in no utterance.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u": "a b c d e f g h"}
    >>> first = score_utterances(said, {"u": "x b y d e f z h"})
    >>> second = score_utterances(said, {"u": "x b c d e f g h"})
    >>> test = mapsswe(first, second)
    >>> test.segments, test.mean_difference, test.p_value
    (2, -1.0, 0.5)
    """
    differences = []
    for pairs in _by_utterance(pair_scores(first, second), utterances):
        several = all(a.references == b.references > 1 for a, b in pairs)
        scores = [score for pair in pairs for score in pair]
        if not several and len({score.reference for score in scores}) > 1:
            raise ValueError(
                f"utterance {scores[0].id!r} was scored against different "
                "references: the matched-pair test needs the same words for "
                "both systems"
            )
        if several or any(map(_clipped, scores)):
            differences += _whole_difference(pairs)
        else:
            differences += _segment_differences(pairs, minimum_correct)
    count = len(differences)
    differing = sum(difference != 0 for difference in differences)
    mean = sum(differences) / max(count, 1)
    z = _z(differences)
    if differing < EXACT_BELOW:
        p_value, test = sign_flip_p_value(differences), "exact"
    else:
        p_value, test = float(2 * norm.sf(abs(z))), "normal"
    return MatchedPairs(z, p_value, count, mean, differing, test)


def _z(differences):
    """The mean over its standard error.

    Infinite where all segments differ alike, and 0 where there are fewer than
    two of them, or none differs.
    """
    if len(differences) < 2 or not any(differences):
        return 0.0
    mean = float(numpy.mean(differences))
    error = float(numpy.std(differences, ddof=1)) / math.sqrt(len(differences))
    return mean / error if error else math.copysign(math.inf, mean)


def holm(
    p_values: Union[Mapping[str, float], Sequence[float]],
) -> Union[dict, list]:
    """Correct p-values for the number of tests made [3].

    Arguments
    ---------
    p_values : dict or sequence of float
        One p-value a test.

    Returns
    -------
    dict or list
        The corrected ones, in the same order: compare these with 0.05.

    Example
    -------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm({"average": 0.5, "ties": 0.9})
    {'average': 1.0, 'ties': 1.0}
    """
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values()))))
    bad = [p for p in p_values if not 0 <= p <= 1]
    if bad:
        raise ValueError(f"p-values lie in [0, 1], not {bad}")
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, (len(order) - rank) * p_values[place])
        corrected[place] = min(1.0, highest)
    return corrected


def _clipped(score):
    """Whether fewer errors count than the alignment has."""
    return score.errors < len(score.operations) - score.operations.count("=")


def _by_utterance(pairs, utterances):
    """The pairs of scores of each utterance: one, or one a training."""
    if utterances is None:
        return [[pair] for pair in pairs]
    missing = [a.id for a, _ in pairs if a.id not in utterances]
    if missing:
        raise ValueError(
            f"{len(missing)} scores are of no utterance (such as "
            f"{missing[0]!r}): `utterances` names that of each"
        )
    grouped: dict = {}
    for pair in pairs:
        grouped.setdefault(utterances[pair[0].id], []).append(pair)
    return list(grouped.values())


def _whole_difference(pairs):
    """Errors of second minus first as one segment, where there are any."""
    if not any(a.errors or b.errors for a, b in pairs):
        return []
    return [sum(b.errors - a.errors for a, b in pairs)]


def _segment_differences(pairs, minimum_correct):
    """Errors of second minus first in each segment of one utterance.

    The utterance is a sequence of gap, word, gap, word, ..., gap: insertions
    are errors in a gap. A segment is a run of places with errors, cut wherever
    enough error-free words lie between two such places.
    """
    before = [_errors_by_place(a) for a, _ in pairs]
    after = [_errors_by_place(b) for _, b in pairs]
    segments, correct = [], minimum_correct
    for place, (a, b) in enumerate(zip(zip(*before), zip(*after))):
        is_word = place % 2 == 1
        if any(a) or any(b):
            if correct >= minimum_correct:
                segments.append(0)
            segments[-1] += sum(b) - sum(a)
            correct = 0
        elif is_word:
            correct += 1
    return segments


def _errors_by_place(score):
    """Number of errors at each gap (even places) and word (odd places)."""
    places = [0] * (2 * len(score.reference) + 1)
    word = 0
    for operation in score.operations:
        if operation == "I":
            places[2 * word] += 1
        else:
            places[2 * word + 1] = int(operation != "=")
            word += 1
    return places
