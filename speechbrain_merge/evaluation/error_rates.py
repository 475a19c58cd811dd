"""Score the hypothesis of each utterance by its word errors.

An ``UtteranceScore`` holds what went wrong in one utterance, and ``total`` adds
utterances to ``ErrorCounts``. The edit distance is SpeechBrain's own, so that
the numbers equal those of ``ErrorRateStats`` and of the ``wer_test.txt`` that a
recipe writes.

Example
-------
>>> references = {"u1": "the cat sat", "u2": "on the mat"}
>>> hypotheses = {"u1": "the cat sat down", "u2": "on a mat"}
>>> counts = count_errors(references, hypotheses)
>>> counts.errors, counts.words, round(counts.rate, 2)
(2, 6, 33.33)
>>> counts.insertions, counts.deletions, counts.substitutions
(1, 0, 1)

The rate of the Speech Accessibility Project challenge [1] takes the better of several references
and never counts more errors than an utterance has words:

>>> fluent = {"u1": "i want it"}
>>> spoken = {"u1": "i i want it"}
>>> count_errors([spoken, fluent], {"u1": "i want it"}, clip=True).errors
0

References
----------
[1] The Interspeech 2025 Speech Accessibility Project challenge, whose metrics
Phukon et al. describe (arXiv 2506.16528); Ducorroy and Riad select what to
merge by it (arXiv 2505.20477).

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

from speechbrain.utils.edit_distance import (
    EDIT_SYMBOLS,
    wer_details_by_utterance,
)
from speechbrain_merge.evaluation.counts import ErrorCounts
from speechbrain_merge.evaluation.transcripts import (
    require_same_utterances,
    require_texts,
    tokens,
)


@dataclasses.dataclass(frozen=True)
class UtteranceScore:
    """The hypothesis of one system for one utterance, with its errors.

    Arguments
    ---------
    id : str
        Name of the utterance.
    counts : ErrorCounts
        The errors in it.
    reference : tuple
        Words (or characters) that were said.
    hypothesis : tuple
        Words (or characters) that were recognised.
    operations : str
        The alignment, a letter a step: ``=`` correct, ``I`` inserted,
        ``D`` deleted, ``S`` substituted.
    duration : float
        Seconds of audio, where known.
    references : int
        How many transcripts the utterance has, of which this is the best for
        the hypothesis.

    Example
    -------
    >>> [score] = score_utterances({"u1": "a b c"}, {"u1": "a x c d"})
    >>> score.operations, score.errors, score.words
    ('=S=I', 2, 3)
    """

    id: str
    counts: ErrorCounts
    reference: tuple
    hypothesis: tuple
    operations: str
    duration: Optional[float] = None
    references: int = 1

    @property
    def errors(self):
        """Errors in the utterance."""
        return self.counts.errors

    @property
    def words(self):
        """Reference words in the utterance."""
        return self.counts.words


def total(scores: Iterable[UtteranceScore]) -> ErrorCounts:
    """Add the counts of utterances.

    Arguments
    ---------
    scores : iterable of UtteranceScore
        As from ``score_utterances`` or ``from_tracker``.

    Returns
    -------
    ErrorCounts

    Example
    -------
    >>> total(score_utterances({"u": "a b"}, {"u": "a"})).rate
    50.0
    >>> total([]).words
    0
    """
    return sum((score.counts for score in scores), ErrorCounts())


def count_errors(references, hypotheses, clip=False, unit="word"):
    """Count the errors of a whole set.

    Arguments
    ---------
    references : dict or list of dict
        See ``score_utterances``.
    hypotheses : dict
        See ``score_utterances``.
    clip : bool
        See ``score_utterances``.
    unit : str
        See ``score_utterances``.

    Returns
    -------
    ErrorCounts

    Example
    -------
    >>> count_errors({"u": "hello"}, {"u": "hallo"}, unit="character").rate
    20.0
    """
    return total(score_utterances(references, hypotheses, clip, unit))


def score_utterances(
    references: Union[Mapping, Sequence[Mapping]],
    hypotheses: Mapping,
    clip: bool = False,
    unit: str = "word",
    durations: Optional[Mapping] = None,
) -> list[UtteranceScore]:
    """Score every utterance by SpeechBrain's edit distance.

    Arguments
    ---------
    references : dict or list of dict
        Utterance name to words (a list, or a string that is split at white
        space). With a list of such dicts each utterance has several
        transcripts, and the one with the lowest rate counts; where several
        are equally good, the averages of their counts do.
    hypotheses : dict
        Utterance name to recognised words, for the same utterances.
    clip : bool
        Count no more errors in an utterance than it has reference words.
        What is left out are always insertions, as deletions and substitutions
        can never outnumber the words.
    unit : str
        "word", or "character" for a character error rate (white space between
        words counts as one character).
    durations : dict
        Utterance name to seconds, kept in the scores for ``by_bucket``.

    Returns
    -------
    list of UtteranceScore
        In the order of the (first) references.

    Raises
    ------
    ValueError
        Where references and hypotheses are not of the same utterances, or
        one of them is no text.

    Example
    -------
    >>> scores = score_utterances({"u": "no"}, {"u": "no no no"}, clip=True)
    >>> scores[0].errors, scores[0].operations
    (1, '=II')
    """
    if unit not in ("word", "character"):
        raise ValueError(f'unit is "word" or "character", not {unit!r}')
    several = isinstance(references, (list, tuple))
    versions: Any = references if several else [references]
    if not versions:
        raise ValueError("references is an empty list: give at least one dict")
    for what, texts in (
        *(("references", version) for version in versions),
        ("hypotheses", hypotheses),
    ):
        require_texts(what, texts)
    for version in versions:
        require_same_utterances(version, hypotheses)
    names = list(versions[0])
    recognised = {name: tokens(hypotheses[name], unit) for name in names}
    scored = [
        wer_details_by_utterance(
            {name: tokens(version[name], unit) for name in names},
            recognised,
            compute_alignments=True,
        )
        for version in versions
    ]
    return [
        _best_version(
            [_from_details(details, clip, durations) for details in attempts]
        )
        for attempts in zip(*scored)
    ]


def from_tracker(tracker, durations: Optional[Mapping] = None):
    """Read the scores out of SpeechBrain's ``ErrorRateStats``.

    Arguments
    ---------
    tracker : speechbrain.utils.metric_stats.ErrorRateStats
        After the ``append`` calls of an evaluation.
    durations : dict
        Utterance name to seconds, kept in the scores for ``by_bucket``.

    Returns
    -------
    list of UtteranceScore
        Their total equals ``tracker.summarize()``.

    Raises
    ------
    ValueError
        Where an utterance was appended twice, as by a distributed sampler
        that pads the last batch, or by a tracker that was not cleared.

    Example
    -------
    >>> import torch
    >>> from speechbrain.utils.metric_stats import ErrorRateStats
    >>> tracker = ErrorRateStats()
    >>> tracker.append(["u"], predict=[["a", "b"]], target=[["a", "c"]])
    >>> total(from_tracker(tracker)).rate
    50.0
    """
    seen = set()
    for details in tracker.scores:
        if details["key"] in seen:
            raise ValueError(
                f"utterance {details['key']!r} is in the tracker twice: score "
                "every utterance once (clear() the tracker between sets)"
            )
        seen.add(details["key"])
    return [
        _from_details(details, clip=False, durations=durations)
        for details in tracker.scores
        if details["scored"]
    ]


def pair_scores(
    first: Sequence[UtteranceScore], second: Sequence[UtteranceScore]
) -> list[tuple]:
    """Match the scores of two systems, utterance by utterance.

    Arguments
    ---------
    first : sequence of UtteranceScore
        Scores of one system.
    second : sequence of UtteranceScore
        Scores of the other, of the same utterances in any order.

    Returns
    -------
    list of tuple
        Pairs of scores, in the order of the first.

    Raises
    ------
    ValueError
        Where an utterance is missing on one side, or is there twice.

    Example
    -------
    >>> said = {"u1": "a", "u2": "b"}
    >>> scores = score_utterances(said, said)
    >>> [(a.id, b.id) for a, b in pair_scores(scores, scores[::-1])]
    [('u1', 'u1'), ('u2', 'u2')]
    """
    mine = {score.id: score for score in first}
    theirs = {score.id: score for score in second}
    if len(mine) != len(first) or len(theirs) != len(second):
        raise ValueError("an utterance is scored twice: score each once")
    if not mine:
        raise ValueError("there are no scores to compare")
    if mine.keys() != theirs.keys():
        odd = sorted(map(str, mine.keys() ^ theirs.keys()))
        raise ValueError(
            f"{len(odd)} utterances are scored for one system only (such as "
            f"{', '.join(odd[:3])}): a paired test needs the same for both"
        )
    return [(score, theirs[name]) for name, score in mine.items()]


def _from_details(details, clip, durations):
    """Make a score of an entry of SpeechBrain's per-utterance details."""
    excess = max(0, details["num_edits"] - details["num_ref_tokens"])
    return UtteranceScore(
        id=details["key"],
        counts=ErrorCounts(
            insertions=details["insertions"] - (excess if clip else 0),
            deletions=details["deletions"],
            substitutions=details["substitutions"],
            words=details["num_ref_tokens"],
            utterances=1,
            wrong_sentences=int(details["num_edits"] > 0),
        ),
        reference=tuple(details["ref_tokens"]),
        hypothesis=tuple(details["hyp_tokens"]),
        operations="".join(step for step, _, _ in details["alignment"]),
        duration=None if durations is None else durations.get(details["key"]),
        # SpeechBrain's own details are of one
        references=details.get("references", 1),
    )


def _best_version(attempts):
    """The score against the best reference, averaged over equally good ones."""
    if len(attempts) == 1:
        return attempts[0]
    attempts = [
        dataclasses.replace(score, references=len(attempts))
        for score in attempts
    ]

    def rate(score):
        if score.words:
            return score.errors / score.words
        # an empty transcript is right only where nothing was recognised
        return 0 if EDIT_SYMBOLS["ins"] not in score.operations else math.inf

    best = min(rate(score) for score in attempts)
    winners = [score for score in attempts if rate(score) == best]
    if len(winners) == 1:
        return winners[0]
    summed = total(winners)
    return dataclasses.replace(
        winners[0],
        counts=ErrorCounts(
            insertions=summed.insertions / len(winners),
            deletions=summed.deletions / len(winners),
            substitutions=summed.substitutions / len(winners),
            words=summed.words / len(winners),
            utterances=1,
            wrong_sentences=max(
                score.counts.wrong_sentences for score in winners
            ),
        ),
    )
