"""Spherical interpolation between two models.

A straight line between two points of a sphere leaves the sphere; the mean of
two weights is shorter than either. Slerp walks along the arc (Shoemake,
SIGGRAPH 1985).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Slerp
>>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
>>> Slerp(t=0.5)(experts)
{'w': tensor([0.7071, 0.7071])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.registry import register

# Above this cosine the arc is a line to the precision of float32, and the sine
# in the denominator is not to be trusted. mergekit's threshold.
PARALLEL = 0.9995


@register("slerp")
class Slerp(MergeMethod):
    """``sin((1−t)φ)/sin φ · θ_1 + sin(tφ)/sin φ · θ_2``, tensor by tensor.

    ``φ`` is the angle between the two flattened tensors. Lengths are not
    changed before the interpolation. Nearly parallel tensors are interpolated
    linearly. Opposite tensors have no unique arc: the formula gives zero half
    way, as it stands.

    Arguments
    ---------
    t : float, list or dict
        Where on the arc: 0 is the first expert, 1 the second. May differ by
        part and depth (``speechbrain_merge.methods.coefficients``).

    Example
    -------
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> Slerp(t=0.25)(experts)
    {'w': tensor([2.5000])}
    """

    minimum_experts = 2
    maximum_experts = 2

    def __init__(self, t=0.5):
        super().__init__()
        check_coefficient(t, "t")
        self.t = t

    def merge_tensor(self, name, experts, base):
        """Interpolates one tensor."""
        first, second = (expert.to(torch.float64) for expert in experts)
        t = resolve(self.t, name, 2, self.labels, self.depths)[0]
        lengths = first.norm() * second.norm()
        cosine = (first * second).sum() / lengths if lengths > 0 else 1.0
        cosine = min(max(float(cosine), -1.0), 1.0)
        if abs(cosine) > PARALLEL or t in (0.0, 1.0):
            return ((1 - t) * first + t * second).to(experts[0].dtype)
        angle = torch.acos(torch.tensor(cosine, dtype=torch.float64))
        merged = (
            torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second
        ) / torch.sin(angle)
        return merged.to(experts[0].dtype)
