"""Training runs that differ in their hyperparameters, sampled once and for all.

Merging across runs (MAcT and SMAcT: Ducorroy & Riad, 2025) wants several
fine-tunings of one model, each with hyperparameters drawn uniformly from
ranges. The draw is part of the experiment: it must be the same when a study is
restarted, and adding runs must not change those that are trained already.

Example
-------
>>> sampler = RunSampler({"lr": [3e-6, 8e-6], "dropout": [0.0, 0.1]}, runs=2)
>>> [run["name"] for run in sampler]
['run-01', 'run-02']
>>> longer = RunSampler({"lr": [3e-6, 8e-6], "dropout": [0.0, 0.1]}, runs=5)
>>> list(longer)[:2] == list(sampler)
True

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import random
from numbers import Real


class RunSampler:
    """Draws the hyperparameters of a number of runs.

    Iterating over it gives one dict a run: ``name``, ``seed``, and a value for
    each hyperparameter, which a recipe takes as overrides of its YAML.

    Arguments
    ---------
    ranges : dict
        Hyperparameter to ``[low, high]``, drawn uniformly; a list of more than
        two values, or of words, is chosen from.
    runs : int
        How many runs.
    seed : int
        Of the draw. Each run has a seed of its own made from it.
    prefix : str
        What the runs' names begin with.

    Raises
    ------
    ValueError
        When a range is not one, or there are no runs.

    Example
    -------
    >>> run = next(iter(RunSampler({"lr": [1e-6, 2e-6]}, runs=1, seed=7)))
    >>> 1e-6 <= run["lr"] <= 2e-6
    True
    """

    def __init__(self, ranges, runs, seed=0, prefix="run"):
        if runs < 1:
            raise ValueError(f"`runs` must be at least 1, got {runs}.")
        for name, limits in ranges.items():
            if not isinstance(limits, (list, tuple)) or len(limits) < 2:
                raise ValueError(
                    f"`ranges.{name}` must be [low, high] or a list of "
                    f"choices, got {limits!r}."
                )
            if _is_range(limits) and limits[0] > limits[1]:
                raise ValueError(
                    f"`ranges.{name}`: low {limits[0]} is above high "
                    f"{limits[1]}."
                )
        self.ranges = {name: list(limits) for name, limits in ranges.items()}
        self.runs, self.seed, self.prefix = runs, seed, prefix

    def __len__(self):
        return self.runs

    def __iter__(self):
        for number in range(1, self.runs + 1):
            run = {
                "name": f"{self.prefix}-{number:02d}",
                "seed": self._generator(number, "seed").randrange(1, 2**31),
            }
            for name, limits in self.ranges.items():
                draw = self._generator(number, name)
                if _is_range(limits):
                    run[name] = draw.uniform(*limits)
                else:
                    run[name] = draw.choice(limits)
            yield run

    def _generator(self, number, name):
        """Its own stream for each value, so that no value moves another."""
        key = f"{self.seed}/{number}/{name}".encode()
        return random.Random(hashlib.sha256(key).digest())


def _is_range(limits):
    """Whether limits are two numbers to draw between."""
    return len(limits) == 2 and all(
        isinstance(limit, Real) and not isinstance(limit, bool)
        for limit in limits
    )
