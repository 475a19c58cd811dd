"""Permutations that are learned by the loss.

What lies near in weights need not compute alike: a map that minimises the
distance between two models can leave their mean worse than none at all. Here
the loss of the mean chooses the map. Each step of a *learner* says which mean
to look at, and takes the gradient of the loss there; whoever drives it
(``speechbrain_merge.brain.matching``) has the data.

``StraightThrough`` is the third method of Git Re-Basin (Ainsworth, Hayase and
Srinivasa, ICLR 2023, arXiv 2209.04836, section 3.3). With anchor A, source B
and free weights Θ̃ that start from A,

    π   = argmin over the symmetries of ‖π(B) − Θ̃‖²     (weight matching)
    g   = ∇ loss at (1 − s) A + s π(B)
    Θ̃   ← Adam(Θ̃, g)

so that π is a symmetry in each step, and the gradient goes straight through
it to Θ̃. The share s is 1/2.

``SinkhornRebasin`` (Peña et al., CVPR 2023, arXiv 2212.12042) has a score for
each pair of units, and softens the permutation: ``P = Sinkhorn(X / τ)``, whose
rows and columns sum to 1, mixes the units of B; the gradient reaches X through
it. Heads are mixed as heads, by the sums of what their inner maps match. What
is kept is the permutation of the largest score, a symmetry again.

Both count labelled batches like a training; budgets have to.

Example
-------
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "fc1.weight": ["hidden", "fixed"],
...         "fc2.weight": ["fixed", "hidden"],
...     },
... }
>>> anchor = {"fc1.weight": torch.eye(2), "fc2.weight": torch.ones(1, 2)}
>>> source = {
...     "fc1.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
...     "fc2.weight": torch.ones(1, 2),
... }
>>> learner = StraightThrough(source, anchor, architecture=mine)
>>> learner.midpoint()["fc1.weight"]
tensor([[0.5000, 0.5000],
        [0.5000, 0.5000]])
>>> learner.update({"fc1.weight": torch.ones(2, 2)})  # of some loss
>>> learner.transports()
{'hidden': tensor([1, 0])}
>>> learner.midpoint()["fc1.weight"]
tensor([[1., 0.],
        [0., 1.]])

Authors
 * The speechbrain_merge authors 2026
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Optional

import torch

from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_merge.methods.transport.alignment import Alignment
from speechbrain_merge.methods.transport.assignment import Assignment
from speechbrain_merge.methods.transport.matching import Matching
from speechbrain_merge.methods.transport.moves import move_tensor
from speechbrain_merge.methods.transport.symmetry import Symmetry, symmetry
from speechbrain_merge.weights import (
    agreed_heads,
    check_compatible,
    fold,
    open_weights,
    verify_own_hash,
)
from speechbrain_merge.weights.compatibility import is_like

# Of weight matching in each step; it starts from the last map
SWEEPS = 20
ROUNDS = 20
SHARPNESS = 1.0


class _Learner(ABC):
    """What learners have in common: two models, their symmetry, a midpoint.

    Arguments
    ---------
    source : any source of ``open_weights``
        The model to be aligned; plain, or folded here.
    anchor : any source of ``open_weights``
        The model to align to.
    architecture : str, Path or dict
        As for ``align``.
    heads : int, optional
        As for ``align``.
    start : dict, optional
        Name of a space to the order that learning starts from. Default: all
        units stay where they are.
    learning_rate : float
        Of Adam.
    share : float
        The source's share of the midpoint.
    """

    def __init__(
        self,
        source,
        anchor,
        architecture="detect",
        heads: Optional[int] = None,
        start: Optional[Mapping] = None,
        learning_rate: float = 1e-3,
        share: float = 0.5,
    ):
        check_number(learning_rate, "learning_rate", above=0)
        check_number(share, "share", at_least=0, at_most=1)
        self.share = share
        with ExitStack() as stack:
            opened = [
                stack.enter_context(open_weights(model))
                for model in (source, anchor)
            ]
            self.source, self.anchor = (fold(one) for one in opened)
            self._begin(architecture, heads, start, learning_rate)
            self._opened = stack.pop_all()

    def _begin(self, architecture, heads, start, learning_rate):
        """All that looks into the models, which are open."""
        check_compatible([self.anchor, self.source])
        self.symmetry = symmetry(
            self.source,
            architecture,
            agreed_heads(heads, self.source, self.anchor),
        )
        self.matching = self._matching(self.anchor)
        self.start = {
            name: torch.arange(self.symmetry.spaces[name].size)
            for name in self.matching.free()
        }
        self.start.update(start or {})
        self.matching.transports = dict(self.start)
        self.names = [
            name
            for name in self.symmetry.pieces
            if name not in self.source.tied
            and self.source.dtype(name).is_floating_point
        ]
        self.learned: dict[str, torch.nn.Parameter] = {}
        self._prepare()
        self.optimizer = torch.optim.Adam(
            list(self.learned.values()), lr=learning_rate
        )

    def close(self) -> None:
        """Closes both models."""
        self._opened.close()

    @abstractmethod
    def _prepare(self):
        """Makes ``learned``, the parameters; the first map is ``start``."""

    @abstractmethod
    def _maps(self):
        """The maps of the midpoint, hard or soft."""

    @abstractmethod
    def _backward(self, gradients):
        """From gradients at the midpoint to those of the parameters."""

    @abstractmethod
    def _project(self):
        """From the parameters to the symmetry that they say."""

    def _matching(self, anchor):
        solver = Assignment()
        return Matching(self.symmetry, self.source, anchor, solver, solver)

    def transports(self) -> dict:
        """The symmetry that is found so far: name of a space to its order."""
        return dict(self.matching.transports)

    def midpoint(self) -> dict:
        """Plain weights of the mean that the gradient is asked for."""
        return self.mean_of(self._maps())

    def mean_of(self, transports: Mapping) -> dict:
        """Plain weights of the mean of the anchor and the source, moved.

        Arguments
        ---------
        transports : dict
            Name of a space to its order or matrix.

        Returns
        -------
        dict
        """
        means = {}
        with torch.no_grad():
            for name in self.anchor.names():
                means[name] = self._mean(name, transports)
        return means

    def _mean(self, name, transports):
        mine = self.anchor[name]
        if not mine.dtype.is_floating_point:
            return mine.clone()
        other = self.source[name]
        if name in self.symmetry.pieces:
            other = move_tensor(other, self.symmetry.pieces[name], transports)
        return torch.lerp(mine, other.to(mine.dtype), self.share)

    def update(self, gradients: Mapping) -> None:
        """Learns from the gradient of the loss at the midpoint.

        Arguments
        ---------
        gradients : dict
            Name of a plain weight to its gradient; weights without one are
            left out.
        """
        self.optimizer.zero_grad()
        self._backward(gradients)
        self.optimizer.step()
        self._project()

    def state_dict(self) -> dict:
        """All that is needed to go on: tensors, the optimizer, the map."""
        return {
            "learned": {k: v.detach().clone() for k, v in self.learned.items()},
            "optimizer": self.optimizer.state_dict(),
            "transports": self.transports(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Goes on from a state.

        Arguments
        ---------
        state : dict
            Of ``state_dict``.

        Raises
        ------
        ValueError
            Where it is that of other models or another learner.
        """
        stored = state["learned"]
        if set(stored) != set(self.learned) or not all(
            is_like(tensor, self.learned[name])
            for name, tensor in stored.items()
        ):
            raise ValueError(
                "the state is of other models, or of another learner, or has "
                "a NaN or an infinity"
            )
        self._check_optimizer(state["optimizer"])
        self.check_map(state["transports"])
        with torch.no_grad():
            for name, tensor in stored.items():
                self.learned[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.matching.transports = dict(state["transports"])

    def check_map(self, orders) -> None:
        """Raises a ValueError unless this is a map such as this one finds."""
        if set(orders) != set(self.matching.transports):
            raise ValueError("the map is of other spaces")
        check_orders(self.symmetry, orders, "the state")

    def _check_optimizer(self, state):
        """Raises a ValueError unless a state is one of this optimizer."""
        known = list(self.learned.values())
        moments = state["state"]
        if state["param_groups"] != self.optimizer.state_dict()[
            "param_groups"
        ] or set(moments) - set(range(len(known))):
            raise ValueError("the optimizer is another")
        for number, each in moments.items():
            if set(each) != {"step", "exp_avg", "exp_avg_sq"} or not (
                is_like(each["step"], torch.tensor(0.0))
                and is_like(each["exp_avg"], known[number])
                and is_like(each["exp_avg_sq"], known[number])
            ):
                raise ValueError("the optimizer has other moments")


class StraightThrough(_Learner):
    """Weights Θ̃ that are trained through the permutation nearest to them.

    Memory: Θ̃ with Adam's two moments, in float32.

    Arguments
    ---------
    source, anchor, architecture, heads, start, learning_rate, share
        The two models, how to read them, and how to learn: Θ̃ starts from the
        anchor, the first map is ``start``.
    """

    def _prepare(self):
        """Θ̃, and what looks for the map that brings the source nearest."""
        self.learned = {
            name: torch.nn.Parameter(self.anchor[name].float().clone())
            for name in self.names
        }
        target = {name: self.anchor[name] for name in self.anchor.names()}
        target.update(
            {name: tensor.detach() for name, tensor in self.learned.items()}
        )
        self.matching = self._matching(open_weights(target))
        self.matching.transports = dict(self.start)

    def _maps(self):
        return self.matching.transports

    def _project(self):
        """The symmetry that brings the source nearest to Θ̃."""
        self.matching.iterate(SWEEPS)

    def _backward(self, gradients):
        """The gradient at the midpoint is that of Θ̃."""
        for name, tensor in self.learned.items():
            if name in gradients:
                tensor.grad = gradients[name].detach().to("cpu", torch.float32)


class SinkhornRebasin(_Learner):
    """Scores of pairs of units, of which Sinkhorn's algorithm makes soft maps.

    Memory: a matrix (units × units) of each space, with Adam's two moments.

    Arguments
    ---------
    source, anchor, architecture, heads, start, learning_rate, share
        As for ``StraightThrough``; scores start at 1 where ``start`` puts a
        unit, and at 0 elsewhere.
    temperature : float
        τ: the smaller, the nearer to a permutation.
    """

    def __init__(self, *models, temperature: float = 0.3, **options):
        check_number(temperature, "temperature", above=0)
        self.temperature = temperature
        super().__init__(*models, **options)

    def _prepare(self):
        for name in self.matching.free():
            size = self.symmetry.spaces[name].size
            scores = torch.zeros(size, size)
            scores[torch.arange(size), self.start[name]] = SHARPNESS
            self.learned[name] = torch.nn.Parameter(scores)
        self._project()

    def _maps(self):
        """The soft maps, from which gradients go back to the scores."""
        maps = {}
        for unit in self.matching.units:
            blocks = self.symmetry.spaces[unit[0]].blocks
            if not blocks:
                (name,) = unit
                maps[name] = _sinkhorn(self.learned[name] / self.temperature)
                continue
            number = self.symmetry.blocks[blocks].number
            fixed = self.symmetry.blocks[blocks].fixed_inside
            inner, outer = {}, torch.zeros(number, number)
            for name in unit:
                scores = self.learned[name]
                grid = scores.unflatten(1, (number, -1))
                grid = grid.unflatten(0, (number, -1)).transpose(1, 2)
                if name in fixed:
                    inner[name] = torch.eye(grid.shape[-1]).expand(grid.shape)
                else:
                    inner[name] = _sinkhorn(grid / self.temperature)
                outer = outer + (inner[name] * grid).mean((-2, -1)) * len(
                    inner[name][0, 0]
                )
            if self.symmetry.blocks[blocks].fixed_order:
                shares = torch.eye(number)
            else:
                shares = _sinkhorn(outer / len(unit) / self.temperature)
            for name in unit:
                whole = shares[:, :, None, None] * inner[name]
                size = self.symmetry.spaces[name].size
                maps[name] = whole.transpose(1, 2).reshape(size, size)
        return maps

    def _project(self):
        """The permutation of the largest scores."""
        with torch.no_grad():
            for unit in self.matching.units:
                costs = {name: -self.learned[name].detach() for name in unit}
                blocks = self.symmetry.spaces[unit[0]].blocks
                if blocks:
                    found = self.matching.match_blocks(
                        self.symmetry.blocks[blocks], costs
                    )
                else:
                    (name,) = unit
                    found = {name: self.matching.solver(costs[name])}
                self.matching.transports.update(found)

    def _backward(self, gradients):
        """From the gradient of the midpoint to that of the scores."""
        maps = self._maps()
        total = torch.zeros(())
        for name in self.names:
            if name in gradients:
                moved = move_tensor(
                    self.source[name].float(), self.symmetry.pieces[name], maps
                )
                slope = gradients[name].detach().to("cpu", torch.float32)
                total = total + self.share * (moved * slope).sum()
        if total.requires_grad:
            total.backward()


def _sinkhorn(scores):
    """Scores as a matrix whose rows and columns sum to 1 nearly."""
    logs = scores
    for _ in range(ROUNDS):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


LEARNERS = {
    "straight_through": StraightThrough,
    "sinkhorn": SinkhornRebasin,
}


def check_learning(learning: Optional[Mapping]) -> dict:
    """The options of learning, with defaults, checked.

    Arguments
    ---------
    learning : dict, optional
        ``learner`` ("straight_through" or "sinkhorn"), ``steps``,
        ``learning_rate``, ``share``, ``start`` ("weights", "activations" or
        "identity": the map to start from), ``check_every`` (steps between two
        looks at the selection set, which chooses the map), ``batch_size``
        (null: the recipe's of validation) and ``seed``.

    Returns
    -------
    dict

    Example
    -------
    >>> check_learning({"steps": 100})["learner"]
    'straight_through'
    """
    known = {
        "learner": "straight_through",
        "steps": 300,
        "learning_rate": 1e-3,
        "share": 0.5,
        "start": "activations",
        "check_every": 50,
        "batch_size": None,
        "seed": 0,
    }
    unknown = set(learning or {}) - set(known)
    if unknown:
        raise ValueError(
            f"`learning` has {', '.join(sorted(map(str, unknown)))}; expected "
            f"any of {', '.join(known)}."
        )
    known.update(learning or {})
    check_choice(known["learner"], "learner", tuple(LEARNERS))
    check_choice(
        known["start"], "start", ("weights", "activations", "identity")
    )
    check_whole(known["steps"], "steps", at_least=1)
    check_whole(known["check_every"], "check_every", at_least=1)
    check_whole(known["seed"], "seed")
    if known["batch_size"] is not None:
        check_whole(known["batch_size"], "batch_size", at_least=1)
    check_number(known["learning_rate"], "learning_rate", above=0)
    check_number(known["share"], "share", at_least=0, at_most=1)
    return known


def read_map(
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
