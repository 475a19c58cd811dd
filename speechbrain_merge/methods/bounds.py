r"""The range of a learned coefficient, and its gradient at the limits.

A coefficient that is learned by gradient is some parameter v, and what is used
is λ(v), one of

``free``
    λ = v.
``clamp``
    λ = min(max(v, 0), 1). The derivative of this is 0 outside of [0, 1], so
    that a v that has once left would never return. Here the gradient is
    stopped only where it would push v further out: at 0 and at 1, and
    beyond, the gradient that leads inwards passes. So learning may start at
    λ = 0, and a coefficient at a bound is at rest only as long as the loss
    wants it there.
``sigmoid``
    λ = 1 / (1 + e^(−v)), which is never quite 0 nor 1, and the slower the
    nearer it is.

Example
-------
>>> value = torch.tensor([-0.1, 0.0, 0.5], requires_grad=True)
>>> bounded(value, "clamp").sum().backward()
>>> value.grad  # descent would lead the first one further out
tensor([0., 1., 1.])
>>> value.grad = None
>>> bounded(value, "clamp").sum().neg().backward()
>>> value.grad
tensor([-1., -1., -1.])

Authors
 * The speechbrain_merge authors 2026
"""

import math

import torch

BOUNDS = ("free", "clamp", "sigmoid")


class _InwardClamp(torch.autograd.Function):
    """Clamps to [0, 1]; stops only gradients that lead further out."""

    @staticmethod
    def forward(context, value):
        context.save_for_backward(value)
        return value.clamp(0, 1)

    @staticmethod
    def backward(context, gradient):
        (value,) = context.saved_tensors
        # descent goes against the gradient
        outwards = ((value < 0) & (gradient > 0)) | (
            (value > 1) & (gradient < 0)
        )
        return gradient.masked_fill(outwards, 0)


def bounded(value: torch.Tensor, bound: str) -> torch.Tensor:
    """The coefficients λ that parameters stand for.

    Arguments
    ---------
    value : torch.Tensor
        The parameters v, of any shape.
    bound : str
        "free", "clamp" or "sigmoid".

    Returns
    -------
    torch.Tensor
        Of the same shape.
    """
    if bound == "clamp":
        return _InwardClamp.apply(value)
    return torch.sigmoid(value) if bound == "sigmoid" else value


def value_of(coefficient: float, bound: str, name: str = "ratio") -> float:
    """The parameter v that stands for a coefficient λ.

    Arguments
    ---------
    coefficient : float
        λ.
    bound : str
        "free", "clamp" or "sigmoid".
    name : str
        What the coefficient is called.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Where no v gives this λ.

    Example
    -------
    >>> value_of(0.5, "sigmoid"), value_of(0.0, "clamp")
    (0.0, 0.0)
    """
    if bound == "clamp" and not 0 <= coefficient <= 1:
        raise ValueError(
            f"`{name}` must be between 0 and 1 where it is clamped, got "
            f"{coefficient!r}; 'free' has no bounds."
        )
    if bound == "sigmoid":
        if not 0 < coefficient < 1:
            raise ValueError(
                f"`{name}` must be above 0 and below 1 where it is a sigmoid, "
                f"got {coefficient!r}; start from 0.01, say, or use 'clamp'."
            )
        return math.log(coefficient) - math.log1p(-coefficient)
    return float(coefficient)
