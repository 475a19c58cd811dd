"""How far an alignment went: costs before and after, and how much moved.

Models from one start need no alignment: all maps are the identity, and the
share of units that stay (the trace of the map) is 1. The table says for each
space how far the models are from each other in its weights, before and after.

Example
-------
>>> rows = [
...     {
...         "space": "stream",
...         "units": 2,
...         "before": 4.0,
...         "after": 1.0,
...         "stays": 0.5,
...         "pinned": "",
...     }
... ]
>>> print(alignment_table(rows))
| space | units | distance before | after | left | units that stay | |
|---|---|---|---|---|---|---|
| stream | 2 | 4 | 1 | 25 % | 50 % |  |

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.transport.costs import counted_twice
from speechbrain_merge.methods.transport.moves import is_order, move_piece
from speechbrain_merge.weights.dtypes import common_dtype


def measure(symmetry, source, anchor, transports) -> list[dict]:
    """The distances in each space before and after an alignment.

    Arguments
    ---------
    symmetry : Symmetry
        Of both models.
    source, anchor : Weights
        Open mappings.
    transports : dict
        Name of a space to its transport.

    Returns
    -------
    list of dict
        One a space: ``space``, ``units``, ``before`` and ``after`` (the
        squared distance of all weights that lie in it), ``stays`` (the trace
        of the map as a share of its units) and ``pinned`` (why it cannot
        move).
    """
    before = dict.fromkeys(symmetry.spaces, 0.0)
    after = dict.fromkeys(symmetry.spaces, 0.0)
    twice = counted_twice(symmetry, source, anchor)
    for name, pieces in symmetry.pieces.items():
        if name in twice:
            continue
        left, right = anchor[name], source[name]
        wide = common_dtype([left.dtype, torch.float32])
        for piece in pieces:
            mine = piece.take(left).to(wide)
            other = piece.take(right).to(wide)
            far = float((mine - other).square().sum())
            moved = move_piece(other, piece, transports)
            near = float((mine - moved).square().sum())
            for space in set(piece.axes) - {None}:
                before[space] += far
                after[space] += near
    return [
        {
            "space": name,
            "units": space.size,
            "before": before[name],
            "after": after[name],
            "stays": _trace_share(transports.get(name)),
            "pinned": space.pinned,
        }
        for name, space in symmetry.spaces.items()
    ]


def alignment_table(groups) -> str:
    """A Markdown table of an alignment.

    Arguments
    ---------
    groups : list of dict
        From ``measure``, ``Alignment.groups``.

    Returns
    -------
    str
    """
    lines = [
        "| space | units | distance before | after | left | "
        "units that stay | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in groups:
        left = row["after"] / row["before"] if row["before"] else 1.0
        lines.append(
            f"| {row['space']} | {row['units']} | {row['before']:.4g} | "
            f"{row['after']:.4g} | {100 * left:.0f} % | "
            f"{100 * row['stays']:.0f} % | {row['pinned']} |"
        )
    return "\n".join(lines)


def _trace_share(transport):
    """Trace of a map over its number of units."""
    if transport is None:
        return 1.0
    if is_order(transport):
        stays = transport == torch.arange(len(transport))
        return float(stays.double().mean())
    return float(transport.diagonal().mean())
