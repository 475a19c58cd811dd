"""Exact early rejection: stop scoring a trial once it can only lose.

A search over merges scores hundreds of trials on the same selection set and
keeps few. Errors only add up: no utterance has fewer than zero of them. So
while a trial is being decoded, its errors so far plus zero for all the rest is
a floor under its final error count. Once that floor reaches what the incumbent
(the best so far) needed in total, the rest of the set cannot change the
verdict, and decoding it is wasted.

Why the outcome is identical to that of full scoring. Let ``I`` be the
incumbent's errors on the whole set, ``P`` those of a trial on the part decoded
so far and ``F`` those of the trial on the whole set, so that ``P <= F``. With
``accept="lt"`` a trial wins iff ``F < I``; it is stopped iff ``P >= I``, and
then ``F >= P >= I``: full scoring rejects it too. With ``accept="le"`` it wins
iff ``F <= I`` and is stopped iff ``P > I``, and then ``F >= P > I``. A trial
that is never stopped is scored in full. A winner is therefore always complete,
the next incumbent is the same as without racing, and by induction so is every
decision, whatever the order of the utterances. A macro average is a sum of
errors with positive weights (one over the domain's reference words and over
the number of domains), and the same argument holds with the weighted sums;
they are held as fractions, so that no rounding can turn a tie into a win.

Two things are asked of the scores. The number of reference words must not
depend on the hypotheses, so that the incumbent's total is also the trial's.
And counts must be exact: whole numbers or ``fractions.Fraction``, never floats.

Example
-------
>>> incumbent = Tally(errors=12, words=200, utterances=40)
>>> race = Race(incumbent)
>>> race.lost(Tally(errors=11, words=60, complete=False, utterances=9))
False
>>> race.lost(Tally(errors=12, words=80, complete=False, utterances=12))
True
>>> incumbent.value
6.0

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Optional, Union

from speechbrain_merge.search.tally import Count, Tally

ACCEPT_RULES = ("lt", "le")


class Race:
    """Tells when a trial can no longer beat the incumbent.

    A scorer makes one for each trial with the ``accept`` rule of the search
    that asks, and stops decoding when ``lost`` says so. The search asks the
    same question of the tally that it gets back: a trial that has not lost is
    complete and accepted.

    Arguments
    ---------
    incumbent : Tally, optional
        The best so far, complete. None: nothing to lose against, so that every
        trial is scored in full.
    accept : str
        ``"lt"``: a trial wins if it is strictly better. ``"le"``: a tie wins.
    error : float, optional
        A trial is also lost when it was stopped because it wins with at most
        this probability (``speechbrain_merge.search.curtailment``). None: only
        what is sure counts.

    Example
    -------
    >>> Race(Tally(7, 50), accept="lt").lost(Tally(7, 20, complete=False))
    True
    >>> Race(Tally(7, 50), accept="le").lost(Tally(7, 20, complete=False))
    False
    >>> Race(None).lost(Tally(1000, 20, complete=False))
    False
    """

    def __init__(
        self,
        incumbent: Optional[Tally],
        accept: str = "lt",
        error: Optional[float] = None,
    ):
        check_accept(accept)
        if incumbent is not None and not incumbent.complete:
            raise ValueError(
                "the incumbent is an incomplete tally: what a trial has to "
                "beat is unknown; score the incumbent in full"
            )
        self.incumbent = incumbent
        self.accept = accept
        self.error = error

    def lost(self, partial: Union[Tally, Count]) -> bool:
        """Whether a trial loses whatever its remaining utterances bring.

        Arguments
        ---------
        partial : Tally or int or fractions.Fraction
            What the trial has so far, or its errors alone (micro average).

        Returns
        -------
        bool

        Raises
        ------
        ValueError
            If the two were not counted on the same set in the same way.
        """
        if self.incumbent is None:
            return False
        floor, target = self.floor(partial), self.incumbent.cost
        if self._given_up(partial, target):
            return True
        return floor >= target if self.accept == "lt" else floor > target

    def _given_up(self, partial, target):
        """Whether the trial was stopped as one that hardly gets below this."""
        against = getattr(partial, "against", None)
        return (
            self.error is not None
            and against is not None
            and partial.chance <= self.error
            and target <= against
        )

    def floor(self, partial: Union[Tally, Count]) -> Fraction:
        """The error rate that a trial is sure to reach on the whole set.

        Arguments
        ---------
        partial : Tally or int or fractions.Fraction
            What the trial has so far.

        Returns
        -------
        fractions.Fraction
            The exact error rate itself if ``partial`` is complete.
        """
        whole = self.incumbent
        if not isinstance(partial, Tally):
            partial = self._from_errors(partial)
        if whole is None:
            if partial.complete:
                return partial.cost
            raise ValueError(
                "without an incumbent the size of the set is unknown: an "
                "incomplete tally gives no floor"
            )
        _check_same_set(partial, whole)
        if partial.complete:
            return partial.cost
        if whole.domains is None or whole.average == "micro":
            return Fraction(partial.errors) / whole.words
        rates = [
            Fraction(errors) / whole.domains[name][1]
            for name, (errors, _) in (partial.domains or {}).items()
        ]
        return sum(rates, Fraction(0)) / len(whole.domains)

    def _from_errors(self, errors: Count) -> Tally:
        if self.incumbent is not None and self.incumbent.average == "macro":
            raise TypeError(
                "the incumbent is a macro average: give a Tally with domains, "
                "errors alone do not say which domain they count in"
            )
        return Tally(errors, words=0, complete=False)


@dataclasses.dataclass
class Savings:
    """The amount of decoding that early rejections saved.

    Arguments
    ---------
    trials, stopped : int
        Trials scored, and how many of them were stopped early.
    given_up : int
        How many of these were stopped because they would hardly win; all
        others were sure to lose.
    rejected : int
        Trials that lost, stopped or not.
    utterances, seconds : int, float
        Decoded.
    all_utterances, all_seconds : int, float
        What scoring every trial in full would have decoded.
    rejected_utterances, rejected_seconds : int, float
        What scoring those that lost in full would have decoded. Only of them
        anything can be saved.
    error : float, optional
        The probability that a trial was allowed to win with, and be stopped.

    Example
    -------
    >>> savings = Savings()
    >>> whole = Tally(20, 100, utterances=50, seconds=300.0)
    >>> part = Tally(20, 30, complete=False, utterances=10, seconds=90.0)
    >>> savings.add(whole, whole); savings.add(part, whole)
    >>> print(savings)
    racing skipped 40 of 100 utterances and 210 of 600 s (35.0 %): 1 of 2 \
