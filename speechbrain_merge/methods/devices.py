"""Merging on a GPU: tensors go there, are merged, and come back.

A method whose formula is made of tensors alone (``on_device``) computes where
its inputs are. Others, which use LAPACK through SciPy, sort by NumPy, or carry
maps and statistics along, compute on the CPU whatever the device, and say so
once. First passes over the whole model are on the CPU as well.

Reading is hidden: with two workers or more, one reads and copies tensors while
another's are merged. A tensor for which the GPU has no room is merged on the
CPU, in pieces.

Example
-------
>>> device_of("cpu")
device(type='cpu')
>>> device_of("auto").type in ("cpu", "cuda")
True

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.pieces import PIECE
from speechbrain_merge.weights import joined

logger = get_logger(__name__)


def device_of(value: Union[str, torch.device]) -> torch.device:
    """The device that a setting names.

    Arguments
    ---------
    value : str or torch.device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is
        one.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        When it names no such device, or one that is not there.

    Example
    -------
    >>> device_of("tpu")
    Traceback (most recent call last):
    ...
    ValueError: `device` is 'tpu': expected cpu, cuda, cuda:<number> or auto.
    """
    if value == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"`device` is {value!r}: expected cpu, cuda, cuda:<number> or auto."
        )
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ValueError(
            f"`device` is '{device}', and torch sees {there} CUDA devices: use "
            "device='auto', which takes the CPU where there is none."
        )
    return device


def on_device(
    method: Any,
    name: str,
    experts: list[torch.Tensor],
    base: Optional[torch.Tensor],
) -> Optional[Iterable[torch.Tensor]]:
    """Merges one tensor on the method's device.

    Arguments
    ---------
    method : MergeMethod
        Whose formula and device are used.
    name : str
        Of the tensor.
    experts : list of torch.Tensor
        On the CPU.
    base : torch.Tensor, optional
        Likewise.

    Returns
    -------
    pieces : iterable of torch.Tensor, or None
        Flat, on the CPU, in the type of the experts. None where the device is
        not used for this tensor.
    """
    if method.device.type == "cpu":
        return None
    if not method.on_device:
        _say_on_cpu(method.name)
        return None
    first = experts[0]
    try:
        there = [expert.to(method.device) for expert in experts]
        anchor = None if base is None else base.to(method.device)
        pieces = method.merge_pieces(name, there, anchor)
        return joined(pieces, first.shape, first.dtype).view(-1).split(PIECE)
    except torch.OutOfMemoryError:
        _release_memory()
        logger.warning(
            f"{method.device} has no room to merge {name} of shape "
            f"{tuple(first.shape)}: it is merged on the CPU, in pieces."
        )
        return None


def _release_memory():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def _say_on_cpu(name):
    logger.warning(f"Merge method '{name}' computes on the CPU.")
