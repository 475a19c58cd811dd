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
- mergekit multiplies by an expert's weight before the vote, and divides by the
  sum of the weights of those that agree: ``vote_weights=[…]``, with ``scale``
  for its ``lambda``. In PEFT weights multiply after the vote, and the mean is
  over the number of those that agree: ``scale=[…]``, which does not change an
  expert's vote. The paper has no weights.

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

from functools import partial

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.election import merge_elected
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.pieces import BLOCK, suited
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import (
    add_to_base,
    tensor_magnitudes,
)
from speechbrain_merge.methods.thresholds import at_least, kth_largest
from speechbrain_merge.methods.whole_model import (
    majority_sign,
    model_thresholds,
)

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
    vote_weights : list, dict or None
        What each expert's vote and entries are multiplied by, in any form of
        ``speechbrain_merge.methods.coefficients``, as mergekit's ``weight``. A
        mean is then ``Σ w_t τ̂_t / Σ w_t`` over the experts that agree. A
        negative weight turns an expert's vote round.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> TIES(density=1)(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([3.])}
    """

    needs_base = True
    piecewise = True

    def __init__(
        self,
        density=0.2,
        scale=1.0,
        scope="model",
        aggregate="mean",
        vote_weights=None,
    ):
        super().__init__()
        check_number(density, "density", above=0, at_most=1)
        check_coefficient(scale, "scale")
        check_choice(scope, "scope", ("model", "tensor"))
        check_choice(aggregate, "aggregate", AGGREGATES)
        if vote_weights is not None:
            check_coefficient(vote_weights, "vote_weights")
        self.density, self.scale = density, scale
        self.vote_weights = vote_weights
        self.scope, self.aggregate = scope, aggregate

    def prepare(self, experts, base):
        """The magnitudes that entries must reach, and the sign of the most."""
        thresholds = [0.0] * len(experts)
        if self.scope == "tensor":
            return thresholds, 1
        if self.density < 1:
            thresholds = model_thresholds(self, experts, base, self.density)
        weigh = None
        if self.vote_weights is not None:
            weigh = partial(self._weights, number=len(experts))
        sign = majority_sign(self, experts, base, thresholds, weigh=weigh)
        return thresholds, sign

    def merge_pieces(self, name, experts, base):
        """Trims, elects and merges one tensor."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )
        weights = self._weights(name, len(experts))
        thresholds, tie = self.found
        if self.scope == "tensor":
            thresholds = self._tensor_thresholds(experts, base)

        def change(vectors, where):
            trimmed = [
                at_least(vector, threshold)
                for vector, threshold in zip(vectors, thresholds)
            ]
            return merge_elected(trimmed, scales, self.aggregate, tie, weights)

        return add_to_base(change, experts, base, suited(base, BLOCK))

    def _weights(self, name, number):
        """The factors of the votes in one tensor; None if all are 1."""
        if self.vote_weights is None:
            return None
        return resolve(
            self.vote_weights, name, number, self.labels, self.depths
        )

    def _tensor_thresholds(self, experts, base):
        """The magnitude to reach in one tensor."""
        rank = max(1, int(self.density * base.numel()))
        if rank >= base.numel():
            return [0.0] * len(experts)
        return [
            kth_largest(magnitudes, rank, overwrite=True)
            for magnitudes in tensor_magnitudes(experts, base)
        ]
