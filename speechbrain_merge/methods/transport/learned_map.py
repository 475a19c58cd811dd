"""Maps that were learned, read from where they were written.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from typing import Optional

import torch

from speechbrain_merge.methods.transport.alignment import Alignment
from speechbrain_merge.methods.transport.symmetry import Symmetry, symmetry
from speechbrain_merge.weights import fold, open_weights, verify_own_hash


def read_learned_map(
    source, path, architecture="detect", heads: Optional[int] = None
) -> Alignment:
    """The alignment of a model by a map that was learned.

    Arguments
    ---------
    source : any source of ``open_weights``
        The model that is aligned.
    path : any source of ``open_weights``
        Name of a space to its order, as ``learn_matching`` writes it.
    architecture, heads
        As for ``find_alignment``.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        Where the map is not that of such a model, or was damaged.
    """
    with open_weights(source) as weights, open_weights(path) as stored:
        verify_own_hash(stored)
        found = symmetry(fold(weights), architecture, heads)
        orders = {name: stored[name].clone() for name in stored}
    check_orders(found, orders, f"{stored.label}, a map of {weights.label}")
    return Alignment(found, orders)


def check_orders(found: Symmetry, orders: Mapping, where: str) -> None:
    """Raises unless orders leave what the network computes as it is.

    Arguments
    ---------
    found : Symmetry
        Of the model that is moved.
    orders : dict
        Name of a space to its order.
    where : str
        Where the orders come from, for the message.

    Raises
    ------
    ValueError
        Where a space is not there or cannot move, an order is none, or the
        spaces of attention heads do not move by whole heads, all alike.
    """
    blocks_of: dict = {}
    for name, order in orders.items():
        space = found.spaces.get(name)
        if space is None or space.pinned:
            raise ValueError(
                f"{where}: it moves '{name}', which the model does not have, "
                "or which cannot move there. It is the map of another model. "
                "Learn it again."
            )
        if (
            not isinstance(order, torch.Tensor)
            or order.dtype != torch.int64
            or not torch.equal(order.sort().values, torch.arange(space.size))
        ):
            raise ValueError(
                f"{where}: '{name}' is no order of {space.size} units. Learn "
                "the map again."
            )
        if space.blocks:
            blocks_of.setdefault(space.blocks, []).append(name)
    for each, names in blocks_of.items():
        blocks = found.blocks[each]
        stays = torch.arange(blocks.number)
        moved = {}
        for name in blocks.spaces:
            if found.spaces[name].pinned or name not in orders:
                moved[name] = stays
                continue
            grid = orders[name].unflatten(0, (blocks.number, -1))
            size = grid.shape[1]
            moved[name] = grid[:, 0] // size
            inside = grid % size
            if (grid // size != moved[name][:, None]).any() or (
                name in blocks.fixed_inside
                and (inside != torch.arange(size)).any()
            ):
                raise ValueError(
                    f"{where}: '{name}' mixes the units of {blocks.number} "
                    f"blocks ('{each}', such as attention heads), which only "
                    "move as a whole. Learn the map again."
                )
        first = stays if blocks.fixed_order else moved[names[0]]
        apart = [
            name for name, order in moved.items() if not order.equal(first)
        ]
        if apart:
            raise ValueError(
                f"{where}: the blocks of '{apart[0]}' move otherwise than "
                f"they have to for '{each}'. Learn the map again."
            )
