"""Which utterances are decoded together, and which of them first.

A trial that loses is stopped as soon as it is sure to lose
(``speechbrain_merge.search.racing``), so the errors that decide it should come
early. Which utterances have them, earlier trials tell: those of a search are
merges of much the same models, and stumble over the same words. Two things
follow from what they are expected to cost.

- Batches are decoded in the order of their expected errors per second.
- Utterances are exchanged between batches, so that those with errors are in few
  batches, and those without are left for the end. In batches as they come,
  nearly each has a difficult utterance, and no order helps much.

What a model hears of an utterance may depend on how far its batch is padded. So
only those are exchanged that a model pads by themselves as far as their batches;
all others stay where they are, and no batch becomes shorter. Neither the order
nor such an exchange changes an outcome: each trial has the errors that it has.

Example
-------
>>> order = DecodingOrder([[0, 1], [2, 3], [4]], [4.0, 4.0, 4.0, 4.0, 6.0])
>>> order.learn({0: 0, 1: 2, 2: 0, 3: 3, 4: 1})
>>> order.batches()
[[3, 1], [4], [0, 2]]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Optional

CAUTION = 1
"""Trials without an error that a cautious expectation adds to those seen."""


class DecodingOrder:
    """Batches of utterances, decisive ones first.

    Arguments
    ---------
    batches : list of list of int
        The utterances of each batch, as they come.
    paddings : list, optional
        One for each utterance: those of equal ones may change places. None, for
        one or for all, leaves it in its batch.
    efforts : list of float, optional
        What decoding each utterance takes, in seconds, say. Equal if not
        given.

    Attributes
    ----------
    costs : list of float or None
        What an error in each utterance costs: 1 over its domain's reference
        words in a macro average, say. Equal if None.

    Raises
    ------
    ValueError
        Where there is not one padding an utterance.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[int]],
        paddings: Optional[Sequence[Optional[Hashable]]] = None,
        efforts: Optional[Sequence[float]] = None,
    ):
        self._batches = [list(batch) for batch in batches]
        utterances = [one for batch in self._batches for one in batch]
        if paddings is None:
            paddings = [None] * len(utterances)
        if len(paddings) != len(utterances):
            raise ValueError(
                f"{len(utterances)} utterances but {len(paddings)} paddings"
            )
        self.efforts = efforts
        self.costs: Optional[Sequence[float]] = None
        self._errors: dict[int, float] = {}
        self._trials: dict[int, int] = {}
        self._alike: dict[Hashable, list[tuple[int, int]]] = {}
        for number, batch in enumerate(self._batches):
            for place, utterance in enumerate(batch):
                padding = paddings[utterance]
                if padding is not None:
                    alike = self._alike.setdefault(padding, [])
                    alike.append((number, place))

    def learn(self, errors: Mapping[int, float]):
        """Takes in the errors of a trial, or of the part that was decoded.

        Arguments
        ---------
        errors : dict
            Utterance to its errors.
        """
        for utterance, number in errors.items():
            before = self._errors.get(utterance, 0.0)
            self._errors[utterance] = before + float(number)
            self._trials[utterance] = self._trials.get(utterance, 0) + 1

    def expected(self, utterance: int, cautious: bool = False) -> float:
        """Errors expected of an utterance, from the trials before.

        Arguments
        ---------
        utterance : int
            Which one.
        cautious : bool
            Whether to expect less than there were, and the less the fewer
            trials have been seen.

        Returns
        -------
        float
            Zero where nothing is known.
        """
        trials = self._trials.get(utterance, 0)
        if not trials:
            return 0.0
        return self._errors[utterance] / (trials + CAUTION * cautious)

    def batches(self) -> list:
        """The batches in the order in which they are to be decoded.

        Returns
        -------
        list of list of int
            All utterances. As they came, while nothing is known.
        """
        if not self._trials:
            return [list(batch) for batch in self._batches]
        batches = [list(batch) for batch in self._batches]
        for places in self._alike.values():
            waiting = [batches[number][place] for number, place in places]
            waiting.sort(key=self._rank)
            free: dict = {}
            for number, place in places:
                free.setdefault(number, []).append(place)
            # the smallest part comes last, where it is decoded least often
            for number in sorted(free, key=lambda at: -len(free[at])):
                for place in free[number]:
                    batches[number][place] = waiting.pop(0)
        return sorted(batches, key=self._density, reverse=True)

    def _effort(self, utterance):
        return 1.0 if self.efforts is None else self.efforts[utterance]

    def _cost(self, utterance):
        one = 1.0 if self.costs is None else self.costs[utterance]
        return one * self.expected(utterance)

    def _rank(self, utterance):
        """Most errors a second first; among equals, alike ones together."""
        effort = self._effort(utterance)
        return -self._cost(utterance) / effort, effort

    def _density(self, batch):
        return sum(map(self._cost, batch)) / sum(map(self._effort, batch))
