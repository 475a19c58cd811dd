"""Golden-section search: one coefficient with a single valley.

Kiefer, 1953, "Sequential minimax search for a maximum". The interval holds two
inner points that divide it in the golden ratio. The worse one becomes a bound,
the better one is an inner point of the smaller interval as well, and one new
point is scored. Each evaluation shrinks the interval to 61.8 %.

Error rate against scale is close to a single valley in practice, with flat
steps, as errors are whole numbers; where it is not, the search ends in a local
minimum, never above any point that it has scored. The bounds themselves are
approached and not scored.

Example
-------
>>> from speechbrain_merge.search import GoldenSection, Tally
>>> def score(parameters, incumbent):
...     return Tally(round(1000 * (parameters["scale"] - 0.3) ** 2), words=100)
>>> search = GoldenSection("scale", 0.0, 1.0, tolerance=0.02)
>>> result = search.run(score, progress=False)
>>> abs(result.parameters["scale"] - 0.3) < 0.02, len(result.trials)
(True, 10)

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Callable
from typing import Optional, Union

from speechbrain_merge.search.coefficients import (
    CoefficientResult,
    CoefficientTrials,
    check_range,
)
from speechbrain_merge.search.journal import Journal

SHRINKAGE = (math.sqrt(5) - 1) / 2


class GoldenSection:
    """Shrinks an interval around the lowest error rate.

    Arguments
    ---------
    parameter : str
        Name of the coefficient.
    low, high : float
        Bounds.
    tolerance : float
        Stop when the interval is not longer than this.
    evaluations : int
        Stop after this many trials, at least 2.
    objective_key : str, optional
        Name of the error rate (%) in the report to SpeechBrain's hyperparameter
        optimisation; None reports nothing.
    """

    searches = "coefficients"
    accept = "lt"

    def __init__(
        self,
        parameter: str,
        low: float,
        high: float,
        tolerance: float = 0.01,
        evaluations: int = 20,
        objective_key: Optional[str] = "error",
    ):
        check_range(parameter, low, high)
        if not tolerance > 0:
            raise ValueError(
                f"tolerance={tolerance}: expected a number above 0"
            )
        if evaluations < 2:
            raise ValueError(
                f"evaluations={evaluations}: two inner points are compared, "
                "expected at least 2"
            )
        self.parameter = parameter
        self.low = float(low)
        self.high = float(high)
        self.tolerance = tolerance
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
        # Racing is exact here. Of two inner points only the better one is used
        # again, so the better one is the best of all points so far, and the
        # value of a loser is never asked for. A tie keeps the older point.
        low, high = self.low, self.high
        with CoefficientTrials(
            "golden section", score, self._total(), journal, progress, racing
        ) as trials:
            best = high - SHRINKAGE * (high - low)
            best_is_left = True
            trials.try_out({self.parameter: best})
            while len(trials) < self.evaluations:
                length = high - low
                if len(trials) > 1 and length <= self.tolerance:
                    break
                if best_is_left:
                    new = low + SHRINKAGE * length
                else:
                    new = high - SHRINKAGE * length
                if not low < new < high or new == best:
                    break  # As fine as floating point goes.
                _, accepted = trials.try_out({self.parameter: new})
                keeps_left = best_is_left != accepted
                if keeps_left:
                    high = max(best, new)
                else:
                    low = min(best, new)
                best = new if accepted else best
                # The left inner point is the right one of what is left over.
                best_is_left = not keeps_left
            return trials.result(self.objective_key)

    def _total(self) -> int:
        # Two inner points, which leave 61.8 %, and one for each further step.
        ratio = self.tolerance / (self.high - self.low)
        steps = max(1, math.ceil(math.log(ratio) / math.log(SHRINKAGE)))
        return min(self.evaluations, 1 + steps)
