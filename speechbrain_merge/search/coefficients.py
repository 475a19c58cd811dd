"""Search over the coefficients of a merge method, by error rate.

A method's scale, density or per-domain weights are chosen on the selection set.
What all searches share is here: one result type, one way to score a set of
coefficients, and the report to SpeechBrain's hyperparameter optimisation, so
that ``train.py --hpopt`` with Orion can drive the choices around the merge.

The searches, a file each: ``GridSearch`` (a list of values, or their product),
``GoldenSection`` (one coefficient), ``CoordinateSearch`` (several, one at a
time), ``CMAES`` (several at once). All of them: the first of equal results
wins, the same arguments give the same trials, and a journal makes them
resumable.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Optional, Union

from speechbrain.utils.hpopt import report_result
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import is_finite
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.racing import Savings
from speechbrain_merge.search.tally import Tally
from speechbrain_merge.search.trials import TrialRunner, progress_bar

logger = get_logger(__name__)


@dataclasses.dataclass
class CoefficientResult:
    """The result of a search over coefficients.

    Arguments
    ---------
    parameters : dict
        The best coefficients.
    tally : Tally
        Their score on the selection set.
    trials : list of dict
        Every trial in order, see ``speechbrain_merge.search.trials``.
    savings : Savings
        What racing saved.
    """

    parameters: dict
    tally: Tally
    trials: list
    savings: Savings

    @property
    def evaluations(self) -> int:
        """Trials scored in this run; the others came from the journal."""
        return sum(not trial["reused"] for trial in self.trials)

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return {
            "parameters": self.parameters,
            "value": self.tally.value,
            "tally": self.tally.to_dict(),
            "evaluations": self.evaluations,
            "savings": self.savings.to_dict(),
            "trials": self.trials,
        }


class CoefficientTrials:
    """The trials of one search over coefficients, and the best of them.

    A context manager, which closes the progress bar.

    Arguments
    ---------
    name : str
        Of the search.
    score : callable
        ``score(parameters, incumbent) -> Tally``.
    total : int, optional
        Number of trials, if known.
    journal : Journal, optional
        Where trials are looked up and recorded.
    progress : bool
        Whether to show a bar.
    racing : bool or float
        Whether trials may be stopped early: not where the search needs the
        value of a trial that loses.
    """

    def __init__(
        self,
        name: str,
        score: Callable,
        total: Optional[int] = None,
        journal: Optional[Journal] = None,
        progress: bool = True,
        racing: Union[bool, float] = True,
    ):
        self.name = name
        self.runner = TrialRunner(score, journal, "lt", racing)
        self.bar = progress_bar(total, name, progress)
        self.best: Optional[Tally] = None
        self.parameters: dict = {}

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.bar.close()

    def __len__(self):
        return len(self.runner.trials)

    def try_out(self, parameters: Mapping) -> tuple:
        """Score one set of coefficients against the best so far.

        Arguments
        ---------
        parameters : dict
            Names and values.

        Returns
        -------
        tally : Tally
        accepted : bool
            Whether it is the best now: strictly better, so that the first of
            equal ones stays.
        """
        parameters = dict(parameters)
        label = f"{self.name}: " + ", ".join(
            f"{name}={value}" for name, value in parameters.items()
        )
        tally, accepted, trial = self.runner.run(
            # A copy: what the scorer does with it must not change the result.
            dict(parameters),
            label,
            self.best,
            parameters=parameters,
        )
        if accepted:
            self.best, self.parameters = tally, parameters
        self.runner.keep(trial, self.best, label, parameters=parameters)
        if self.best is not None:
            self.bar.set_postfix_str(f"best {self.best.value:.2f} %")
        self.bar.update()
        return tally, accepted

    def result(self, objective_key: Optional[str]) -> CoefficientResult:
        """Close the search, and report it where SpeechBrain's hyperparameter
        optimisation is active.

        Arguments
        ---------
        objective_key : str, optional
            Name of the error rate in that report; None reports nothing.

        Returns
        -------
        CoefficientResult
        """
        if self.best is None:
            raise ValueError(f"{self.name}: no coefficients were tried.")
        result = CoefficientResult(
            parameters=self.parameters,
            tally=self.best,
            trials=self.runner.trials,
            savings=self.runner.savings,
        )
        logger.info(
            f"{self.name}: {result.parameters} gives {result.tally.value:.2f} % "
            f"({result.evaluations} evaluations); {result.savings}"
        )
        if objective_key is not None:
            # Outside of an optimisation this does nothing. The objective is
            # last: a coefficient of the same name must not hide it.
            report_result(
                {**result.parameters, objective_key: result.tally.value}
            )
        return result


def check_range(name: str, low: float, high: float):
    """Raise ValueError unless ``low < high`` and both are finite."""
    if not (is_finite(low) and is_finite(high) and low < high):
        raise ValueError(
            f"{name}: expected finite bounds with low < high, got "
            f"low={low}, high={high}"
        )


def check_box(parameters: Mapping) -> dict:
    """Check ``{name: (low, high, initial)}``.

    Arguments
    ---------
    parameters : dict
        Bounds and starting point of each coefficient; without an initial
        value, the middle.

    Returns
    -------
    dict
        ``{name: (low, high, initial)}``, all floats.
    """
    if not parameters:
        raise ValueError(
            "parameters is empty: expected {name: (low, high, initial)}"
        )
    box = {}
    for name, bounds in parameters.items():
        if len(bounds) not in (2, 3):
            raise ValueError(
                f"{name}: expected (low, high) or (low, high, initial), got "
                f"{bounds!r}"
            )
        low, high = float(bounds[0]), float(bounds[1])
        check_range(name, low, high)
        initial = float(bounds[2]) if len(bounds) == 3 else (low + high) / 2
        if not low <= initial <= high:
            raise ValueError(
                f"{name}: the initial value {initial} is outside "
                f"[{low}, {high}]"
            )
        box[name] = (low, high, initial)
    return box
