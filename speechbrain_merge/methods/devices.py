"""Merging on a GPU: tensors go there, are merged, and come back.

A formula computes where its inputs are: what it makes, it makes there, and no
more than the result comes back. A method of another package that needs NumPy or
SciPy sets ``on_device = False``; it computes on the CPU, and says so once. First
passes that count or compare the numbers of the whole model are on the CPU, and
so are assignments (SciPy) and transport plans (POT).

Products of matrices are in float64 on a GPU: in float32, SpeechBrain allows it
to round their factors to 10 bits (TF32). Random numbers are drawn on the CPU,
so that they are the same everywhere.

With two workers or more, one reads and copies tensors while another's are
merged; one at a time computes. A tensor for which the GPU has no room is merged
on the CPU, in pieces.

Example
-------
>>> device_of("cpu")
device(type='cpu')
>>> device_of("auto").type in ("cpu", "cuda")
True

Authors
 * The speechbrain_merge authors 2026
"""

import threading
from collections.abc import Iterable
from functools import cache
from typing import Any, Callable, Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.pieces import PIECE
from speechbrain_merge.weights import joined

logger = get_logger(__name__)

# By a library of linear algebra that found no room for its workspace
NO_WORKSPACE = "ALLOC_FAILED"


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
    base: list[torch.Tensor],
) -> Optional[Iterable[torch.Tensor]]:
    """Merges one tensor on the method's device.

    Arguments
    ---------
    method : MergeMethod
        Whose formula and device are used.
    name : str
        Of the tensor.
    experts : list of torch.Tensor
        As stored, on the CPU.
    base : list of torch.Tensor
        One, or none; likewise.

    Returns
    -------
    pieces : iterable of torch.Tensor, or None
        Flat, on the CPU, in the type of the experts. None where the device is
        not used for this tensor.
    """
    first = experts[0]

    def formula(tensors):
        """What is stored of the result: no more comes back."""
        number = len(experts)
        pieces = method.formula_pieces(name, tensors[:number], tensors[number:])
        place = tensors[0].device
        return joined(pieces, first.shape, first.dtype, place).cpu()

    merged = _there(method, name, formula, [*experts, *base])
    return None if merged is None else merged.view(-1).split(PIECE)


def computed(
    method: Any,
    name: str,
    formula: Callable[[list[torch.Tensor]], Any],
    tensors: list[torch.Tensor],
) -> Any:
    """What a formula makes of tensors, on the method's device.

    Arguments
    ---------
    method : MergeMethod
        Whose ``device`` is used. (Or what else has one, ``on_device`` and a
        ``name``.)
    name : str
        What the tensors are called.
    formula : callable
        Takes the tensors where it shall compute, and gives what is on no
        device: numbers, or tensors on the CPU.
    tensors : list of torch.Tensor
        On the CPU.

    Returns
    -------
    found : object
        What the formula gave; from the CPU where the device is not used.
    """
    found = _there(method, name, formula, tensors)
    return formula(tensors) if found is None else found


def _there(method, name, formula, tensors):
    """What a formula makes of tensors on the device; None if it has no say."""
    if method.device.type == "cpu":
        return None
    if not method.on_device:
        _say_on_cpu(method.name)
        return None
    there: list[torch.Tensor] = []
    try:
        there += [tensor.to(method.device) for tensor in tensors]
        with _turn(method.device):
            return formula(there)
    except (RuntimeError, TypeError) as error:
        if not _no_room(error):
            raise RuntimeError(
                f"'{method.name}' failed on {method.device}, at {name} of "
                f"shape {tuple(tensors[0].shape)} ({error}). A method whose "
                "formula needs the CPU says so in its class: on_device = False."
            ) from error
    # the error held tensors of the device up to here
    del there
    _release_memory()
    logger.warning(
        f"{method.device} has no room for {name} of shape "
        f"{tuple(tensors[0].shape)}: '{method.name}' computes on the CPU there."
    )
    return None


def _no_room(error):
    """Whether an error says that the memory of a device is full."""
    return isinstance(error, torch.OutOfMemoryError) or (
        NO_WORKSPACE in str(error)
    )


@cache
def _turn(device):
    """Whose turn it is to compute on a device."""
    return threading.RLock()


def _release_memory():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def _say_on_cpu(name):
    logger.warning(f"Merge method '{name}' computes on the CPU.")
