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

from typing import Any, Optional

import torch

from speechbrain_merge.methods.pieces import KEPT, PIECE, walk
from speechbrain_merge.methods.running_statistics import is_statistic
from speechbrain_merge.weights import Weights, check_compatible, release


def merge_entry(
    method: Any,
    name: str,
    experts: list[Weights],
    base: Optional[Weights] = None,
) -> torch.Tensor:
    """Merges the entry of one name by a method, whatever its type.

    Integers and booleans (counters, position ids) are the first expert's.
    Running statistics (``running_statistics``) are averaged. All else goes through the formula in
    float32, or float64 where it is stored so, and back to the stored type.

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

    Returns
    -------
    merged : torch.Tensor
        Shares no memory with any input.

    Raises
    ------
    IncompatibleWeights
        When an input has a NaN or an infinity; names files and tensors.
    ValueError
        When the result is not finite or of another shape.
    """
    first = experts[0][name]
    if not first.is_floating_point():
        return first.clone()
    precision = torch.promote_types(first.dtype, torch.float32)
    stored = [first] + [expert[name] for expert in experts[1:]]
    anchor = base[name] if base is not None and name in base else None
    inputs = stored if anchor is None else [*stored, anchor]
    plain = is_statistic(name, experts)
    if not (plain or method.shows_faults) and not all(
        is_finite(tensor) for tensor in inputs
    ):
        # read everything once more, to name all that is at fault
        check_compatible(experts, base if method.needs_base else None)
    if plain:
        merged = mean(stored)
    elif method.piecewise:
        merged = method.merge_tensor(name, stored, anchor)
    else:
        # One layout, so that no kernel gives other digits for another
        wide = [tensor.to(precision).contiguous() for tensor in stored]
        if anchor is not None:
            anchor = anchor.to(precision).contiguous()
        merged = method.merge_tensor(name, wide, anchor)
    if merged.shape != first.shape:
        raise ValueError(
            f"Merge method '{method.name}' made {tuple(merged.shape)} out of "
            f"{name} of shape {tuple(first.shape)}."
        )
    result = merged.detach().to(first.dtype)
    if not is_finite(result):
        # a first pass may have carried another tensor's NaN to here
        check_compatible(experts, base if method.needs_base else None)
        raise ValueError(
            f"Merging {name} with '{method.name}' gave a value that is not "
            f"finite in {first.dtype}: check the method's coefficients."
        )
    places = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    if result.untyped_storage().data_ptr() in places:
        result = result.clone()
    for tensor in inputs:
        release(tensor)
    return result


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
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = torch.empty_like(flat[0])
    sums = torch.empty(2, PIECE, dtype=torch.float64)
    for where in walk(flat):
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
        result[where] = total
    return result.reshape(tensors[0].shape)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    The sum of finite values is finite unless it overflows, and a sum is much
    cheaper than a comparison of each entry: only a suspicious sum is looked
    into.
    """
    if tensor.numel() == 0:
        return True
    for block in tensor.reshape(-1).split(KEPT * PIECE):
        total = block.sum(dtype=torch.float32)
        if not torch.isfinite(total) and not torch.isfinite(block).all():
            return False
        release(block)
    return True
