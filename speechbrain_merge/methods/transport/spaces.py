"""Units that are permuted together, and the axes of tensors that hold them.

*Spaces* are sets of units with their sizes, *blocks* are spaces that move
whole, and *pieces* are parts of tensors, each seen as a tensor whose every axis
lies in one space or in none.

Example
-------
>>> piece = Piece("fc.weight", None, (4, 3), ("hidden", None))
>>> spaces = {"hidden": Space("hidden", 4)}
>>> found = Symmetry("mine", spaces, {}, {"fc.weight": [piece]})
>>> [(one.name, axis) for one, axis in found.pieces_of("hidden")]
[('fc.weight', 0)]

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import dataclass, field, replace
from typing import Optional

import torch


@dataclass(frozen=True)
class Space:
    """A set of units that move together, wherever they are written or read.

    Arguments
    ---------
    name : str
        As the map calls it.
    size : int
        Number of units.
    pinned : str
        Why they cannot move; empty where they can.
    blocks : str
        The blocks that they lie in, if any.
    """

    name: str
    size: int
    pinned: str = ""
    blocks: str = ""


@dataclass(frozen=True)
class Blocks:
    """Equal blocks of units that move whole, the same in all of the spaces.

    Arguments
    ---------
    name : str
        As the map calls them.
    spaces : tuple of str
        Spaces that consist of them, such as queries-and-keys, and values.
    number : int
        How many there are.
    fixed_order : bool
        Whether the blocks stay where they are.
    fixed_inside : tuple of str
        Spaces in which the order inside a block stays.
    """

    name: str
    spaces: tuple
    number: int
    fixed_order: bool = False
    fixed_inside: tuple = ()


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, seen such that each axis lies in one space.

    Arguments
    ---------
    name : str
        The tensor.
    rows : torch.Tensor, optional
        Which of its rows; ``None`` for all.
    shape : tuple
        How the rows are seen.
    axes : tuple
        The space of each axis of that shape, or ``None``.
    within : int, optional
        The axis that is a position inside the block of the first axis.
    dual : tuple of int
        Axes whose units are multiplied with those of the other tensors of the
        space, as keys are with queries.
    """

    name: str
    rows: Optional[torch.Tensor]
    shape: tuple
    axes: tuple
    within: Optional[int] = None
    dual: tuple = ()

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """This piece of a tensor; may be a view: not to be changed."""
        part = tensor if self.rows is None else tensor[self.rows]
        return part.reshape(self.shape)


@dataclass(frozen=True)
class Symmetry:
    """The spaces, blocks and pieces of one model; see above.

    Arguments
    ---------
    architecture : str
        The name of its map.
    spaces : dict
        Name to ``Space``.
    blocks : dict
        Name to ``Blocks``.
    pieces : dict
        Name of a tensor to the list of its pieces; not of tensors that have
        no axis that moves.
    tied : dict
        Name of a tensor to the other name that it may have in the model.
    """

    architecture: str
    spaces: dict
    blocks: dict
    pieces: dict
    tied: dict = field(default_factory=dict)

    def pieces_of(self, space: str) -> list:
        """The pieces of tensors that a space lies in.

        Arguments
        ---------
        space : str
            Its name.

        Returns
        -------
        list of (Piece, int)
            A piece and the axis, one pair for each axis.
        """
        return [
            (piece, axis)
            for pieces in self.pieces.values()
            for piece in pieces
            for axis, name in enumerate(piece.axes)
            if name == space
        ]

    def without(self, space: str) -> "Symmetry":
        """A copy without one space, whose units then stay where they are.

        It is no symmetry any more, which tests rely on.
        """
        pieces = {
            name: [
                replace(
                    piece,
                    axes=tuple(
                        None if axis == space else axis for axis in piece.axes
                    ),
                )
                for piece in found
            ]
            for name, found in self.pieces.items()
        }
        return replace(self, pieces=pieces)
