"""Dtypes: those that a file can hold, and how mixed ones are promoted.

A safetensors file knows the dtypes of ``DTYPE_NAMES``. Models that are merged
need not agree in their floating-point dtypes: a base in float16 and experts in
float32 are promoted to float32, tensor by tensor, as PyTorch promotes numbers.
Nothing is lost that way, and the result has the promoted dtype.

Example
-------
>>> DTYPE_NAMES[torch.bfloat16]
'BF16'
>>> common_dtype([torch.float16, torch.bfloat16])
torch.float32

Authors
 * The speechbrain_merge authors 2026
"""

import math
from functools import reduce
from typing import Optional, Union

import torch

from speechbrain_merge.weights.mapping import Entry, Weights, entry_of_pieces

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}

RESULT_DTYPES = ("float64", "float32", "float16", "bfloat16")
"""What `dtype` of a merge may say."""


def float_dtype(
    value: Union[str, torch.dtype, None], name: str = "dtype"
) -> Optional[torch.dtype]:
    """The floating-point dtype that a setting names.

    Arguments
    ---------
    value : str, torch.dtype or None
        ``"float32"``, ``torch.float32``, ….
    name : str
        What errors call the setting.

    Returns
    -------
    dtype : torch.dtype or None
        None where nothing is set.

    Raises
    ------
    ValueError
        When it names no dtype that merged weights can have.

    Example
    -------
    >>> float_dtype("bfloat16")
    torch.bfloat16
    """
    if value is None:
        return None
    word = str(value).removeprefix("torch.")
    if word not in RESULT_DTYPES:
        raise ValueError(
            f"`{name}` is {value!r}: expected one of "
            f"{', '.join(RESULT_DTYPES)}, or nothing, to keep the inputs' dtype."
        )
    return getattr(torch, word)


def common_dtype(dtypes) -> torch.dtype:
    """The floating-point dtype that can hold the values of all.

    Arguments
    ---------
    dtypes : list of torch.dtype
        Floating-point dtypes.

    Returns
    -------
    dtype : torch.dtype
        The dtype itself where all are the same.
    """
    different = list(dict.fromkeys(dtypes))
    if len(different) == 1:
        return different[0]
    # PyTorch promotes no float8; float16 holds the values of all of them
    wide = [torch.float16 if is_float8(dtype) else dtype for dtype in different]
    return reduce(torch.promote_types, wide)


def is_float8(dtype: torch.dtype) -> bool:
    """Whether a dtype is one of the floating-point types of eight bits.

    Arguments
    ---------
    dtype : torch.dtype
        Any.

    Returns
    -------
    bool
    """
    return dtype.is_floating_point and dtype.itemsize == 1


def widened(weights: Weights) -> Weights:
    """Weights whose float8 tensors are given in float32, which holds them.

    PyTorch stores float8 and converts it, and computes next to nothing in it.

    Arguments
    ---------
    weights : Weights
        Open weights.

    Returns
    -------
    weights : Weights
        The very same where none of its tensors is float8.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> eighth = torch.tensor([0.75]).to(torch.float8_e4m3fn)
    >>> widened(open_weights({"w": eighth}))["w"]
    tensor([0.7500])
    """
    return stored_as(
        weights,
        {
            name: torch.float32
            for name in weights.names()
            if is_float8(weights.dtype(name))
        },
    )


def narrowed(merged: Weights, models: list) -> Weights:
    """What was merged in float32 out of float8, in float8 again.

    Arguments
    ---------
    merged : Weights
        Merged of models that were `widened`.
    models : list of Weights
        Those models, as they are stored.

    Returns
    -------
    merged : Weights
        In the dtype that the models have in common: the models' own where all
        are the same. A value that it cannot hold raises a ValueError when its
        tensor is read.
    """
    stored: dict[str, list] = {}
    for model in models:
        for name in model.names():
            if name in merged and merged.dtype(name).is_floating_point:
                stored.setdefault(name, []).append(model.dtype(name))
    return stored_as(
        merged,
        {
            name: common_dtype(dtypes)
            for name, dtypes in stored.items()
            if any(map(is_float8, dtypes))
        },
    )


