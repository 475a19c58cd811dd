"""How each entry of a model is merged, and the means that most methods take.

Integers and the running statistics of normalisation layers do not enter the
formula of a method. All other entries are computed in float32 at least; the
result is checked for NaN and infinity, and stored in the dtype of the experts.
The mean is taken often enough, and over enough experts, that it is worth being
exact: sums are in float64.

Example
-------
>>> import torch
>>> mean([torch.tensor([61440.0]).half(), torch.tensor([40960.0]).half()])
tensor([51200.], dtype=torch.float16)

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import numpy as np
import torch

from speechbrain_merge.methods.devices import on_device
from speechbrain_merge.methods.pieces import BLOCK, KEPT, PIECE, suited, walk
from speechbrain_merge.methods.running_statistics import is_statistic
from speechbrain_merge.weights import (
    Weights,
    check_compatible,
    joined,
    release,
    tensor_bytes,
)


def entry_pieces(
    method: Any,
    name: str,
    experts: list[Weights],
    base: Optional[Weights] = None,
) -> Iterator[torch.Tensor]:
    """Merges the entry of one name by a method, a piece after the other.

    Integers and booleans (counters, position ids) are the first expert's.
    Running statistics (``running_statistics``) are averaged. All else goes through the formula in
    float32, or float64 where it is stored so, and back to the stored type.

    What is done to each piece while it is in the processor's cache: its inputs
    are hashed, it is merged, looked at for NaN and infinity, and narrowed.

    Arguments
    ---------
    method : MergeMethod
        Whose formula is used.
    name : str
        The entry.
    experts : list of Weights
        Open weights.
    base : Weights, optional
        The base.

    Yields
    ------
    merged : torch.Tensor
        Flat, and valid until the next. It may be a piece of an input.

    Raises
    ------
    IncompatibleWeights
        When an input has a NaN or an infinity; names files and tensors.
    ValueError
        When the result is not finite or of another shape.
    """
    models = [*experts]
    if base is not None and name in base:
        models.append(base)
    inputs = [model[name] for model in models]
    stored, anchor = inputs[: len(experts)], inputs[len(experts) :]
    first = stored[0]
    flat = [tensor.reshape(-1) for tensor in inputs]
    floating = first.is_floating_point()
    plain = not floating or is_statistic(name, experts)
    inspected = not (plain or method.shows_faults)

    def name_faults():
        """Reads everything once more, to name all that is at fault."""
        check_compatible(experts, base if method.needs_base else None)

    pieces: Optional[Iterable[torch.Tensor]]
    if not floating:
        pieces = flat[:1]
    elif plain:
        pieces = sum_pieces(stored, None)
    else:
        if not method.piecewise:
            if inspected and not all(map(is_finite, inputs)):
                name_faults()
            inspected = False
        pieces = on_device(method, name, stored, anchor)
        if pieces is None:
            pieces = method.formula_pieces(name, stored, anchor)
    hashers = {
        model: (
            model.hashing.begin(name),
            tensor_bytes(tensor),
            tensor.element_size(),
        )
        for model, tensor in zip(models, flat)
        if model.hashing is not None and tensor.numel() == first.numel()
    }

    def look(begin, end):
        """Hashes and inspects a stretch of the inputs: it is in the cache then."""
        for hasher, content, size in hashers.values():
            hasher.update(content[begin * size : end * size])
        if inspected and not all(is_finite(each[begin:end]) for each in flat):
            name_faults()

    seen = made = 0
    pieces = iter(pieces)
    while True:
        # before it is merged: hashing is slow enough to read ahead for
        end = min(made + BLOCK, first.numel())
        look(seen, end)
        seen = end
        piece = next(pieces, None)
        if piece is None:
            break
        made += piece.numel()
        result = piece.detach().to(first.dtype)
        if floating and not is_finite(result):
            # a first pass may have carried another tensor's NaN to here
            name_faults()
            raise ValueError(
                f"Merging {name} with '{method.name}' gave a value that is not "
                f"finite in {first.dtype}: check the method's coefficients."
            )
        yield result
    if made != first.numel():
        raise ValueError(
            f"Merge method '{method.name}' made {made} values out of {name} "
            f"of shape {tuple(first.shape)}."
        )
    for model, (hasher, *_) in hashers.items():
        model.hashing.end(name, hasher)
    for tensor in inputs:
        release(tensor)


def formula_pieces(
    method: Any,
    name: str,
    experts: list[torch.Tensor],
    base: list[torch.Tensor],
) -> Iterable[torch.Tensor]:
    """Merges one tensor by the formula of a method, where its inputs are.

    Arguments
    ---------
    method : MergeMethod
        Whose formula is used.
    name : str
        Of the tensor.
    experts : list of torch.Tensor
        As stored.
    base : list of torch.Tensor
        One, or none.

    Returns
    -------
    pieces : iterable of torch.Tensor
        As of ``MergeMethod.merge_pieces``.
    """
    if not method.piecewise:
        # One layout, so that no kernel gives other digits for another
        wide = torch.promote_types(experts[0].dtype, torch.float32)
        experts = [tensor.to(wide).contiguous() for tensor in experts]
        base = [tensor.to(wide).contiguous() for tensor in base]
    return method.merge_pieces(name, experts, base[0] if base else None)


def float_names(weights: Weights) -> list[str]:
    """The names that a formula sees: floats that are not running statistics.

    Tied names are listed once.

    Arguments
    ---------
    weights : Weights
        An open mapping.

    Returns
    -------
    names : list of str
    """
    return [
        name
        for name in weights.names()
        if weights.dtype(name).is_floating_point
        and not is_statistic(name, [weights])
        and name not in weights.tied
    ]


def mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Plain mean, summed in float64 so that no order or count shows in it.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Of one shape and type.

    Returns
    -------
    mean : torch.Tensor
        Of the same type.
    """
    return weighted_sum(tensors, None)


