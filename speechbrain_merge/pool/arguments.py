"""Checks of the arguments of a pool.

Example
-------
>>> linear = torch.nn.Linear(1, 1)
>>> check_arguments({"model": linear}, "../seed-1", 1, None, None, "min")
Traceback (most recent call last):
...
ValueError: run='../seed-1': expected a name that can be a folder's, of letters, digits and _+=.,@- without a dot in front

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping

import torch

from speechbrain_merge.pool.candidate import MODES
from speechbrain_merge.pool.records import RUN_NAME
from speechbrain_merge.records.paths import check_length


def check_arguments(modules, run, every, keep_last, keep_best, mode):
    """Refuses settings of a pool that cannot be meant, before any training.

    Arguments
    ---------
    modules : dict
        Name to torch.nn.Module.
    run : str
        Name of the run.
    every, keep_last, keep_best : int or None
        Counts.
    mode : str
        "min" or "max".

    Raises
    ------
    ValueError
        Names the setting, and what it may be.
    """
    if not isinstance(modules, Mapping) or not modules:
        raise ValueError("modules: expected a dict of name to torch.nn.Module")
    for name, module in modules.items():
        if not isinstance(module, torch.nn.Module):
            raise ValueError(
                f"modules: '{name}' is a {type(module).__name__}, "
                "expected a torch.nn.Module"
            )
        if isinstance(module, torch.nn.DataParallel):
            raise ValueError(
                f"modules: '{name}' is wrapped in DataParallel, under whose "
                "names no Brain finds its weights: give the module itself (its "
                "`.module`). SpeechBrain wraps modules when it trains."
            )
    if not RUN_NAME.fullmatch(str(run)):
        raise ValueError(
            f"run={run!r}: expected a name that can be a folder's, of letters, "
            "digits and _+=.,@- without a dot in front"
        )
    check_length(str(run), "run")
    counts = {"every": every, "keep_last": keep_last, "keep_best": keep_best}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: expected 1 or more, or None")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {MODES}")


def check_average(average, modules):
    """Refuses a moving average that is not of the modules of a pool.

    Arguments
    ---------
    average : MovingAverage
        See ``speechbrain_merge.training``.
    modules : dict
        Name to torch.nn.Module.

    Raises
    ------
    ValueError
        Names the module.
    """
    averaged = list(getattr(average, "modules", {}).values())
    for name, module in modules.items():
        if not any(module is each for each in averaged):
            raise ValueError(
                f"average: it has no average of '{name}'. Give the same "
                "`modules` to the MovingAverage and to the CheckpointPool."
            )
