"""The Karcher mean: the middle of several directions on the sphere.

The mean of points on a curved surface is the point from which the arcs to
them, weighted, sum to zero (Karcher, 1977; Grove & Karcher, 1973). Merging by
it averages the directions of the experts' weights along the sphere, and their
lengths apart.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Karcher
>>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}]
>>> Karcher()(experts)
{'w': tensor([1.4142, 1.4142])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient
from speechbrain_merge.methods.parameters import check_number, check_whole
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.sphere import (
    lengths_and_cosines,
    mean_direction,
    on_ray,
    shares,
)

# An arc shorter than this is straight, and one that leaves less than this to
# the opposite pole has no direction: the sine below it says nothing.
NO_SINE = 1e-7


@register("karcher")
class Karcher(MergeMethod):
    """Karcher mean of the directions times the mean length, for each tensor.

    With ``u_t = θ_t/‖θ_t‖`` and the shares ``a_t``, start from
    ``u = norm(Σ a_t u_t)`` and repeat: with ``φ_t`` the angle between ``u``
    and ``u_t``, walk from ``u`` along the arc of direction and length
    ``Θ = Σ a_t φ_t/sin φ_t (u_t − cos φ_t u)``, until ``‖Θ‖`` is below the
    tolerance. The result is ``(Σ a_t ‖θ_t‖) u``. No base is needed.

    A tensor of zeros has no direction: it counts in the mean length only.
    Where the directions cancel (an expert and its negative) no point is in
    the middle, and the plain mean is given; mergekit gives the direction of
    its first input then.

    Arguments
    ---------
    weights : list, dict or None
        One weight an expert, in any form of
        ``speechbrain_merge.methods.coefficients``; none negative, divided by
        their sum. ``None``: all the same.
    max_iterations : int
        The most steps to walk. 0 stays at the start, which is Multi-SLERP.
    tolerance : float
        Stop when the step is shorter than this (radians).

    Example
    -------
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> Karcher(weights=[3, 1])(experts)
    {'w': tensor([2.5000])}
    """

    def __init__(self, weights=None, max_iterations=10, tolerance=1e-5):
        super().__init__()
        if weights is not None:
            check_coefficient(weights, "weights")
        check_whole(max_iterations, "max_iterations")
        check_number(tolerance, "tolerance", above=0)
        self.weights = weights
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def prepare(self, experts, base):
        """Checks the weights before any tensor is merged."""
        for name in experts[0].names():
            self._shares(name, len(experts))

    def merge_tensor(self, name, experts, base):
        """Walks to the middle of the directions of one tensor."""
        parts = self._shares(name, len(experts))
        lengths, cosines = lengths_and_cosines(experts)
        # directions of zeros do not exist; their shares go to the others
        pull = torch.tensor(parts, dtype=torch.float64) * (lengths > 0)
        if pull.sum() == 0:
            return on_ray(experts, lengths, None, parts)
        pull /= pull.sum()
        direction = mean_direction(cosines, pull)
        if direction is not None:
            direction = self._walk(cosines, pull, direction)
        return on_ray(experts, lengths, direction, parts)

    def _walk(self, cosines, pull, direction):
        """From the start to where the arcs to the experts sum to zero.

        All vectors are given by their coefficients on the unit vectors of the
        experts; ``cosines`` is the inner product between them.
        """
        for _ in range(self.max_iterations):
            projections = (cosines @ direction).clamp(-1.0, 1.0)
            angles = torch.acos(projections)
            sines = torch.sin(angles)
            stretch = torch.where(
                sines > NO_SINE, angles / sines, (projections > 0).to(sines)
            )
            arc = pull * stretch
            arc = arc - (arc @ projections) * direction
            length = (arc @ cosines @ arc).clamp_min(0.0).sqrt()
            if length < self.tolerance:
                break
            direction = (
                torch.cos(length) * direction + torch.sin(length) / length * arc
            )
            direction /= (direction @ cosines @ direction).sqrt()
        return direction

    def _shares(self, name, number):
        """The shares of one tensor, summing to one."""
        return shares(self.weights, name, number, self.labels, self.depths)
