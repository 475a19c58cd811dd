"""What has the loss of a mean choose the map: the part that learners share.

Authors
 * The speechbrain_merge authors 2026
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Optional

import torch

from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.transport.assignment import Assignment
from speechbrain_merge.methods.transport.learned_map import check_orders
from speechbrain_merge.methods.transport.matching import Matching
from speechbrain_merge.methods.transport.moves import move_tensor
from speechbrain_merge.methods.transport.symmetry import symmetry
from speechbrain_merge.weights import (
    agreed_heads,
    check_compatible,
    fold,
    open_weights,
)
from speechbrain_merge.weights.compatibility import is_like


class Learner(ABC):
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
        if not self.start:
            raise ValueError(
                f"{self.source.label}: there is nothing to learn. The map of "
                "its architecture pins all spaces, so no unit can move."
            )
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
