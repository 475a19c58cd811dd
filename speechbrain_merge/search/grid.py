"""Grid search: score every listed value, keep the first of the best.

Example
-------
>>> from speechbrain_merge.search import GridSearch, Tally
>>> errors = {0.2: 30, 0.4: 22, 0.6: 25}
>>> def score(parameters, incumbent):
...     return Tally(errors[parameters["scale"]], words=100)
>>> search = GridSearch(parameter="scale", values=[0.2, 0.4, 0.6])
>>> search.run(score, progress=False).parameters
{'scale': 0.4}

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Optional, Union

from speechbrain_merge.search.coefficients import (
    CoefficientResult,
    CoefficientTrials,
)
from speechbrain_merge.search.journal import Journal


class GridSearch:
    """Scores every value of a coefficient, or every combination of several.

    A value that loses is of no further use, so every trial races against the
    best so far.

    Arguments
    ---------
    parameter : str, optional
        Name of the one coefficient.
    values : list, optional
        Its values, in the order of the trials.
    grid : dict, optional
        Instead of these two: ``{name: values}`` of several coefficients; the
        last one varies fastest.
    objective_key : str, optional
        Name of the error rate (%) in the report to SpeechBrain's hyperparameter
        optimisation; None reports nothing.

    Example
    -------
    >>> len(GridSearch(grid={"density": [0.1, 0.2], "scale": [0.5, 1.0]}))
    4
    """

    searches = "coefficients"
    accept = "lt"

    def __init__(
        self,
        parameter: Optional[str] = None,
        values: Optional[Sequence] = None,
        grid: Optional[Mapping] = None,
        objective_key: Optional[str] = "error",
    ):
        if (parameter is None) != (values is None) or (
            (parameter is None) == (grid is None)
        ):
            raise ValueError(
                "GridSearch: give either parameter= and values=, or grid="
            )
        grid = {parameter: values} if grid is None else dict(grid)
        for name, listed in grid.items():
            if len(listed) == 0:
                raise ValueError(f"GridSearch: no values for {name!r}")
        if not grid:
            raise ValueError("GridSearch: the grid names no coefficient")
        self.grid = {name: list(listed) for name, listed in grid.items()}
        self.objective_key = objective_key

    def __len__(self):
        return math.prod(len(values) for values in self.grid.values())

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
            ``score(parameters, incumbent) -> Tally``: merge with these
            coefficients and count the errors on the selection set. With an
            incumbent, it may stop as soon as
            ``Race(incumbent, accept=search.accept).lost(errors so far)``.
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
            "grid search", score, len(self), journal, progress, racing
        ) as trials:
            for combination in itertools.product(*self.grid.values()):
                trials.try_out(dict(zip(self.grid, combination)))
            return trials.result(self.objective_key)
