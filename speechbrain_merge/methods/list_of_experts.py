"""A merge takes a list of experts, and not one in its place.

A single state dict, file name or module can be gone through like a list, and
its names or letters would be taken for files.

Example
-------
>>> list_of_experts({"w": 1.0}, "average")
Traceback (most recent call last):
...
ValueError: Merge method 'average' merges a list of experts, one state dict, file or module each, but got a single dict: put it in a list.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch


def list_of_experts(experts: Iterable[Any], method: str) -> list:
    """The experts as a list; a single one in its place is refused.

    Arguments
    ---------
    experts : iterable
        What was given: one source of weights an expert.
    method : str
        Name of the merge method, for the error.

    Returns
    -------
    experts : list

    Raises
    ------
    ValueError
        When it is one source of weights itself.
    """
    single = (str, PathLike, Mapping, torch.nn.Module)
    if isinstance(experts, single) or not isinstance(experts, Iterable):
        raise ValueError(
            f"Merge method '{method}' merges a list of experts, one "
            "state dict, file or module each, but got a single "
            f"{type(experts).__name__}: put it in a list."
        )
    return list(experts)
