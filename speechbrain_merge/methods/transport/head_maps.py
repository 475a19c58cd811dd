r"""Invertible maps inside attention heads: more symmetries than permutations.

Between what writes the values of a head and what reads them there is no
nonlinearity that looks at single units, nor is there between queries and keys.
So any invertible matrix of a head's size can stand there, and be undone on the
other side, without the model computing anything else. With W_v, b_v the rows of
a head's values and W_o the columns that read them,

    W_v ← M W_v,    b_v ← M b_v,    W_o ← W_o M⁻¹

and for its queries and keys

    W_q ← Q W_q,    b_q ← Q b_q,    W_k ← Q⁻ᵀ W_k,    b_k ← Q⁻ᵀ b_k

where with relative positions (Transformer-XL) the biases u and v of queries go
with the queries, and the projection of positions with the keys. Rotary
positions rotate the units of queries and keys in pairs, each at its own speed,
so that only the values of such heads have this freedom. Rotations inside heads,
which are their own inverse transposes, are those of Zhang et al. ("Beyond the
permutation symmetry of transformers: the role of rotation for model fusion",
arXiv 2502.00264); which symmetries a transformer has where is the subject of
Theus et al., arXiv 2506.22712.

Rotations of the residual stream itself need readers that all read it through
norms, and writers that end in a matrix. Something stands in the way of that in
each architecture that has a map, see "Why the stream is not rotated" in
``docs/fusion.md``; streams have permutations alone.

*Rotations* are found in closed form (orthogonal Procrustes): of all rotations
the one that brings the head nearest to the anchor's. *Invertible* maps go on
from there by L-BFGS on the same squared distance, head by head, and are kept
where they are well conditioned.

Example
-------
>>> sums = torch.tensor([[[0.0, -2.0], [1.0, 0.0]]])
>>> quarter_turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
>>> torch.allclose(nearest_rotations(sums), quarter_turn, atol=1e-6)
True

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.transport.spaces import Piece, Symmetry
from speechbrain_merge.weights import Weights, with_changed

INSIDE = ("permutations", "rotations", "invertible")
# A map that stretches more than this would not survive float32
CONDITION = 100.0
ROUNDS = 100


def head_spaces(found: Symmetry) -> list[str]:
    """The spaces whose heads may be turned inside.

    Arguments
    ---------
    found : Symmetry
        Of a model.

    Returns
    -------
    list of str
    """
    return [
        space
        for blocks in found.blocks.values()
        if len(blocks.spaces) > 1
        for space in blocks.spaces
        if space not in blocks.fixed_inside and not found.spaces[space].pinned
    ]


def is_dual(piece: Piece, axis: int) -> bool:
    """Whether an axis takes the inverse transpose of a map.

    What reads values does, and what is multiplied with queries.

    Arguments
    ---------
    piece : Piece
        Of a tensor.
    axis : int
        One of its axes.

    Returns
    -------
    bool
    """
    return axis > 0 or axis in piece.dual


def nearest_rotations(sums: torch.Tensor) -> torch.Tensor:
    """The rotations R that maximise ``trace(Rᵀ S)``.

    Arguments
    ---------
    sums : torch.Tensor
        S, [heads, size, size]: products of anchor and source, ``A Bᵀ``.

    Returns
    -------
    torch.Tensor
        The same shape: the orthogonal part of each.
    """
    left, _, right = torch.linalg.svd(sums)
    return left @ right


def find_head_maps(
    found: Symmetry, source: Weights, anchor: Weights, inside: str
) -> dict:
    """Maps inside heads that bring a model nearer to another.

    Arguments
    ---------
    found : Symmetry
        Of both models.
    source : Weights
        The model that is aligned, with its heads and units matched.
    anchor : Weights
        The model to align to.
    inside : str
        "rotations" or "invertible"; "permutations" finds none.

    Returns
    -------
    dict
        Name of a space to its maps, [heads, size, size] in float64.
    """
    maps = {}
    for space in head_spaces(found) if inside != "permutations" else ():
        number = found.blocks[found.spaces[space].blocks].number
        sides = {False: [], True: []}
        for piece, axis in found.pieces_of(space):
            if piece.name in found.tied:
                continue
            sides[is_dual(piece, axis)].append(
                [
                    piece.take(weights[piece.name])
                    .double()
                    .movedim(axis, 0)
                    .reshape(number, found.spaces[space].size // number, -1)
                    for weights in (anchor, source)
                ]
            )
        pairs = [
            tuple(torch.cat(parts, -1) for parts in zip(*side))
            for side in sides.values()
            if side
        ]
        sums = torch.stack([mine @ other.mT for mine, other in pairs]).sum(0)
        rotations = nearest_rotations(sums)
        maps[space] = rotations
        if inside == "invertible" and len(pairs) == 2:
            maps[space] = _stretched(rotations, *pairs)
    return maps


def _stretched(rotations, primal, dual):
    """Invertible maps of a lower distance, where they are well conditioned."""

    def distances(maps):
        inverse = torch.linalg.inv(maps).mT
        far = (maps @ primal[1] - primal[0]).square().sum((-2, -1))
        return far + (inverse @ dual[1] - dual[0]).square().sum((-2, -1))

    free = rotations.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [free], max_iter=ROUNDS, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        total = distances(free).sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(closure)
    made = free.detach()
    with torch.no_grad():
        fits = torch.isfinite(made).all(-1).all(-1)
        made = torch.where(fits[:, None, None], made, rotations)
        fits = (distances(made) < distances(rotations)) & (
            torch.linalg.cond(made) < CONDITION
        )
    return torch.where(fits[:, None, None], made, rotations)


def turn_tensor(tensor: torch.Tensor, pieces: list, maps: dict) -> torch.Tensor:
    """A tensor with the heads of all of its pieces turned inside.

    Arguments
    ---------
    tensor : torch.Tensor
        As stored.
    pieces : list of Piece
        Its pieces.
    maps : dict
        Of ``find_head_maps``.

    Returns
    -------
    torch.Tensor
        New where something is turned, of the same shape and type.
    """
    if not any(axis in maps for piece in pieces for axis in piece.axes):
        return tensor
    turned = tensor.double().clone()
    for piece in pieces:
        part = piece.take(turned)
        for axis, space in enumerate(piece.axes):
            if space not in maps:
                continue
            one = maps[space]
            one = torch.linalg.inv(one).mT if is_dual(piece, axis) else one
            rows = part.movedim(axis, 0)
            blocks = rows.reshape(len(one), one.shape[-1], -1)
            part = (one @ blocks).reshape(rows.shape).movedim(0, axis)
        if piece.rows is None:
            turned = part.reshape(turned.shape)
        else:
            shape = (len(piece.rows), *turned.shape[1:])
            turned[piece.rows] = part.reshape(shape)
    return turned.to(tensor.dtype).contiguous()


def turned_weights(weights: Weights, found: Symmetry, maps: dict) -> Weights:
    """Open weights whose heads are turned inside as each tensor is read.

    Arguments
    ---------
    weights : Weights
        Open mapping.
    found : Symmetry
        Of the model.
    maps : dict
        Of ``find_head_maps``.

    Returns
    -------
    Weights
        Reads through the first, and is closed with it.
    """

    def turn(name, tensor):
        return turn_tensor(tensor, found.pieces[name], maps)

    return with_changed(weights, found.pieces, turn)
