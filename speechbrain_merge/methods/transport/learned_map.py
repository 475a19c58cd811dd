"""Maps that were learned, read from where they were written.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.transport.alignment import Alignment
from speechbrain_merge.methods.transport.symmetry import Symmetry, symmetry
from speechbrain_merge.records.checked import digest_text
from speechbrain_merge.weights import (
    ChangedContent,
    Weights,
    fold,
    open_weights,
    verify,
    verify_own_hash,
)
from speechbrain_merge.weights.verification import hash_like

logger = get_logger(__name__)


def read_learned_map(
    source: Any,
    path: Any,
    architecture: Any = "detect",
    heads: Optional[int] = None,
    anchor: Optional[Any] = None,
    label: Optional[str] = None,
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
    anchor : any source of ``open_weights``, optional
        The model that it is aligned to.
    label : str, optional
        What errors call the model that is aligned; by default its own label.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        Where the map is not that of such a model, was learned of other weights
        or to another anchor, or was damaged. A map without a record of what it
        was learned of is warned of.
    """
    with open_weights(source) as weights, open_weights(path) as stored:
        verify_own_hash(stored)
        _check_model(stored, "source", weights, label)
        if anchor is not None:
            with open_weights(anchor) as target:
                _check_model(stored, "anchor", target)
        found = symmetry(fold(weights), architecture, heads)
        orders = {name: stored[name].clone() for name in stored}
    check_orders(found, orders, f"{stored.label}, a map of {weights.label}")
    return Alignment(found, orders)


def _check_model(
    stored: Weights, role: str, weights: Weights, label: Optional[str] = None
) -> None:
    """Raises where a map is on record as that of other weights."""
    known = stored.metadata.get(role)
    if known is None:
        logger.warning_once(
            f"{stored.label} does not say of which models it was learned: "
            "whether it belongs to these is not known. Learn it again to have "
            "it checked."
        )
        return
    digest_text(known, f"{stored.label}, metadata '{role}'")
    place = Path(weights.label)
    where = place if place.is_file() or place.is_dir() else None
    try:
        # as it lies there, whatever dtype it is merged in
        with open_weights(where or weights) as found:
            verify(found, known, path=where)
        return
    except ChangedContent:
        code = hash_like(where or weights, known)
    name = f"{label} ({weights.label})" if label else weights.label
    name = weights.label if label == weights.label else name
    given = "was given for" if role == "source" else "was given to align to"
    message = (
        f"{stored.label}, metadata '{role}': this map was learned of a model "
        f"with the hash {known}, and {given} {name}, which has {code}."
    )
    if where is None:
        # perhaps the same weights in another dtype
        logger.warning_once(message)
        return
    raise ValueError(
        f"{message} Give each expert its own map, in their order or by their "
        "labels, with the anchor that it was learned for, or learn it again."
    )


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
