"""A tally: the counted errors and words of one trial, as exact numbers.

A search decides by comparing two error rates on the same selection set. Held as
floats, a tie could look like a win by rounding, and the outcome could depend on
the order in which utterances, domains or processes were summed. So counts are
whole numbers (or fractions, where a metric halves them), rates are
``fractions.Fraction``, and only what is shown to people is a float.

Example
-------
>>> tally = Tally(errors=21, words=350, utterances=40, seconds=180.5)
>>> tally.value
6.0
>>> tally.cost
Fraction(3, 50)

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Optional, Union

from speechbrain_merge.records.checked import (
    fields,
    listed,
    mapped,
    number,
    one_of,
    optional,
    truth,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.reading import parse_number

Count = Union[int, Fraction]

AVERAGES = ("micro", "macro")

_LARGEST_COUNT = 10**15
_LARGEST_DENOMINATOR = 1 << 64
"""So that sums over many domains stay exact numbers of moderate length."""


def require_words(words: Mapping, average: str = "micro"):
    """Refuses a selection set whose error rate is undefined.

    A complete ``Tally`` is checked by this. Whoever knows the transcripts before
    the first candidate is decoded calls it then, so that an hour of decoding
    does not end in this error.

    Arguments
    ---------
    words : dict
        Reference words of each domain; ``{None: words}`` without domains.
    average : str
        With ``"macro"`` every domain needs words, with ``"micro"`` any.

    Raises
    ------
    ValueError
        Where there are none; names all domains that lack them.

    Example
    -------
    >>> require_words({"read": 100, "noise": 0}, "micro")
    >>> require_words({"read": 100, "noise": 0}, "macro")
    Traceback (most recent call last):
    ...
    ValueError: domain 'noise' has no reference words, so that its error rate is undefined: leave it out of the selection set, or average by 'micro'
    """
    empty = [repr(name) for name, number in words.items() if not number]
    if average == "macro" and empty and None not in words:
        several = len(empty) > 1
        raise ValueError(
            f"domain{'s' if several else ''} {', '.join(empty)} "
            f"{'have' if several else 'has'} no reference words, so that "
            f"{'their error rates are' if several else 'its error rate is'} "
            f"undefined: leave {'them' if several else 'it'} out of the "
            "selection set, or average by 'micro'"
        )
    if not any(words.values()):
        raise ValueError(
            "the selection set has no reference words, so that its error "
            "rate is undefined: check the transcripts of its utterances"
        )


@dataclasses.dataclass(frozen=True)
class Tally:
    """Exact errors of one trial, on a whole selection set or a part of it.

    Arguments
    ---------
    errors : int or fractions.Fraction
        Insertions, deletions and substitutions so far.
    words : int or fractions.Fraction
        Reference words of what was decoded so far.
    complete : bool
        Whether the whole selection set was decoded.
    domains : dict, optional
        Errors and words of each domain, ``{name: (errors, words)}``; they must
        add up to ``errors`` and ``words``. A partial tally may lack domains of
        which nothing was decoded.
    average : str
        What is compared: ``"micro"``, all errors over all words, or
        ``"macro"``, the unweighted mean of the domains' error rates.
    utterances : int
        Utterances decoded.
    seconds : float
        Seconds of audio decoded. For the bookkeeping alone.
    loss : float, optional
        The recipe's mean loss of an utterance. No search decides by it, and
        tallies that differ in it alone are equal.
    against : fractions.Fraction, optional
        The error rate that the trial will hardly get below, where it was
        stopped for that (``speechbrain_merge.search.curtailment``).
    chance : float, optional
        How likely it would have.

    Raises
    ------
    TypeError
        If a count is a float: sums of rounded numbers depend on their order.
    ValueError
        If counts are negative or do not add up, or if the error rate of a
        complete tally is undefined.

    Example
    -------
    >>> tally = Tally.of_domains({"read": (5, 100), "spoken": (30, 200)})
    >>> tally.errors, tally.words, tally.average, tally.value
    (35, 300, 'macro', 10.0)
    >>> tally.cost
    Fraction(1, 10)
    """

    errors: Count
    words: Count
    complete: bool = True
    domains: Optional[Mapping[str, tuple]] = None
    average: str = "micro"
    utterances: int = 0
    seconds: float = 0.0
    loss: Optional[float] = dataclasses.field(default=None, compare=False)
    against: Optional[Fraction] = None
    chance: Optional[float] = None

    def __post_init__(self):
        if self.average not in AVERAGES:
            raise ValueError(
                f"average={self.average!r}: expected one of {AVERAGES}"
            )
        put = object.__setattr__
        put(self, "errors", _exact(self.errors, "errors"))
        put(self, "words", _exact(self.words, "words"))
        put(self, "utterances", operator.index(self.utterances))
        put(self, "seconds", float(self.seconds))
        if self.domains is None:
            if self.average == "macro":
                raise ValueError(
                    "average='macro' needs domains={name: (errors, words)}"
                )
        else:
            put(self, "domains", self._exact_domains(self.domains))
        if self.complete:
            self._check_defined()

    def _exact_domains(self, given: Mapping[str, tuple]) -> dict:
        # Sorted, so that equal tallies look equal whatever was decoded first.
        domains = {
            name: (
                _exact(given[name][0], f"errors of domain {name!r}"),
                _exact(given[name][1], f"words of domain {name!r}"),
            )
            for name in sorted(given)
        }
        sums = tuple(sum(pair[i] for pair in domains.values()) for i in (0, 1))
        if sums != (self.errors, self.words):
            raise ValueError(
                f"the domains add up to {sums[0]} errors and {sums[1]} words, "
                f"but the tally says {self.errors} and {self.words}"
            )
        return domains

    def _check_defined(self):
        words = {None: self.words}
        if self.domains is not None:
            words = {name: words for name, (_, words) in self.domains.items()}
        require_words(words, self.average)

    @classmethod
    def of_domains(
        cls, domains: Mapping[str, tuple], average: str = "macro", **others
    ) -> "Tally":
        """The tally of several domains.

        Arguments
        ---------
        domains : dict
            ``{name: (errors, words)}``.
        average : str
            ``"macro"`` or ``"micro"``.
        **others : dict
            ``complete``, ``utterances``, ``seconds``, ``loss``.

        Returns
        -------
        Tally
        """
        return cls(
            errors=sum(errors for errors, _ in domains.values()),
            words=sum(words for _, words in domains.values()),
            domains=domains,
            average=average,
            **others,
        )

    def __add__(self, other: "Tally") -> "Tally":
        """The tally of both parts of a set together, still incomplete; whoever
        knows that nothing is missing says so with ``.completed()``. It has no
        loss: what parts are weighed by, their utterances, may be unknown."""
        if (self.average, self.domains is None) != (
            other.average,
            other.domains is None,
        ):
            raise ValueError(
                "tallies can be added when both have domains or neither has, "
                "and both have the same average"
            )
        domains = None
        if self.domains is not None and other.domains is not None:
            domains = dict(self.domains)
            for name, (errors, words) in other.domains.items():
                before = domains.get(name, (0, 0))
                domains[name] = (before[0] + errors, before[1] + words)
        return Tally(
            errors=self.errors + other.errors,
            words=self.words + other.words,
            complete=False,
            domains=domains,
            average=self.average,
            utterances=self.utterances + other.utterances,
            seconds=self.seconds + other.seconds,
        )

    def completed(self) -> "Tally":
        """The same counts, said to cover the whole selection set."""
        return dataclasses.replace(self, complete=True)

    @property
    def cost(self) -> Fraction:
        """The exact error rate (1 is 100 %) of what was decoded. Of an
        incomplete tally it says nothing about the whole set; the floor that
        does is ``Race.floor``."""
        if self.average == "micro" or self.domains is None:
            return _rate(self.errors, self.words)
        rates = [_rate(e, w) for e, w in self.domains.values() if w]
        return sum(rates, Fraction(0)) / max(len(rates), 1)

    @property
    def value(self) -> float:
        """The error rate of what was decoded, in percent."""
        return float(100 * self.cost)

    def to_dict(self) -> dict:
        """Plain data for JSON; fractions as strings, so that they stay exact.
        A loss that is not finite is None, as JSON has no infinity.

        Example
        -------
        >>> Tally(Fraction(7, 2), 100, utterances=9).to_dict()["errors"]
        '7/2'
        """
        domains = None
        if self.domains is not None:
            domains = {
                name: [_plain(errors), _plain(words)]
                for name, (errors, words) in self.domains.items()
            }
        return {
            "errors": _plain(self.errors),
            "words": _plain(self.words),
            "complete": self.complete,
            "domains": domains,
            "average": self.average,
            "utterances": self.utterances,
            "seconds": self.seconds,
            "loss": _finite(self.loss),
            **(
                {"against": str(self.against), "chance": self.chance}
                if self.against is not None
                else {}
            ),
        }

    @classmethod
    def from_dict(cls, data: Mapping, where: str = "a tally") -> "Tally":
        """The tally that ``to_dict`` wrote.

        Arguments
        ---------
        data : dict
            What ``to_dict`` gave.
        where : str
            The file and the line that it was read from, for errors.

        Returns
        -------
        Tally

        Raises
        ------
        ValueError
            Where it is not what ``to_dict`` writes.

        Example
        -------
        >>> tally = Tally.of_domains({"a": (Fraction(1, 2), 9), "b": (2, 7)})
        >>> Tally.from_dict(tally.to_dict()) == tally
        True
        """
        try:
            return cls(**_stored(data, where))
        except RecordError:
            raise
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from None


def _exact(value, what: str) -> Count:
    if isinstance(value, Fraction):
        value = value.numerator if value.denominator == 1 else value
    else:
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(
                f"{what}: {value!r} is a {type(value).__name__}; expected a "
                "whole number or a fractions.Fraction, so that comparisons "
                "are exact"
            ) from None
    if value < 0:
        raise ValueError(f"{what}: {value} is negative")
    return value


def _finite(loss: Optional[float]) -> Optional[float]:
    return loss if loss is not None and math.isfinite(loss) else None


def _rate(errors: Count, words: Count) -> Fraction:
    # Nothing decoded yet: no errors in no words, for a progress display.
    return Fraction(errors) / words if words else Fraction(errors)


def _plain(count: Count) -> Union[int, str]:
    return str(count) if isinstance(count, Fraction) else count


def _count(value, where):
    """A count as ``to_dict`` writes it: a whole number, or "7/2"."""
    if not isinstance(value, str):
        return whole(0, _LARGEST_COUNT)(value, where)
    return parse_number(value, where, 0, _LARGEST_COUNT, exact=True)


def _rate_of(value, where):
    """An error rate as ``to_dict`` writes it: "3/50"."""
    found = parse_number(value, where, 0, _LARGEST_COUNT, exact=True)
    return Fraction(found)


def _pair(value, where):
    """Errors and words of a domain."""
    found = listed(_count, limit=2)(value, where)
    if len(found) != 2:
        raise RecordError(f"{where}: expected errors and words")
    return tuple(found)


def _domains(value, where):
    """Errors and words of each domain, whose sums are counts themselves."""
    found = mapped(_pair, limit=1000)(value, where)
    common = [1, 1]
    for name, pair in found.items():
        for i, count in enumerate(pair):
            common[i] = math.lcm(common[i], Fraction(count).denominator)
        if max(common) > _LARGEST_DENOMINATOR:
            raise RecordError(
                f"{where}, key {shown(name)}: the sum has a denominator of "
                f"more than {_LARGEST_DENOMINATOR}"
            )
    return found


_stored = fields(
    {
        "errors": _count,
        "words": _count,
        "complete": truth,
        "domains": optional(_domains),
        "average": one_of(*AVERAGES),
        "utterances": whole(0),
        "seconds": number(0),
    },
    # older journals have none
    {
        "loss": optional(number()),
        "against": _rate_of,
        "chance": number(0, 1),
    },
    unknown="drop",
)
