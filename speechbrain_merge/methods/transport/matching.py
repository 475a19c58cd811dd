"""Finding the map of each space: one model's units for another's.

Two units are alike where all the weights that write or read them are. The cost
of a pair is the sum over all pieces of the space, of the distance between what
belongs to the one and what belongs to the other; the other axes of each piece
have to be aligned already for that to mean something, so spaces are matched in
order:

1. *In sequence*: at each step the space of which most is settled, judged by
   the pieces whose other axes are settled; it starts at the features and at the
   labels, which have an order of their own. This is the paper's single pass,
   with input-aligned weights.
2. *Iterated*: again and again by all pieces, until no map changes, as in Git
   Re-Basin's weight matching. Each step only lowers the distance between the
   models.

Heads are matched by the costs of their best inner maps, one for queries and
keys, one for values and outputs. Where these are compared by what they do, each
cost is first divided by its mean, as activations and weights have no unit in
common. A tensor that has two names in both models counts once.

Authors
 * The speechbrain_merge authors 2026
"""

from functools import partial

import torch

from speechbrain_merge.methods.devices import computed
from speechbrain_merge.methods.transport.costs import (
    counted_twice,
    least_of,
    of_mean_one,
    squared_distances,
    within_by_source,
)
from speechbrain_merge.methods.transport.moves import is_order, move_piece
from speechbrain_merge.weights import release
from speechbrain_merge.weights.dtypes import common_dtype
from speechbrain_merge.weights.mapping import Weights

CPU = torch.device("cpu")


