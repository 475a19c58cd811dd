"""Statistics that data-driven methods need of each expert, and where to look.

Fisher merging and RegMean weigh experts by what a pass over data says of them
(``speechbrain_merge.brain.statistics`` makes that pass), as optimal transport
does by activations. A method takes the outcome as one source an expert: files,
or mappings from names to tensors, in the order of the experts or by their
labels.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.expert_statistics import open_statistics
>>> found = open_statistics(
...     [{"w": torch.ones(1)}], ["digits"], "fisher", kind="fisher"
... )
>>> found[0]["w"]
tensor([1.])

Authors
 * The speechbrain_merge authors 2026
"""

import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import digest_text, fields, text
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import (
    Weights,
    digest,
    open_weights,
    verify_own_hash,
)
from speechbrain_merge.weights.tied import common_ties
from speechbrain_merge.weights.tree_hash import PREFIX
from speechbrain_merge.weights.verification import hash_like, with_scale

logger = get_logger(__name__)

KEY = "statistics"
"""The entry of a file's metadata that says what its statistics are of."""

_about = fields({}, {"statistics": text(100), "weights": digest_text})


def check_statistics(statistics: Any) -> None:
    """Checks the form of the statistics when a method is made.

    Arguments
    ---------
    statistics : list, dict or None
        One source an expert, in order, or by label.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if statistics is not None and not isinstance(
        statistics, (list, tuple, dict)
    ):
        raise ValueError(
            "`statistics` must be a list with one file or mapping for each "
            "expert, in their order, or a mapping from their labels to such; "
            f"got {type(statistics).__name__}."
        )


def open_statistics(
    statistics: Any, labels: list[str], method: str, kind: str
) -> list[Weights]:
    """Opens the statistics of each expert.

    Arguments
    ---------
    statistics : list, dict or None
        As the method was given them.
    labels : list of str
        The experts' labels, in their order.
    method : str
        The method's name, for errors.
    kind : str
        What they have to be: "fisher", "gram" or "activations".

    Returns
    -------
    opened : list of Weights
        In the order of the experts.

    Raises
    ------
    ValueError
        When there is none, or not one for each expert, or a file says that
        its statistics are of another kind, or was damaged.
    """
    if statistics is None:
        raise ValueError(
            f"Merge method '{method}' needs statistics of each expert over "
            "data: give `statistics`, or let `collect_statistics` of "
            "speechbrain_merge.brain.statistics collect them."
        )
    if isinstance(statistics, dict):
        missing = [label for label in labels if label not in statistics]
        if missing:
            raise ValueError(
                f"Merge method '{method}' has no statistics of the experts "
                f"{missing}; it has those of {sorted(statistics)}."
            )
        statistics = [statistics[label] for label in labels]
    if len(statistics) != len(labels):
        raise ValueError(
            f"{len(statistics)} statistics were given for {len(labels)} "
            "experts: give one for each, in their order."
        )
    opened = [open_weights(source) for source in statistics]
    for each in opened:
        verify_own_hash(each)
        found = _about_of(each).get("statistics", kind)
        if found != kind:
            raise ValueError(
                f"{each.label} has statistics of the kind '{found}', and merge "
                f"method '{method}' needs '{kind}': collect those."
            )
        for name in each:
            if each.dtype(name).is_complex:
                raise ValueError(
                    f"{each.label}: '{name}' is complex, which no statistics "
                    "are. Collect them again."
                )
    return opened


def check_models(opened: Sequence[Weights], experts: Sequence[Weights]):
    """Refuses statistics that are known to be of another of the experts.

    A file of statistics has the hash of the weights that they were collected
    of on record. The same weights may be stored in several ways, each with a
    hash of its own: a hash that is of none of the experts is only warned of.

    Arguments
    ---------
    opened : list of Weights
        The statistics, in the order of the experts.
    experts : list of Weights
        The models; only those in files have a hash that is compared.

    Raises
    ------
    ValueError
        When they are in another order than the experts.
    """
    wanted = [_about_of(each).get("weights") for each in opened]
    if not any(wanted):
        return
    for place, code in enumerate(wanted):
        if code is None:
            continue
        found = _hashes_of(experts[place].label, code)
        if not found or code in found:
            continue
        label = opened[place].label
        for other in experts:
            if code in _hashes_of(other.label, code):
                raise ValueError(
                    f"{label} has statistics of {other.label}, and was given "
                    f"for {experts[place].label}. Give them in the order of "
                    "the experts, or by their labels."
                )
        logger.warning(
            f"{label} has statistics of weights with the hash {code}, and "
            f"{experts[place].label}, for which they were given, has "
            f"{' or '.join(found)}. Unless these are the same weights, stored in "
            "another way, collect the statistics again."
        )


def _about_of(statistics):
    """What a file says of its statistics; nothing where it says nothing."""
    if KEY not in statistics.metadata:
        return {}
    where = f"{statistics.label}, metadata '{KEY}'"
    return _about(parse_json(statistics.metadata[KEY], where), where)


def _hashes_of(label, like):
    """The hashes of a model's file, of the kind of another; empty without one.

    A SHA-256 is that of the file's bytes, or, as a pool has it, of its tensors.
    """
    try:
        status = os.stat(label)
    except (OSError, ValueError):
        return []  # weights in memory
    if not stat.S_ISREG(status.st_mode):
        return []
    kind = PREFIX if like.startswith(PREFIX) else ""
    return _hashes_once(label, kind, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _hashes_once(path, kind, changed, size):
    """A search merges the same files many times."""
    del changed, size
    found = [hash_like(Path(path), kind)]
    if not kind:
        with open_weights(path) as weights:
            found.append(digest(weights))
            found.append(with_scale(found[-1], weights.metadata))
    return list(dict.fromkeys(found))


def check_names(opened: list[Weights], experts: list[Weights]) -> None:
    """Refuses statistics that are not those of these models.

    Arguments
    ---------
    opened : list of Weights
        The statistics.
    experts : list of Weights
        The models.

    Raises
    ------
    ValueError
        When none of their names is one of the experts', when they are not of
        the same tensors, or have a tied tensor under its second name only.
    """
    names, ties = set(experts[0].names()), common_ties(experts)
    for statistics in opened:
        found = set(statistics.names())
        if not found & names:
            raise ValueError(
                f"{statistics.label} has statistics of none of the experts' "
                f"tensors. It has {statistics.names()[:3]}, the experts have "
                f"{experts[0].names()[:3]}."
            )
        if found != set(opened[0].names()):
            odd = found ^ set(opened[0].names())
            raise ValueError(
                f"{statistics.label} and {opened[0].label} have statistics of "
                f"different tensors, e.g. {sorted(odd)[:3]}."
            )
        for alias, kept in ties.items():
            if alias in found and kept not in found:
                raise ValueError(
                    f"{statistics.label} has statistics of '{alias}', which is "
                    f"one tensor with '{kept}' in the experts: give them under "
                    f"'{kept}', or leave them out, so that it is averaged."
                )
    unused = sorted(set(opened[0].names()) - names)
    if unused:
        logger.warning(
            f"{opened[0].label} has statistics of {len(unused)} tensors that "
            f"the experts do not have, e.g. {unused[:3]}: they are not used."
        )
