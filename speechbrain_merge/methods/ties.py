"""TIES: trim, elect a sign, merge those who agree.

Yadav et al., "TIES-Merging: Resolving interference when merging models",
NeurIPS 2023. Small entries of a task vector are noise, and entries of opposite
sign cancel; so keep the largest of each, vote on the sign of every weight, and
average over the experts that agree.

Three implementations in use differ (``scope`` chooses among them):

- the authors' keeps the largest entries *of the whole model* (exactly
  ``int(density · n) + 1`` of ``n``, and all that equal the smallest kept), and
  lets the sign that wins in most of the model win where votes cancel exactly.
  This is ``scope="model"``, the default;
- mergekit and PEFT keep the largest of *each tensor* (``int(density · n)``, at
  least one), and let plus win ties: ``scope="tensor"``. There, entries that
  equal the smallest kept are all kept, which mergekit and PEFT decide by
  position;
- mergekit multiplies by an expert's weight before the vote. Here, as in PEFT,
  a scale of its own (``scale=[…]``) does not change an expert's vote.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import TIES
>>> base = {"w": torch.zeros(4)}
>>> experts = [
...     {"w": torch.tensor([4.0, 0.1, -2.0, 0.0])},
...     {"w": torch.tensor([2.0, 0.2, 3.0, 0.1])},
... ]
>>> TIES(density=0.5, scope="tensor")(experts, base)
{'w': tensor([3., 0., 3., 0.])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.election import merge_elected
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import (
    add_to_base,
    flat_task_vectors,
    merged_names,
    pieces,
    precision,
)
from speechbrain_merge.methods.thresholds import (
    at_least,
    kth_largest,
    order_statistics,
)
from speechbrain_merge.weights import depth

AGGREGATES = ("mean", "sum", "max")


@register("ties")
class TIES(MergeMethod):
    """``θ_0 + λ · mean{τ̂_t : sgn τ̂_t = sgn Σ τ̂}``, ``τ̂`` trimmed.

    Arguments
    ---------
    density : float
        Share of entries that survive trimming, in (0, 1]; 0.2 in the paper.
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``.
    scope : str
        What the share is counted in: the whole ``"model"`` as in the paper,
        found in a first pass over the weights, or each ``"tensor"``.
    aggregate : str
        ``"mean"`` over the experts that agree, as in the paper, their
        ``"sum"``, or the entry of ``"max"`` magnitude.

    Example
    -------
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> TIES(density=1)(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([3.])}
    """

    needs_base = True

    def __init__(self, density=0.2, scale=1.0, scope="model", aggregate="mean"):
        super().__init__()
        check_number(density, "density", above=0, at_most=1)
        check_coefficient(scale, "scale")
        check_choice(scope, "scope", ("model", "tensor"))
        check_choice(aggregate, "aggregate", AGGREGATES)
        self.density, self.scale = density, scale
        self.scope, self.aggregate = scope, aggregate

    def prepare(self, experts, base):
        """Finds the magnitude that each expert's entries must reach."""
        self._depths = depth(experts[0].names())
        self._thresholds, self._tie = [0.0] * len(experts), 1
        if self.scope == "model":
            if self.density < 1:
                self._thresholds = whole_model_thresholds(
                    self, experts, base, self.density
                )
            self._tie = self._majority_sign(experts, base)

    def merge_tensor(self, name, experts, base):
        """Trims, elects and merges one tensor."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self._depths
        )
        thresholds = self._thresholds
        if self.scope == "tensor":
            thresholds = self._tensor_thresholds(experts, base)

        def change(vectors, where):
            trimmed = [
                at_least(vector, threshold)
                for vector, threshold in zip(vectors, thresholds)
            ]
            return merge_elected(trimmed, scales, self.aggregate, self._tie)

        return add_to_base(change, experts, base)

    def _tensor_thresholds(self, experts, base):
        """The magnitude to reach in one tensor."""
        rank = max(1, int(self.density * base.numel()))
        if rank >= base.numel():
            return [0.0] * len(experts)
        return [kth_largest((expert - base).abs_(), rank) for expert in experts]

    def _majority_sign(self, experts, base):
        """The sign, 1 or -1, that more of the model's entries elected."""

        def balance(name):
            flat = [expert[name].reshape(-1) for expert in experts]
            anchor, total = base[name].reshape(-1), 0
            for where in pieces(anchor.numel()):
                votes = 0
                for vector, threshold in zip(
                    flat_task_vectors(flat, anchor, where), self._thresholds
                ):
                    votes = at_least(vector, threshold).add_(votes)
                total += int(votes.sign_().sum())
            return total

        names = merged_names(experts)
        balances = self.each(balance, names, f"{self.name}: majority sign")
        return 1 if sum(balances) > 0 else -1


def whole_model_thresholds(method, experts, base, density, change=None):
    """The magnitude that the largest share of each task vector reaches.

    Arguments
    ---------
    method : MergeMethod
        On whose threads, and under whose name, the models are read.
    experts : list of Weights
        Open mappings.
    base : Weights
        Open mapping.
    density : float
        The share, below 1.
    change : callable, optional
        Takes name, piece (a slice) and the task vectors of that piece; gives
        them as they are to be counted, e.g. with some entries dropped.

    Returns
    -------
    thresholds : list of float
        One an expert: ``int(density · n) + 1`` entries have at least this
        magnitude, as in the authors' TIES.
    """
    names = merged_names(experts)
    number = sum(
        int(torch.Size(experts[0].shape(name)).numel()) for name in names
    )
    if number == 0:
        return [0.0] * len(experts)

    def read(see, sample):
        def read_tensor(name):
            flat = [expert[name].reshape(-1) for expert in experts]
            anchor = base[name].reshape(-1)
            for where in pieces(anchor.numel(), sample):
                vectors = flat_task_vectors(flat, anchor, where)
                if change is not None:
                    vectors = change(name, where, vectors)
                for row, vector in enumerate(vectors):
                    see(row, vector.abs_())

        what = "sample" if sample else "thresholds"
        method.each(read_tensor, names, f"{method.name}: {what}")

    rank = int(density * number) + 1
    return order_statistics(
        read,
        [(row, rank) for row in range(len(experts))],
        number,
        precision(experts[0], names),
        signed=False,
    )
