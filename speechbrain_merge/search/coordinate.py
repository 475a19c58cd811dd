"""Coordinate search: several coefficients, one at a time.

A compass search (Kolda, Lewis and Torczon, 2003): from the initial point, each
coefficient in turn is moved one step up or down, and moved on in that direction
while the error rate falls. After a round without any gain the step is halved.
For the per-domain scales of a merge, where each coefficient mostly acts on its
own domain, a few rounds suffice.

Example
-------
>>> from speechbrain_merge.search import CoordinateSearch, Tally
>>> def score(parameters, incumbent):
...     a, b = parameters["a"], parameters["b"]
...     return Tally(round(100 * (abs(a - 0.75) + abs(b - 0.5))), words=1000)
>>> search = CoordinateSearch({"a": (0, 1, 0.0), "b": (0, 1, 0.0)}, step=0.25)
>>> search.run(score, progress=False).parameters
{'a': 0.75, 'b': 0.5}

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Mapping
from typing import Optional, Union

from speechbrain_merge.search.coefficients import (
    CoefficientResult,
    CoefficientTrials,
    check_box,
)
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.trials import check_count


class CoordinateSearch:
    """Moves one coefficient at a time while the error rate falls.

    Every trial is compared with the best so far and with nothing else, so every
    trial races. The result is never worse than the initial point.

    Arguments
    ---------
    parameters : dict
        ``{name: (low, high, initial)}``; without an initial value, the middle.
    step : float
        First step, as a part of each coefficient's range, in (0, 1].
    rounds : int
        Passes over all coefficients.
    evaluations : int, optional
        Stop after this many trials.
    objective_key : str, optional
        Name of the error rate (%) in the report to SpeechBrain's hyperparameter
        optimisation; None reports nothing.
    """

    searches = "coefficients"
    accept = "lt"

    def __init__(
        self,
        parameters: Mapping,
        step: float = 0.25,
        rounds: int = 3,
        evaluations: Optional[int] = None,
        objective_key: Optional[str] = "error",
    ):
        self.box = check_box(parameters)
        if not 0 < step <= 1:
            raise ValueError(
                f"step={step}: expected a part of the range, in (0, 1]"
            )
        if rounds is None:
            raise ValueError("rounds=None: expected a whole number from 1")
        check_count(rounds, "rounds")
        check_count(evaluations, "evaluations")
        self.step = step
        self.rounds = rounds
        self.evaluations = evaluations
        self.objective_key = objective_key

    def run(
        self,
        score: Callable,
        journal: Optional[Journal] = None,
        progress: bool = True,
        racing: Union[bool, float] = True,
    ) -> CoefficientResult:
        """Search.

        Arguments
        ---------
        score : callable
            ``score(parameters, incumbent) -> Tally``, see ``GridSearch.run``.
        journal : Journal, optional
            Makes the search resumable.
        progress : bool
            Whether to show a bar.
        racing : bool or float
            If False, every trial is scored in full; same outcome.

        Returns
        -------
        CoefficientResult
        """
        with CoefficientTrials(
            "coordinate search",
            score,
            self.evaluations,
            journal,
            progress,
            racing,
        ) as trials:
            initial = {name: box[2] for name, box in self.box.items()}
            trials.try_out(initial)
            visited = {tuple(initial.values())}
            step = self.step
            for _ in range(self.rounds):
                before = trials.best
                for name in self.box:
                    # Up first; down only if up brought nothing.
                    self._walk(trials, visited, name, step) or self._walk(
                        trials, visited, name, -step
                    )
                if trials.best is before:
                    step /= 2
            return trials.result(self.objective_key)

    def _walk(self, trials, visited: set, name: str, step: float) -> bool:
        """Move on in one direction while that helps; whether it ever did."""
        low, high, _ = self.box[name]
        moved = False
        while self.evaluations is None or len(trials) < self.evaluations:
            here = trials.parameters
            value = min(high, max(low, here[name] + step * (high - low)))
            proposal = {**here, name: value}
            point = tuple(proposal.values())
            # A point visited before was not better than the best of its time,
            # and the best has only become better since.
            if point in visited:
                break
            visited.add(point)
            _, accepted = trials.try_out(proposal)
            if not accepted:
                break
            moved = True
        return moved
