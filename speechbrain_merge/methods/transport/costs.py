"""The cost of matching two units: distances between their weights.

Example
-------
>>> import torch
>>> squared_distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
tensor([[9.],
        [4.]])

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.transport.moves import is_order, move
from speechbrain_merge.methods.transport.spaces import Symmetry
from speechbrain_merge.weights import Weights, release
from speechbrain_merge.weights.dtypes import common_dtype


def squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Squared distances between all rows.

    Arguments
    ---------
    left, right : torch.Tensor
        (units, weights or samples) of anchor and source.

    Returns
    -------
    torch.Tensor
        (units of the anchor, units of the source). On a GPU in float64, see
        ``speechbrain_merge.methods.devices``.
    """
    wide = common_dtype([left.dtype, least_of(left)])
    left, right = left.to(wide), right.to(wide)
    lengths = torch.linalg.vector_norm
    squares = lengths(left, dim=1).square()[:, None]
    squares = squares + lengths(right, dim=1).square()
    return squares.addmm_(left, right.T, alpha=-2)


def least_of(tensor: torch.Tensor) -> torch.dtype:
    """The type that distances are computed in at least.

    Arguments
    ---------
    tensor : torch.Tensor
        On the device that computes.

    Returns
    -------
    torch.dtype
    """
    return torch.float64 if tensor.is_cuda else torch.float32


def of_mean_one(cost: torch.Tensor) -> torch.Tensor:
    """Costs in units of their mean, so that others can be added to them.

    Arguments
    ---------
    cost : torch.Tensor
        Any shape.

    Returns
    -------
    torch.Tensor

    Example
    -------
    >>> of_mean_one(torch.tensor([[1.0, 3.0]]))
    tensor([[0.5000, 1.5000]])
    """
    mean = cost.mean(dtype=torch.float64)
    return cost / mean.to(cost.dtype) if mean > 0 else cost


def counted_twice(
    symmetry: Symmetry, source: Weights, anchor: Weights
) -> set[str]:
    """Second names of tensors that both models have under another name too.

    Arguments
    ---------
    symmetry : Symmetry
        Of both models; it says which names may be one tensor.
    source, anchor : Weights
        Open mappings.

    Returns
    -------
    set of str
        A module of Whisper has its words twice, a file once: what is left out
        here makes both count them once.
    """
    return {
        alias
        for alias, kept in symmetry.tied.items()
        if _tied(source, alias, kept) and _tied(anchor, alias, kept)
    }


def _tied(weights, alias, kept):
    """Whether two names of a model are one tensor, or its copy."""
    if weights.tied.get(alias, alias) == weights.tied.get(kept, kept):
        return True
    first, second = weights[alias], weights[kept]
    same = first.shape == second.shape and torch.equal(first, second)
    release(first)
    release(second)
    return same


def within_by_source(
    part: torch.Tensor, axis: int, transport: torch.Tensor
) -> torch.Tensor:
    """Positions inside blocks as in the anchor, rows as in the source.

    Arguments
    ---------
    part : torch.Tensor
        What ``piece.take`` gave.
    axis : int
        The axis that is a position inside the block of the row.
    transport : torch.Tensor
        Order or matrix of the rows.

    Returns
    -------
    torch.Tensor
        Of the same shape.
    """
    if is_order(transport):
        size = part.shape[axis]
        back = torch.argsort(transport)
        # the block of the anchor where each row of the source goes
        block = (back // size).reshape(-1, size)[:, 0]
        inside = (transport % size).reshape(-1, size)[block]
        inside = inside.repeat_interleave(size, 0)
        shape = [1] * part.ndim
        shape[0], shape[axis] = inside.shape
        inside = inside.to(part.device)
        return part.gather(axis, inside.reshape(shape).expand(part.shape))
    return move(part, axis, torch.eye(part.shape[axis], dtype=part.dtype))
