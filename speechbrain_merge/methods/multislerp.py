"""Multi-SLERP: several directions averaged, and the length apart.

Slerp for more than two models (Goddard, mergekit, 2025). As published: map the
directions to the plane that touches the sphere at their mean, average there,
map back. The weighted mean there is zero, always, because the plane touches
at that very mean; the method is its own starting point, and that is how it is
computed here.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import MultiSlerp
>>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}]
>>> MultiSlerp()(experts)
{'w': tensor([1.4142, 1.4142])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.sphere import (
    lengths_and_cosines,
    mean_direction,
    on_ray,
    shares,
)


@register("multislerp")
class MultiSlerp(MergeMethod):
    """``(Σ a_t ‖θ_t‖) · norm(Σ a_t θ_t/‖θ_t‖)``, tensor by tensor.

    This is where the Karcher mean starts from. Where the directions cancel,
    the plain weighted mean is given for any number of experts (mergekit gives
    it for two, and stops for more).

    Arguments
    ---------
    weights : list, dict or None
        One weight an expert, in any form of
        ``speechbrain_merge.methods.coefficients``; none negative, divided by
        their sum. ``None``: all the same.
    reference : str
        Where the sphere has its centre: ``"zero"`` merges the weights,
        ``"base"`` the task vectors (needs a base).

    Example
    -------
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> MultiSlerp(weights=[3, 1])(experts)
    {'w': tensor([2.5000])}
    """

    def __init__(self, weights=None, reference="zero"):
        super().__init__()
        if weights is not None:
            check_coefficient(weights, "weights")
        check_choice(reference, "reference", ("zero", "base"))
        self.weights, self.reference = weights, reference
        self.needs_base = reference == "base"

    def prepare(self, experts, base):
        """Checks the weights before any tensor is merged."""
        for name in experts[0].names():
            self._shares(name, len(experts))

    def merge_tensor(self, name, experts, base):
        """Averages directions and lengths of one tensor."""
        if self.needs_base:
            experts = [expert - base for expert in experts]
        parts = self._shares(name, len(experts))
        lengths, cosines = lengths_and_cosines(experts)
        pull = torch.tensor(parts, dtype=torch.float64) * (lengths > 0)
        merged = on_ray(experts, lengths, mean_direction(cosines, pull), parts)
        return base + merged if self.needs_base else merged

    def _shares(self, name, number):
        """The shares of one tensor, summing to one."""
        return shares(self.weights, name, number, self.labels, self.depths)
