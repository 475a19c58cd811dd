"""CMA-ES: several coefficients at once.

The covariance matrix adaptation evolution strategy (Hansen, 2016,
arXiv:1604.00772) draws a generation of points around a mean, ranks them by
error rate, and moves the mean and the covariance towards the better half. It
follows coefficients that act together, at the price of more evaluations than a
coordinate search. Coefficients are scaled to [0, 1] within their bounds.

Needs the ``cma`` package: ``pip install cma``.

Example
-------
>>> from speechbrain_merge.search import CMAES, Tally
>>> def score(parameters, incumbent):
...     a, b = parameters["a"], parameters["b"]
...     return Tally(round(1e4 * ((a - b) ** 2 + (b - 0.3) ** 2)), words=10000)
>>> search = CMAES({"a": (0, 1), "b": (0, 1)}, evaluations=60, seed=3)
>>> search.run(score, progress=False).tally.value < 1.0
True

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Callable, Mapping
from typing import Optional, Union

import numpy as np

from speechbrain_merge.search.coefficients import (
    CoefficientResult,
    CoefficientTrials,
    check_box,
)
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.trials import check_count


class CMAES:
    """Evolves the coefficients of a merge, and never ends above the start.

    Arguments
    ---------
    parameters : dict
        ``{name: (low, high, initial)}`` of two or more coefficients; without
        an initial value, the middle.
    evaluations : int
        Number of trials; the initial point is one of them.
    seed : int
        Of the draws. NumPy's global generator is left alone.
    spread : float
        Standard deviation of the first generation, as a part of each range.
    population : int, optional
        Trials a generation; 4 + 3 ln(number of coefficients) if not given.
    objective_key : str, optional
        Name of the error rate (%) in the report to SpeechBrain's hyperparameter
        optimisation; None reports nothing.

    Raises
    ------
    ImportError
        If the ``cma`` package is missing.
    """

    searches = "coefficients"
    accept = "lt"

    def __init__(
        self,
        parameters: Mapping,
        evaluations: int = 100,
        seed: int = 0,
        spread: float = 0.25,
        population: Optional[int] = None,
        objective_key: Optional[str] = "error",
    ):
        _import_cma()  # Missing? Say so before hours of decoding.
        self.box = check_box(parameters)
        if len(self.box) < 2:
            raise ValueError(
                f"CMA-ES needs two coefficients or more, got "
                f"{list(self.box)}; use GoldenSection for a single one"
            )
        if evaluations is None:
            raise ValueError("evaluations=None: expected a whole number from 1")
        check_count(evaluations, "evaluations")
        check_count(population, "population")
        if population is not None and population < 3:
            raise ValueError(f"population={population}: expected 3 or more")
        if not 0 < spread <= 1:
            raise ValueError(
                f"spread={spread}: expected a part of the range, in (0, 1]"
            )
        self.evaluations = evaluations
        self.seed = seed
        self.spread = spread
        self.population = population or 4 + int(3 * math.log(len(self.box)))
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
            ``score(parameters, incumbent) -> Tally``. The incumbent is always
            None: the strategy ranks all points of a generation with each other,
            so it needs the values of losers too, and nothing can be raced.
        journal : Journal, optional
            Makes the search resumable: the same seed proposes the same points.
        progress : bool
            Whether to show a bar.
        racing : bool or float
            Without effect, here for the common interface.

        Returns
        -------
        CoefficientResult
        """
        del racing  # Unused
        cma = _import_cma()
        with CoefficientTrials(
            "CMA-ES", score, self.evaluations, journal, progress, racing=False
        ) as trials:
            start = [
                (initial - low) / (high - low)
                for low, high, initial in self.box.values()
            ]
            # Scored itself, as the first generation only surrounds it.
            trials.try_out(self._parameters(start))
            strategy = cma.CMAEvolutionStrategy(
                start, self.spread, self._options()
            )
            while len(trials) < self.evaluations and not strategy.stop():
                points = strategy.ask()
                left = self.evaluations - len(trials)
                values = [
                    trials.try_out(self._parameters(point))[0]
                    for point in points[:left]
                ]
                # The last generation may be cut short by the budget; a part of
                # one cannot be ranked, and nothing comes after it.
                if len(values) == len(points):
                    strategy.tell(points, [tally.value for tally in values])
            return trials.result(self.objective_key)

    def _parameters(self, point) -> dict:
        parameters = {}
        for position, (name, (low, high, _)) in zip(point, self.box.items()):
            value = low + float(position) * (high - low)
            # Rounding may lead out of the bounds by a last bit.
            parameters[name] = min(high, max(low, value))
        return parameters

    def _options(self) -> dict:
        generator = np.random.RandomState(self.seed)
        return {
            "bounds": [0, 1],
            "popsize": self.population,
            # cma would seed NumPy's global generator, and by the clock for 0.
            "randn": generator.randn,
            "seed": np.nan,
            # Nor should a file in the working folder steer the search.
            "signals_filename": "",
            "verbose": -9,
            "verb_disp": 0,
            "verb_log": 0,
        }


def _import_cma():
    try:
        import cma
    except ImportError as error:
        raise ImportError(
            "CMAES needs the optional package 'cma': pip install cma"
        ) from error
    return cma
