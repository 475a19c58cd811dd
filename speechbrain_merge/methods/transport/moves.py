"""Moving the units of a tensor: permutations, and soft maps in their place.

A *transport* of a space is either an order (int64, ``new[i] = old[order[i]]``)
or a matrix (float, ``new = T · old``) whose rows and columns each sum to one;
an order is such a matrix with a single 1 in each row. Spaces without a
transport stay as they are.

Example
-------
>>> import torch
>>> move(torch.tensor([1.0, 2.0]), 0, torch.tensor([1, 0]))
tensor([2., 1.])
>>> move(torch.tensor([1.0, 2.0]), 0, torch.full((2, 2), 0.5))
tensor([1.5000, 1.5000])

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.weights import Weights, with_changed
from speechbrain_merge.weights.dtypes import common_dtype


def is_order(transport: torch.Tensor) -> bool:
    """Whether a transport is a permutation, and not a soft map."""
    return transport.ndim == 1


def move(tensor, axis, transport) -> torch.Tensor:
    """A tensor with the units of one axis moved.

    Arguments
    ---------
    tensor : torch.Tensor
        Any shape.
    axis : int
        The axis.
    transport : torch.Tensor
        Order or matrix.

    Returns
    -------
    torch.Tensor
    """
    transport = transport.to(tensor.device)
    if is_order(transport):
        return tensor.index_select(axis, transport)
    wide = common_dtype([tensor.dtype, transport.dtype])
    moved = torch.tensordot(
        transport.to(wide), tensor.to(wide), dims=([1], [axis])
    )
    return moved.movedim(0, axis)


def move_piece(part, piece, transports, skip=None) -> torch.Tensor:
    """A piece with the units of all of its axes moved.

    Arguments
    ---------
    part : torch.Tensor
        What ``piece.take`` gave.
    piece : Piece
        It says which axis lies in which space.
    transports : dict
        Name of a space to its transport.
    skip : int, optional
        An axis to be left alone.

    Returns
    -------
    torch.Tensor
    """
    rows = transports.get(piece.axes[0])
    if piece.within is not None and rows is not None and skip != 0:
        if not is_order(rows):
            return _move_rows_and_within(part, piece.within, rows)
        part = move(part, 0, rows)
        return _gather_within(part, piece.within, rows)
    for axis, space in enumerate(piece.axes):
        transport = transports.get(space)
        if transport is not None and axis != skip:
            part = move(part, axis, transport)
    return part


def move_tensor(tensor, pieces, transports, keep_norms=False) -> torch.Tensor:
    """A tensor with the units of all of its pieces moved.

    Arguments
    ---------
    tensor : torch.Tensor
        As stored.
    pieces : list of Piece
        Its pieces.
    transports : dict
        Name of a space to its transport.
    keep_norms : bool
        Whether each row is scaled to the length that its rows had in the
        source, on average: soft maps shorten what they mix.

    Returns
    -------
    torch.Tensor
        New, of the same shape and type.
    """
    wide = tensor
    if not all(is_order(one) for one in transports.values()):
        wide = tensor.to(common_dtype([tensor.dtype, torch.float32]))
    # A piece is the whole tensor, or some of its rows
    whole = all(piece.rows is None for piece in pieces)
    moved = wide if whole else wide.clone()
    for piece in pieces:
        old = piece.take(wide)
        new = move_piece(old, piece, transports)
        if keep_norms and new.ndim > 1:
            new = _with_norms(new, old, transports.get(piece.axes[0]))
        if piece.rows is None:
            moved = new.reshape(moved.shape)
        else:
            moved[piece.rows] = new.reshape(len(piece.rows), *moved.shape[1:])
    moved = moved.to(tensor.dtype).contiguous()
    return moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved


def moved_weights(weights, symmetry, transports, keep_norms=False) -> Weights:
    """Open weights whose units are moved as each tensor is read.

    Arguments
    ---------
    weights : Weights
        Open mapping.
    symmetry : Symmetry
        Of the model.
    transports : dict
        Name of a space to its transport.
    keep_norms : bool
        As for ``move_tensor``.

    Returns
    -------
    Weights
        Reads through the first, and is closed with it.
    """

    def move(name, tensor):
        pieces = symmetry.pieces[name]
        return move_tensor(tensor, pieces, transports, keep_norms)

    return with_changed(weights, symmetry.pieces, move)


def _gather_within(part, axis, order):
    """Positions inside a block, in the order of the block of each row."""
    size = part.shape[axis]
    inside = (order % size).reshape(-1, size).repeat_interleave(size, 0)
    shape = [1] * part.ndim
    shape[0], shape[axis] = inside.shape
    index = inside.reshape(shape).expand(part.shape)
    return part.gather(axis, index.to(part.device))


def _move_rows_and_within(part, axis, transport):
    """Rows, and positions inside their blocks, by a soft map."""
    size = part.shape[axis]
    wide = common_dtype([part.dtype, transport.dtype])
    blocks = part.to(wide).movedim(axis, 1).unflatten(0, (-1, size))
    shares = transport.to(part.device, wide).unflatten(1, (-1, size))
    shares = shares.unflatten(0, (-1, size)).transpose(1, 2)
    moved = torch.zeros_like(blocks)
    for new, row in enumerate(shares):
        for old, share in enumerate(row):
            # how much of this block goes there: inside, rows sum to that
            much = share.sum() / size
            if much > 0:
                inner = share / much
                moved[new] += much * torch.einsum(
                    "ij,kl,jl...->ik...", inner, inner, blocks[old]
                )
    return moved.flatten(0, 1).movedim(1, axis)


def _with_norms(new, old, rows):
    """Rows scaled to the mean length of the rows that they were made of."""
    lengths = old.flatten(1).norm(dim=1)
    if rows is not None:
        lengths = move(lengths, 0, rows)
    is_now = new.flatten(1).norm(dim=1)
    factor = torch.where(is_now > 0, lengths / is_now, torch.ones_like(is_now))
    return new * factor.reshape(-1, *[1] * (new.ndim - 1))
