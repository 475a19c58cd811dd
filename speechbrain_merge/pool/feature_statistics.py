"""The statistics by which a training normalises its features.

A normaliser that is among the recoverables comes back from a checkpoint. Where
it is not, a recipe computes its statistics again, or reads them from a file,
before a training goes on; if they are others by then, the model goes on with
features that it was not trained on. So each checkpoint of a pool says what they
were, and ``fit`` compares.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping

import torch

from speechbrain.processing.features import GlobalNorm, InputNormalization
from speechbrain_merge.records.checked import fields, listed, mapped, number
from speechbrain_merge.records.errors import printable

TOLERANCE = 1e-3
"""Relative: sums of the same data may be taken in another order."""

_MOST = 1 << 16  # of values of one normaliser that are written down

statistics_record = mapped(
    fields({"mean": listed(number()), "std": listed(number())})
)


def statistics_of(modules: Mapping) -> dict[str, dict[str, list]]:
    """The statistics of the normalisers among some modules.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        Of a Brain.

    Returns
    -------
    dict
        Name of each normaliser that has statistics, to their ``mean`` and
        ``std``, as lists of numbers.

    Example
    -------
    >>> normalize = InputNormalization(norm_type="global")
    >>> modules = torch.nn.ModuleDict({"normalize": normalize})
    >>> statistics_of(modules)
    {}
    >>> features = torch.tensor([[[1.0], [3.0]]])
    >>> _ = normalize(features, torch.ones(1))
    >>> statistics_of(modules)["normalize"]["mean"]
    [2.0]
    """
    found = {}
    for name, module in getattr(modules, "named_modules", dict)():
        mean, std = None, None
        if isinstance(module, InputNormalization):
            if module.norm_type == "global" and module.count:
                mean, std = module.glob_mean, module.glob_std
        elif isinstance(module, GlobalNorm) and module.weight:
            mean, std = module.running_mean, module.running_std
        if mean is not None and std is not None and mean.numel() <= _MOST:
            found[name] = {"mean": _numbers(mean), "std": _numbers(std)}
    return found


def check_statistics(known: Mapping, now: Mapping, title: str) -> None:
    """Refuses to train on with other features.

    Arguments
    ---------
    known : dict
        The statistics that a training had, as ``statistics_of`` gives them.
    now : dict
        Those that it has now. A normaliser that has none yet gathers them.
    title : str
        What the error calls the training.

    Raises
    ------
    ValueError
        Naming the normaliser.

    Example
    -------
    >>> known = {"normalize": {"mean": [2.0], "std": [1.0]}}
    >>> check_statistics(known, {}, "run 'a'")
    >>> now = {"normalize": {"mean": [2.5], "std": [1.0]}}
    >>> check_statistics(known, now, "run 'a'")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: run 'a' was trained with other statistics of the normaliser 'normalize' than ...
    """
    for name, before in known.items():
        other = now.get(name)
        if other is not None and not all(
            _same(before[key], other[key]) for key in ("mean", "std")
        ):
            raise ValueError(
                f"{title} was trained with other statistics of the normaliser "
                f"'{printable(name)}' than it has now: the model would go on "
                "with features that it has not seen. Put back the data or the "
                "file that they are computed from, list the normaliser among "
                "the recoverables of the checkpointer, or train anew in "
                "another folder."
            )


def _numbers(tensor):
    return tensor.detach().double().cpu().flatten().tolist()


def _same(one, other):
    if len(one) != len(other):
        return False
    one, other = (torch.tensor(each).double() for each in (one, other))
    scale = max(one.abs().max().item(), 1e-6) if len(one) else 0.0
    return bool(((one - other).abs() <= TOLERANCE * scale).all())
