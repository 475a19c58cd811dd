"""Errors and words, as counts that add up.

A word error rate is a quotient, and quotients do not add: the rate of two test
sets together is not the mean of their rates. So errors and words are kept, and
a rate is formed last, when somebody looks.

Example
-------
>>> first = ErrorCounts(substitutions=2, words=10, utterances=1)
>>> second = ErrorCounts(insertions=1, words=20, utterances=2)
>>> first.rate, second.rate, (first + second).rate
(20.0, 5.0, 10.0)

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Mapping
from typing import Optional


@dataclasses.dataclass(frozen=True)
class ErrorCounts:
    """Errors and words of one utterance, one set, or anything in between.

    Arguments
    ---------
    insertions : int
        Words of the hypotheses that the references lack. As all counts, this
        may be a half where two equally good references were averaged.
    deletions : int
        Words of the references that the hypotheses lack.
    substitutions : int
        Words of the references recognised as another word.
    words : int
        Words of the references (characters, for a character error rate).
    utterances : int
        Utterances counted.
    wrong_sentences : int
        Utterances with at least one error.

    Example
    -------
    >>> first = ErrorCounts(substitutions=2, words=10, utterances=1)
    >>> second = ErrorCounts(insertions=1, words=20, utterances=2)
    >>> (first + second).rate
    10.0
    >>> sum([first, second]).words
    30
    >>> print(ErrorCounts(insertions=3).rate)
    None
    """

    insertions: float = 0
    deletions: float = 0
    substitutions: float = 0
    words: float = 0
    utterances: int = 0
    wrong_sentences: int = 0

    @property
    def errors(self):
        """Insertions, deletions and substitutions together."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> Optional[float]:
        """Errors per 100 words; None where there are no words.

        Without reference words a rate does not exist, and 0 would praise a
        system that hallucinates over silence. Its insertions still count as
        soon as these counts are added to others.
        """
        return 100 * self.errors / self.words if self.words else None

    @property
    def sentence_rate(self) -> Optional[float]:
        """Wrong sentences per 100 utterances; None without utterances."""
        if not self.utterances:
            return None
        return 100 * self.wrong_sentences / self.utterances

    def __add__(self, other):
        if not isinstance(other, ErrorCounts):
            return NotImplemented
        return ErrorCounts(
            *(
                mine + theirs
                for mine, theirs in zip(
                    dataclasses.astuple(self), dataclasses.astuple(other)
                )
            )
        )

    def __radd__(self, other):
        # lets sum() work: it starts from 0
        return self if other == 0 else NotImplemented

    def to_dict(self) -> dict:
        """Counts with ``errors``, as results.json holds them.

        Example
        -------
        >>> ErrorCounts(deletions=1, words=4, utterances=1).to_dict()["errors"]
        1
        """
        return {"errors": self.errors, **dataclasses.asdict(self)}


def counts_of(measured) -> Optional[tuple]:
    """Errors and words of what was measured on one set, if it holds them.

    Arguments
    ---------
    measured : ErrorCounts, (errors, words), dict or float
        Counts, a pair of them, a dict with "errors" and "words" as in
        results.json, or a bare rate in %.

    Returns
    -------
    tuple
        Errors and words, or None for a bare rate.

    Example
    -------
    >>> counts_of(ErrorCounts(deletions=1, words=4)), counts_of((1, 4))
    ((1, 4), (1, 4))
    >>> counts_of({"errors": 1, "words": 4}), counts_of(25.0)
    ((1, 4), None)
    """
    if isinstance(measured, ErrorCounts):
        return measured.errors, measured.words
    if isinstance(measured, Mapping):
        if not {"errors", "words"} <= measured.keys():
            raise ValueError(
                'counts of a set need "errors" and "words"; these have '
                f"{sorted(measured)}"
            )
        return measured["errors"], measured["words"]
    if isinstance(measured, (tuple, list)):
        if len(measured) != 2:
            raise ValueError(
                f"counts of a set are (errors, words), not {measured}"
            )
        return tuple(measured)
    return None


def rate_of(measured) -> Optional[float]:
    """The rate in % of what was measured on one set.

    Arguments
    ---------
    measured : ErrorCounts, (errors, words), dict or float
        See ``counts_of``.

    Returns
    -------
    float
        None where there are no reference words.

    Example
    -------
    >>> rate_of((1, 4)), rate_of(25.0), rate_of((3, 0))
    (25.0, 25.0, None)
    """
    counts = counts_of(measured)
    if counts is None:
        return None if measured is None else float(measured)
    errors, words = counts
    return 100 * errors / words if words else None