trials stopped early
    >>> savings.fraction_of_rejected
    0.7
    """

    trials: int = 0
    stopped: int = 0
    utterances: int = 0
    seconds: float = 0.0
    all_utterances: int = 0
    all_seconds: float = 0.0
    given_up: int = 0
    rejected: int = 0
    rejected_utterances: int = 0
    rejected_seconds: float = 0.0
    error: Optional[float] = None

    def add(self, tally: Tally, whole: Tally, accepted: bool = True):
        """Count one trial.

        Arguments
        ---------
        tally : Tally
            Of the trial. An incomplete one lost.
        whole : Tally
            A complete one on the same set, which says how large the set is.
        accepted : bool
            Whether a complete one won.
        """
        self.trials += 1
        self.stopped += not tally.complete
        self.given_up += tally.against is not None
        if not (accepted and tally.complete):
            self.rejected += 1
            self.rejected_utterances += whole.utterances
            self.rejected_seconds += whole.seconds
        self.utterances += tally.utterances
        self.seconds += tally.seconds
        self.all_utterances += whole.utterances
        self.all_seconds += whole.seconds

    @property
    def skipped_utterances(self) -> int:
        """Utterances that need not be decoded."""
        return self.all_utterances - self.utterances

    @property
    def skipped_seconds(self) -> float:
        """Seconds of audio that need not be decoded."""
        return self.all_seconds - self.seconds

    @property
    def fraction(self) -> float:
        """Part of the decoding that was saved: of the seconds of audio, or of
        the utterances where no seconds were counted."""
        if self.all_seconds:
            return self.skipped_seconds / self.all_seconds
        return self.skipped_utterances / max(self.all_utterances, 1)

    @property
    def fraction_of_rejected(self) -> float:
        """The same, of the decoding of trials that lost."""
        if self.rejected_seconds:
            return self.skipped_seconds / self.rejected_seconds
        return self.skipped_utterances / max(self.rejected_utterances, 1)

    def to_dict(self) -> dict:
        """Plain data, with what was skipped."""
        return dict(
            dataclasses.asdict(self),
            skipped_utterances=self.skipped_utterances,
            skipped_seconds=self.skipped_seconds,
            fraction=self.fraction,
            fraction_of_rejected=self.fraction_of_rejected,
        )

    def __str__(self):
        return (
            f"racing skipped {self.skipped_utterances} of "
            f"{self.all_utterances} utterances and {self.skipped_seconds:.0f} "
            f"of {self.all_seconds:.0f} s ({100 * self.fraction:.1f} %): "
            f"{self.stopped} of {self.trials} trials stopped early"
            + (
                f", {self.given_up} of them as hardly winning (each with a "
                f"probability of at most {self.error:g})"
                if self.error is not None
                else ""
            )
        )


def decisive_first(
    batch_errors: Sequence[Count], efforts: Optional[Sequence] = None
) -> list[int]:
    """Order batches so that a losing trial is found out early.

    What was hard for the last complete trial tends to be hard for the next:
    batches with the most errors per unit of effort come first, and the floor
    rises as fast as it can. The order changes the cost of a search, never its
    outcome (see the module docstring).

    Arguments
    ---------
    batch_errors : list of int or fractions.Fraction
        Errors of each batch in the last complete scoring. For a macro average,
        each divided by its domain's reference words.
    efforts : list of float or int, optional
        What each batch costs to decode: its seconds or utterances. Equal if
        not given.

    Returns
    -------
    list of int
        Batch indices; ties stay in their order.

    Example
    -------
    >>> decisive_first([2, 9, 0, 4], efforts=[1.0, 9.0, 5.0, 1.0])
    [3, 0, 1, 2]
    """
    if efforts is None:
        efforts = [1] * len(batch_errors)
    if len(efforts) != len(batch_errors):
        raise ValueError(
            f"{len(batch_errors)} batches but {len(efforts)} efforts"
        )
    if any(effort <= 0 for effort in efforts):
        raise ValueError("efforts must be positive (seconds or utterances)")
    density = [e / effort for e, effort in zip(batch_errors, efforts)]
    return sorted(range(len(density)), key=lambda index: -density[index])


def check_accept(accept: str):
    """Raise ValueError unless ``accept`` is ``"lt"`` or ``"le"``."""
    if accept not in ACCEPT_RULES:
        raise ValueError(
            f"accept={accept!r}: expected 'lt' (a trial must be strictly "
            "better, as in SMAcT) or 'le' (a tie is accepted, as in greedy soup)"
        )


def _check_same_set(partial: Tally, whole: Tally):
    if partial.average != whole.average:
        raise ValueError(
            f"a {partial.average} average cannot be compared with a "
            f"{whole.average} average"
        )
    # A tally of bare errors (see Race.lost) has no domains to compare.
    foreign = set(partial.domains or ()) - set(whole.domains or ())
    missing = set(whole.domains or ()) - set(partial.domains or ())
    if (foreign and whole.domains) or (missing and partial.complete):
        raise ValueError(
            "the incumbent was scored on the domains "
            f"{sorted(whole.domains or ())}, the trial on "
            f"{sorted(partial.domains or ())}"
        )
    if partial.complete and partial.utterances != whole.utterances:
        raise ValueError(
            f"the incumbent was scored on {whole.utterances} utterances, the "
            f"trial on {partial.utterances}: use the same selection set"
        )
    if not partial.complete and partial.words > whole.words:
        raise ValueError(
            f"a part of the set has {partial.words} reference words, more than "
            f"the incumbent's whole set ({whole.words}): the number of words "
            "depends on the hypotheses, so that racing would not be exact; "
            "score with racing off"
        )
