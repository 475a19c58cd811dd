r"""NuSLERP: slerp with weights, in one piece or unit by unit, from any centre.

Slerp (``speechbrain_merge.methods.slerp``) as mergekit's ``nuslerp`` has it
(Goddard et al., 2024): the two models have weights, whose ratio is the place on
the arc; the arc may be walked by task vectors instead of weights; and each
output unit, or each input, may have an angle of its own.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import NuSlerp
>>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
>>> NuSlerp(weights=[1, 1])(experts)
{'w': tensor([0.7071, 0.7071])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.methods.registry import register

# A sine below this is of parallel or opposite vectors: mergekit's threshold
COLLINEAR = 1e-8

# Weights whose sum is nearer to zero have no ratio; mergekit then goes half way
BALANCED = 1e-6


@register("nuslerp")
class NuSlerp(MergeMethod):
    """``sin((1−t)φ)/sin φ · v_1 + sin(tφ)/sin φ · v_2``, ``t = w_2/(w_1 + w_2)``.

    Arguments
    ---------
    t : float, list or dict
        Where on the arc: 0 is the first expert, 1 the second. May differ by
        part and depth (``speechbrain_merge.methods.coefficients``). The
        default is half way.
    weights : list, dict or None
        One weight an expert, in place of ``t``; only their ratio counts.
    reference : str
        ``"zero"``: ``v`` are the weights. ``"base"``: they are the task
        vectors, and the base is added (needs a base).
    by : str
        What has an angle: the ``"tensor"`` as a whole, each ``"output"`` (the
        rows, over the last dimension; mergekit's ``nuslerp_flatten=False``),
        or each ``"input"`` (over the first dimension; mergekit's
        ``nuslerp_row_wise=True`` besides).

    Example
    -------
    >>> experts = [{"w": torch.eye(2)}, {"w": torch.eye(2).flip(0)}]
    >>> NuSlerp(t=0.5, by="output")(experts)
    {'w': tensor([[0.7071, 0.7071],
            [0.7071, 0.7071]])}
    """

    minimum_experts = 2
    maximum_experts = 2

    def __init__(self, t=None, weights=None, reference="zero", by="tensor"):
        super().__init__()
        if t is not None and weights is not None:
            raise ValueError(
                "`t` and `weights` say the same: give one of them, got "
                f"t={t!r} and weights={weights!r}."
            )
        if t is not None:
            check_coefficient(t, "t")
        if weights is not None:
            check_coefficient(weights, "weights")
        check_choice(reference, "reference", ("zero", "base"))
        check_choice(by, "by", ("tensor", "output", "input"))
        self.t, self.weights = t, weights
        self.reference, self.by = reference, by
        self.needs_base = reference == "base"

    def merge_tensor(self, name, experts, base):
        """Interpolates one tensor."""
        place = self._place(name)
        first, second = (expert.to(torch.float64) for expert in experts)
        if self.needs_base:
            anchor = base.to(torch.float64)
            first, second = first - anchor, second - anchor
        shape, dim = first.shape, 0 if self.by == "input" else -1
        if self.by == "tensor" or first.dim() == 0:
            first, second = first.reshape(-1), second.reshape(-1)
        merged = along_arcs(first, second, place, dim).reshape(shape)
        if self.needs_base:
            merged += anchor
        return merged.to(experts[0].dtype)

    def _place(self, name):
        """``t`` of one tensor."""
        if self.weights is None:
            t = 0.5 if self.t is None else self.t
            return resolve(t, name, 2, self.labels, self.depths)[0]
        one, two = resolve(self.weights, name, 2, self.labels, self.depths)
        return 0.5 if abs(one + two) < BALANCED else two / (one + two)


def along_arcs(
    first: torch.Tensor, second: torch.Tensor, place: float, dim: int
) -> torch.Tensor:
    """Spherical interpolation of vectors, each along its own arc.

    Arguments
    ---------
    first, second : torch.Tensor
        Of one shape, float64.
    place : float
        0 for the first, 1 for the second.
    dim : int
        The dimension that the vectors lie along.

    Returns
    -------
    points : torch.Tensor
        Of the same shape. Parallel, opposite and zero vectors are
        interpolated along the straight line.
    """

    def unit(vectors):
        """Vectors of length one; those of zero stay zero."""
        lengths = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
        return vectors / torch.where(lengths > 0, lengths, 1.0)

    # half of the angle by its two sides: near 0 and π a cosine tells it to
    # eight digits only, which are those of the threshold
    ends = unit(first), unit(second)
    opposite, adjacent = (
        torch.linalg.vector_norm(side, dim=dim, keepdim=True)
        for side in (ends[1] - ends[0], ends[1] + ends[0])
    )
    empty = [~vectors.any(dim=dim, keepdim=True) for vectors in (first, second)]
    angle = 2 * torch.atan2(opposite, adjacent)
    sine = torch.sin(angle)
    straight = (sine.abs() < COLLINEAR) | empty[0] | empty[1]
    safe = torch.where(straight, 1.0, sine)
    return torch.where(
        straight,
        (1 - place) * first + place * second,
        torch.sin((1 - place) * angle) / safe * first
        + torch.sin(place * angle) / safe * second,
    )
