"""Averages of weights: the soup, and its weighted form.

The plain mean of fine-tuned models (Wortsman et al., "Model soups", ICML 2022)
is what checkpoint averaging, MAST, MAcT and SMAcT (Ducorroy & Riad, 2025) and
the Average of Domain Experts (Plantinga et al., 2023) have in common; they
differ in which weights they average.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Average
>>> experts = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}]
>>> Average(weights=[1, 3])(experts)
{'w': tensor([0.7500])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.entries import sum_pieces
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.trajectory_weights import (
    check_shape,
    trajectory_weights,
)


@register("average")
class Average(MergeMethod):
    """Weighted mean of the experts: ``Σ w_t θ_t / Σ w_t``.

    Sums are in float64 whatever the stored type: the mean of float16 weights
    does not overflow, and the order of the experts leaves no trace.

    Arguments
    ---------
    weights : list, dict, str or None
        One weight an expert, in any form of
        ``speechbrain_merge.methods.coefficients``; divided by their sum.
        ``None`` is the plain mean. Weights may be negative, their sum may not
        be zero. For the checkpoints of one training, the oldest first, also
        the name of a decay of its learning rate: ``"linear"``, ``"cosine"``
        or ``"inverse_square_root"``; see
        ``speechbrain_merge.methods.trajectory_weights``.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
    >>> Average()(experts)
    {'w': tensor([2.])}
    """

    piecewise = True
    shows_faults = True

    def __init__(self, weights=None):
        super().__init__()
        if isinstance(weights, str):
            check_shape(weights)
        elif weights is not None:
            check_coefficient(weights, "weights")
        self.weights = weights

    def prepare(self, experts, base):
        """Checks the count of the weights before any tensor is merged."""
        for name in experts[0].names() if self.weights is not None else []:
            self._shares(name, len(experts))

    def merge_pieces(self, name, experts, base):
        """Weighted mean of one tensor."""
        shares = None
        if self.weights is not None:
            shares = self._shares(name, len(experts))
            if len(set(shares)) == 1:
                shares = None  # the plain mean, to the last bit
        return sum_pieces(experts, shares)

    def _shares(self, name, number):
        """The weights of one tensor, summing to one."""
        if isinstance(self.weights, str):
            return trajectory_weights(self.weights, number)
        weights = resolve(self.weights, name, number, self.labels, self.depths)
        total = sum(weights)
        if abs(total) < 1e-12:
            raise ValueError(
                f"The weights {weights} for {name} sum to zero: an average "
                "divides by their sum."
            )
        return [weight / total for weight in weights]