def promoted(
    models: list, at_least: Optional[torch.dtype] = None
) -> list[Weights]:
    """Models that agree in the floating-point dtype of each tensor.

    Arguments
    ---------
    models : list of Weights
        Open models.
    at_least : torch.dtype, optional
        A floating-point dtype that takes part in each promotion.

    Returns
    -------
    models : list of Weights
        Those that differ from the others convert a tensor when it is read;
        the others are the very same objects. Closing one closes its source.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> half = open_weights({"w": torch.ones(1).half()})
    >>> single = open_weights({"w": torch.ones(1)})
    >>> [model["w"].dtype for model in promoted([half, single])]
    [torch.float32, torch.float32]
    """
    dtypes = {}
    for model in models:
        for name in model.names():
            if model.dtype(name).is_floating_point:
                dtypes.setdefault(name, []).append(model.dtype(name))
    wanted = {
        name: common_dtype(found if at_least is None else [*found, at_least])
        for name, found in dtypes.items()
    }
    return [stored_as(model, wanted) for model in models]


def stored_as(
    weights: Weights, dtype: Union[torch.dtype, dict, None]
) -> Weights:
    """Weights whose floating-point tensors are given in another dtype.

    Arguments
    ---------
    weights : Weights
        Open weights.
    dtype : torch.dtype or dict, optional
        One for all, or by name. None changes nothing.

    Returns
    -------
    weights : Weights
        A value that the dtype cannot hold raises a ValueError when its tensor
        is read.
    """

    def wanted(name):
        found = weights.dtype(name)
        if dtype is None or not found.is_floating_point:
            return found
        return dtype.get(name, found) if isinstance(dtype, dict) else dtype

    names = weights.names()
    if all(wanted(name) == weights.dtype(name) for name in names):
        return weights
    entries = {}
    for name in names:
        entry = weights.entry(name)
        if wanted(name) != entry.dtype:
            entry = _converted(
                entry, wanted(name), f"{weights.label}: '{name}'"
            )
        entries[name] = entry
    return Weights(
        entries,
        weights.label,
        weights.metadata,
        weights.tied,
        weights.close,
        weights.folded,
    )


def _converted(entry, dtype, title):
    """An entry that is read in another dtype."""

    def convert(tensor):
        return held(tensor, dtype, title)

    if entry.pieces is not None:
        return entry_of_pieces(
            entry.shape, dtype, lambda: map(convert, entry.pieces())
        )
    return Entry(entry.shape, dtype, lambda: convert(entry.read()))


def held(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    title: str,
    advice: str = "choose a wider `dtype`.",
) -> torch.Tensor:
    """A tensor in another dtype, where that holds its values.

    Arguments
    ---------
    tensor : torch.Tensor
        Floating-point numbers.
    dtype : torch.dtype
        The dtype.
    title : str
        What the error calls the tensor.
    advice : str
        What the error says to do.

    Returns
    -------
    torch.Tensor

    Raises
    ------
    ValueError
        Where a value became infinite, or the largest there is.

    Example
    -------
    >>> held(torch.tensor([700.0]), torch.float8_e4m3fn, "'w'")
    Traceback (most recent call last):
    ...
    ValueError: 'w' has values up to 700, more than torch.float8_e4m3fn can hold: choose a wider `dtype`.
    """
    converted = tensor.to(dtype)
    if _overflows(tensor, converted):
        raise ValueError(
            f"{title} has values up to {tensor.abs().max().item():.6g}, "
            f"more than {dtype} can hold: {advice}"
        )
    return converted


WIDER_BASE = "store the model under the adapter in a wider type."
"""What to do where an adapter is folded onto a model."""


def _overflows(tensor, converted):
    """Whether a conversion made another value of one that was too large."""
    if is_float8(converted.dtype):
        # without infinity: the largest value takes its place, or NaN. What is
        # less than half a step above it is rounded to it
        wide, info = tensor.to(torch.float32), torch.finfo(converted.dtype)
        step = 2.0 ** math.floor(math.log2(info.max)) * info.eps
        over = wide.abs() >= info.max + step / 2
        return bool((over & torch.isfinite(wide)).any())
    if is_float8(tensor.dtype) or torch.isfinite(
        converted.sum(dtype=torch.float32)
    ):
        return False
    return bool((torch.isinf(converted) & ~torch.isinf(tensor)).any())
