"""Task vectors, a piece at a time.

A task vector ``τ_t = θ_t − θ_0`` is what fine-tuning did to a model (Ilharco
et al., "Editing models with task arithmetic", ICLR 2023). Most methods treat
each entry of it alone, or need one number for the whole model. Such methods
never hold a task vector: they walk over a tensor in pieces that fit in the
processor's cache, which is also the fastest way to do several cheap things to
each entry.

The pieces are always the same ones, so that a method gives the same bits
however the tensors are read.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.task_vectors import add_to_base
>>> pieces = add_to_base(
...     lambda vectors, where: sum(vectors),
...     [torch.tensor([2.0, 0.0]), torch.tensor([1.0, 5.0])],
...     torch.tensor([1.0, 1.0]),
... )
>>> list(pieces)
[tensor([2., 4.])]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterator
from typing import Callable, Optional

import torch

from speechbrain_merge.methods.pieces import walk
from speechbrain_merge.methods.running_statistics import is_statistic
from speechbrain_merge.weights import Weights, common_ties


def merged_names(experts: list[Weights]) -> list[str]:
    """The names that a formula merges: floats, each tie once, no statistics.

    Arguments
    ---------
    experts : list of Weights
        Open mappings.

    Returns
    -------
    names : list of str
    """
    # what is tied in the first expert alone is merged as two tensors
    tied, first = common_ties(experts), experts[0]
    apart = [name for name in first.tied if name not in tied]
    own = [name for name in first.names() if name not in first.tied]
    return [
        name
        for name in own + apart
        if first.dtype(name).is_floating_point
        and not is_statistic(name, experts)
    ]


def precision(
    weights: Weights, names: Optional[list[str]] = None
) -> torch.dtype:
    """The type that whole-model arithmetic needs: float64 if any tensor does.

    Arguments
    ---------
    weights : Weights
        Open mapping.
    names : list of str, optional
        The tensors that take part; all by default.

    Returns
    -------
    dtype : torch.dtype
        ``torch.float32`` or ``torch.float64``.
    """
    needed = torch.float32
    for name in weights.names() if names is None else names:
        needed = torch.promote_types(needed, weights.dtype(name))
    return needed


def flat_task_vectors(
    experts: list[torch.Tensor], base: torch.Tensor, where: slice
) -> list[torch.Tensor]:
    """The same piece of every task vector.

    Arguments
    ---------
    experts : list of torch.Tensor
        Flat tensors of any floating-point type.
    base : torch.Tensor
        Likewise.
    where : slice
        The piece.

    Returns
    -------
    vectors : list of torch.Tensor
        New tensors in float32, or in float64 where that is how the weights are
        stored.
    """
    needed = torch.promote_types(base.dtype, torch.float32)
    anchor = base[where].to(needed)
    return [expert[where].to(needed) - anchor for expert in experts]


def tensor_magnitudes(
    experts: list[torch.Tensor], base: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The magnitudes of one task vector after the other.

    Arguments
    ---------
    experts : list of torch.Tensor
        One tensor an expert.
    base : torch.Tensor
        The tensor of the base.

    Yields
    ------
    magnitudes : torch.Tensor
        Flat, and valid until the next; it may be changed.
    """
    anchor = base.reshape(-1)
    needed = torch.promote_types(base.dtype, torch.float32)
    magnitudes = anchor.new_empty(base.numel(), dtype=needed)
    for expert in experts:
        flat = expert.reshape(-1)
        for where in walk([flat, anchor]):
            vector = flat_task_vectors([flat], anchor, where)[0]
            torch.abs(vector, out=magnitudes[where])
        yield magnitudes


def scaled_sum(
    vectors: list[torch.Tensor], scales: list[float]
) -> torch.Tensor:
    """``Σ λ_t τ_t`` of one piece; changes the first vector.

    Arguments
    ---------
    vectors : list of torch.Tensor
        Of one shape and type.
    scales : list of float
        One a vector.

    Returns
    -------
    total : torch.Tensor
    """
    total = vectors[0].mul_(scales[0])
    for vector, scale in zip(vectors[1:], scales[1:]):
        total.add_(vector, alpha=scale)
    return total


def add_to_base(
    formula: Callable[[list[torch.Tensor], slice], torch.Tensor],
    experts: list[torch.Tensor],
    base: torch.Tensor,
    step: Optional[int] = None,
) -> Iterator[torch.Tensor]:
    """``θ_0 + formula(τ_1 … τ_T)``, piece by piece.

    Arguments
    ---------
    formula : callable
        Takes the pieces of the task vectors (a list of flat tensors that it
        may change) and the slice that says which piece it is; gives what to
        add to the base there.
    experts : list of torch.Tensor
        One tensor an expert.
    base : torch.Tensor
        The tensor of the base.
    step : int, optional
        How many entries a piece has. By default as suits the base's device.

    Yields
    ------
    merged : torch.Tensor
        Flat: the pieces of the merged tensor, in order.
    """
    flat = [expert.reshape(-1) for expert in experts]
    anchor = base.reshape(-1)
    for where in walk([*flat, anchor], step=step):
        change = formula(flat_task_vectors(flat, anchor, where), where)
        yield change.add_(anchor[where].to(change.dtype))