class Matching:
    """The maps of all spaces, as far as they are found.

    Arguments
    ---------
    symmetry : Symmetry
        Of both models.
    source : Weights
        The model to be aligned.
    anchor : Weights
        The model to align to.
    solver : callable
        From a matrix of costs to a transport; see ``assignment``.
    block_solver : callable
        The same for whole blocks, such as heads.
    squared : bool
        Whether distances are squared.
    activations : dict, optional
        Name of a space to a pair of matrices (units × samples), of anchor and
        source, that take the place of weights.
    solvers : dict, optional
        Name of a space to another solver.
    apart : tuple of str
        Spaces whose map is the mean of one map for each tensor, rather than
        one map by the sum of all costs.
    device : torch.device, optional
        Where distances are computed. Costs, and the maps that solvers find by
        them, are on the CPU.
    """

    name = "align"
    on_device = True

    def __init__(
        self,
        symmetry,
        source: Weights,
        anchor: Weights,
        solver,
        block_solver,
        squared=True,
        activations=None,
        solvers=None,
        apart=(),
        device=CPU,
    ):
        self.device = device
        self.symmetry = symmetry
        self.source, self.anchor = source, anchor
        self.solver, self.block_solver = solver, block_solver
        self.solvers = solvers or {}
        self.squared, self.apart = squared, apart
        self.activations = activations or {}
        self.transports = {}
        twice = counted_twice(symmetry, source, anchor)
        self.places = {
            name: [
                place
                for place in symmetry.pieces_of(name)
                if place[0].name not in twice
            ]
            for name in self.free()
        }
        self.units = self._units()

    def free(self):
        """Names of the spaces that can move."""
        still = {
            space
            for blocks in self.symmetry.blocks.values()
            if blocks.fixed_order
            for space in blocks.spaces
            if space in blocks.fixed_inside
        }
        return [
            name
            for name, space in self.symmetry.spaces.items()
            if not space.pinned and name not in still
        ]

    def _units(self):
        """The units of matching: a space, or all spaces of some blocks."""
        units = {}
        for name in self.free():
            blocks = self.symmetry.spaces[name].blocks
            units.setdefault(blocks or name, []).append(name)
        return list(units.values())

    def in_sequence(self, show=lambda unit: None):
        """Matches all spaces once, each by what is settled.

        Arguments
        ---------
        show : callable, optional
            Called with the spaces after each step.
        """
        waiting = list(self.units)
        while waiting:
            unsettled = {name for unit in waiting for name in unit}
            unit = max(
                waiting, key=lambda one: self._settled_size(one, unsettled)
            )
            self.match(unit, unsettled - set(unit))
            waiting.remove(unit)
            show(unit)

    def iterate(self, sweeps, show=lambda unit: None):
        """Matches spaces by all of their pieces until nothing changes.

        Arguments
        ---------
        sweeps : int or None
            At most so often each; ``None`` for no limit.
        show : callable, optional
            Called with the spaces after each step.

        Returns
        -------
        sweeps : int
            How often it took.
        """
        stale = {name for unit in self.units for name in unit}
        done = 0
        while stale and (sweeps is None or done < sweeps):
            done += 1
            for unit in self.units:
                if not stale.intersection(unit):
                    continue
                stale.difference_update(unit)
                if self.match(unit, keep=True):
                    stale.update(self._neighbours(unit))
                show(unit)
        return done

    def match(self, unit, unsettled=frozenset(), keep=False):
        """Matches one unit.

        Arguments
        ---------
        unit : list of str
            The space, or the spaces of blocks.
        unsettled : set of str
            Spaces whose maps are not known; pieces that lie in them are left
            out.
        keep : bool
            Whether the maps that are there are kept if the new ones are not
            better.

        Returns
        -------
        changed : bool
        """
        blocks = self.symmetry.spaces[unit[0]].blocks
        if blocks:
            costs = {name: self.cost(name, unsettled) for name in unit}
            if any(name in self.activations for name in unit):
                costs = {name: of_mean_one(one) for name, one in costs.items()}
            found = self.match_blocks(self.symmetry.blocks[blocks], costs)
        elif unit[0] in self.apart:
            costs, found = {}, {unit[0]: self._mean_map(unit[0], unsettled)}
        else:
            (name,) = unit
            costs = {name: self.cost(name, unsettled)}
            solver = self.solvers.get(name, self.solver)
            found = {name: solver(costs[name])}
        found = {name: _tidy(one) for name, one in found.items()}
        old = {name: self.transports.get(name) for name in unit}
        if costs and not self._better(costs, found, old):
            found = {name: t for name, t in old.items() if t is not None}
            if keep:
                return False
        for name in unit:
            self.transports.pop(name, None)
        self.transports.update(found)
        return True

    def cost(self, name, unsettled=frozenset(), places=None):
        """The costs of all pairs of units of a space.

        Arguments
        ---------
        name : str
            The space.
        unsettled : set of str
            Spaces whose maps are not known.
        places : list, optional
            Only these of ``pieces_of``.

        Returns
        -------
        torch.Tensor
            (units of the anchor, units of the source).
        """
        size = self.symmetry.spaces[name].size
        if name in self.activations:
            total = computed(
                self,
                f"activations of {name}",
                lambda pair: squared_distances(*pair).cpu(),
                list(self.activations[name]),
            )
            return total if self.squared else total.clamp_(min=0).sqrt_()
        total = torch.zeros(size, size)
        for piece, axis in self.places[name] if places is None else places:
            others = set(piece.axes[:axis] + piece.axes[axis + 1 :])
            if piece.within is not None:
                # its columns follow its rows: known once these have a map
                others = others | {name}
                if name not in self.transports:
                    continue
            if others & unsettled:
                continue
            pair = [self.anchor[piece.name], self.source[piece.name]]
            squares = computed(
                self, piece.name, partial(self._squares, piece, axis), pair
            )
            total = total.to(squares.dtype).add_(squares)
            for tensor in pair:
                release(tensor)
        return total if self.squared else total.clamp_(min=0).sqrt_()

    def _squares(self, piece, axis, pair):
        """Squared distances between units in a piece of anchor and source."""
        anchor, source = pair
        wide = common_dtype([anchor.dtype, least_of(anchor)])
        left = piece.take(anchor).to(wide)
        right = self._aligned(piece.take(source).to(wide), piece, axis)
        size = left.shape[axis]
        return squared_distances(
            left.movedim(axis, 0).reshape(size, -1),
            right.movedim(axis, 0).reshape(size, -1),
        ).cpu()

    def _aligned(self, part, piece, axis):
        """A piece of the source with all axes but one aligned."""
        if piece.within is None:
            return move_piece(part, piece, self.transports, skip=axis)
        return within_by_source(
            part, piece.within, self.transports[piece.axes[0]]
        )

    def _settled_size(self, unit, unsettled):
        """How many weights of a unit have all their other axes settled."""
        if any(name in self.activations for name in unit):
            return float("inf")
        total = 0
        for name in unit:
            for piece, axis in self.places[name]:
                others = set(piece.axes[:axis] + piece.axes[axis + 1 :])
                if piece.within is None and not others & unsettled:
                    size = self.symmetry.spaces[name].size
                    total += torch.Size(piece.shape).numel() / size
        return total

    def _neighbours(self, unit):
        """Spaces whose costs depend on these."""
        return {
            other
            for name in unit
            for piece, _ in self.places[name]
            for other in piece.axes
            if other in self.places and other not in unit
        } | {
            name
            for name in unit
            for piece, _ in self.places[name]
            if piece.within is not None
        }

    def _better(self, costs, found, old):
        """Whether new maps cost clearly less than the old ones."""
        if not all(is_order(one) for one in found.values()):
            return True
        new = before = scale = 0.0
        for name, cost in costs.items():
            units = torch.arange(len(cost))
            last = old[name] if old[name] is not None else units
            if not is_order(last):
                return True
            order = found.get(name, units)
            new += float(cost[units, order].double().sum())
            before += float(cost[units, last].double().sum())
            scale += float(cost.mean(dtype=torch.float64)) * len(cost)
        precise = all(cost.dtype == torch.float64 for cost in costs.values())
        # distances are at least 0, but for rounding
        return before - new > (1e-12 if precise else 1e-6) * abs(scale)

    def _mean_map(self, name, unsettled):
        """The mean of the maps that each tensor alone would ask for."""
        solver = self.solvers.get(name, self.solver)
        maps = []
        for place in self.places[name]:
            cost = self.cost(name, unsettled, [place])
            if cost.max() > cost.min():
                maps.append(_matrix(solver(cost)))
        return torch.stack(maps).mean(0)

    def match_blocks(self, blocks, costs):
        """Maps of the spaces of blocks: inside each pair, then of blocks.

        Arguments
        ---------
        blocks : Blocks
            The blocks.
        costs : dict
            Name of each of their spaces to its costs, anchor × source.

        Returns
        -------
        dict
            Name of a space to its transport.
        """
        number = blocks.number
        size = {name: len(cost) // number for name, cost in costs.items()}
        inner, outer = {}, torch.zeros(number, number, dtype=torch.float64)
        pairs = [
            (new, old)
            for new in range(number)
            for old in range(number)
            if new == old or not blocks.fixed_order
        ]
        for name, cost in costs.items():
            cost = cost.double()
            solver = self.solvers.get(name, self.solver)
            stays = torch.arange(size[name])
            grid = cost.unflatten(1, (number, -1)).unflatten(0, (number, -1))
            for new, old in pairs:
                part = grid[new, :, old]
                keeps = name in blocks.fixed_inside
                order = stays if keeps else solver(part)
                inner[name, new, old] = order
                outer[new, old] += float(
                    part[stays, order].sum()
                    if is_order(order)
                    else (part * order).sum()
                )
        order = torch.arange(number)
        if not blocks.fixed_order:
            order = self.block_solver(outer)
        return {
            name: _composed(order, inner, name, size[name]) for name in costs
        }


def _composed(blocks, inner, name, size):
    """The map of a space from that of its blocks and those inside them."""
    number = len(blocks)
    if is_order(blocks):
        inside = [inner[name, new, int(old)] for new, old in enumerate(blocks)]
        if all(is_order(one) for one in inside):
            return torch.cat(
                [int(old) * size + one for old, one in zip(blocks, inside)]
            )
    shares = _matrix(blocks)
    whole = torch.zeros(number, size, number, size, dtype=torch.float64)
    for new in range(number):
        for old in range(number):
            if shares[new, old] > 0:
                one = _matrix(inner[name, new, old])
                whole[new, :, old] = shares[new, old] * one
    return whole.reshape(number * size, -1)


def _matrix(transport):
    """A transport as a matrix."""
    if is_order(transport):
        eye = torch.eye(len(transport), dtype=torch.float64)
        return eye[transport]
    return transport.double()


def _tidy(transport):
    """Soft maps take half the memory once they are found."""
    return transport if is_order(transport) else transport.float()