def weighted_sum(
    tensors: list[torch.Tensor], weights: Optional[list[float]]
) -> torch.Tensor:
    """``Σ w_t θ_t`` in float64, or the plain mean.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Of one shape and type.
    weights : list of float, optional
        One a tensor; ``None`` adds up and divides by their number.

    Returns
    -------
    total : torch.Tensor
        Of the same type.
    """
    first = tensors[0]
    pieces = sum_pieces(tensors, weights)
    return joined(pieces, first.shape, first.dtype, first.device)


def sum_pieces(
    tensors: list[torch.Tensor], weights: Optional[list[float]]
) -> Iterator[torch.Tensor]:
    """The pieces of ``weighted_sum``, summed in float64.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Of one shape and type.
    weights : list of float, optional
        One a tensor; ``None`` adds up and divides by their number.

    Yields
    ------
    total : torch.Tensor
        Flat, and valid until the next.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    if weights is None and not any(tensor.is_cuda for tensor in flat):
        yield from _means([tensor.detach() for tensor in flat])
        return
    step = suited(flat[0], BLOCK)
    longest = min(step, flat[0].numel())
    sums = flat[0].new_empty(2, longest, dtype=torch.float64)
    for where in walk(flat, step=step):
        total, part = sums[:, : where.stop - where.start]
        total.copy_(flat[0][where])
        if weights is not None:
            total.mul_(weights[0])
        for index in range(1, len(flat)):
            # converting first is faster than adding numbers of two types
            part.copy_(flat[index][where])
            total.add_(part, alpha=1 if weights is None else weights[index])
        if weights is None:
            total.div_(len(flat))
        yield total


def _means(flat):
    """The plain mean on the CPU, where NumPy widens and adds in one step.

    So a thread holds Python's lock half as often as with torch.
    """
    dtype = flat[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    longest = min(BLOCK, flat[0].numel())
    sums = np.empty(longest, np.float64)
    means = torch.empty(longest, dtype=torch.float64)
    if dtype == torch.float32:  # others are rounded once, from float64
        means = means.to(dtype)
    for where in walk(flat, step=BLOCK):
        size = where.stop - where.start
        total, mean = sums[:size], means[:size]
        with np.errstate(all="ignore"):  # the result is looked at anyway
            np.copyto(total, flat[0][where].to(wide).numpy())
            for tensor in flat[1:]:
                np.add(total, tensor[where].to(wide).numpy(), out=total)
            np.divide(total, len(flat), out=mean.numpy(), casting="same_kind")
        yield mean


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    The sum of finite values is finite unless it overflows, and a sum is much
    cheaper than a comparison of each entry: only a suspicious sum is looked
    into.
    """
    if tensor.numel() <= KEPT * PIECE:
        return _is_finite(tensor)
    for block in tensor.reshape(-1).split(KEPT * PIECE):
        if not _is_finite(block):
            return False
        release(block)
    return True


def _is_finite(tensor):
    total = tensor.sum(dtype=torch.float32).item()
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())
