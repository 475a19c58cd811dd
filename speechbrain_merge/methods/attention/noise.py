"""Noise in the place of a source: the control that merging needs.

That a target gets better with another model's attention in it may be the other
model's merit, or that of any small disturbance. To tell, the same merge is
made with noise that looks like the source (Sundar et al., 2024, arXiv
2312.14378): normal, with mean and variance of the source's weights, with those
of the target's, or standard. The paper does not say over which weights mean
and variance are taken; here over each matrix, or over all that are merged.

Example
-------
>>> import torch
>>> like = moments(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
>>> like
Moments(number=4, total=8.0, squares=20.0)
>>> like.mean, like.deviation
(2.0, 1.0)

Authors
 * The speechbrain_merge authors 2026
"""

import math
from typing import NamedTuple

import torch

from speechbrain_merge.methods.pieces import walk
from speechbrain_merge.methods.randomness import normal
from speechbrain_merge.weights import Weights, part

KINDS = ("source", "target", "standard")
SCOPES = ("tensor", "global")


class Moments(NamedTuple):
    """Sums that mean and variance are computed from; they can be added.

    Arguments
    ---------
    number : int
        How many numbers.
    total : float
        Their sum.
    squares : float
        The sum of their squares.
    """

    number: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """μ."""
        return self.total / max(self.number, 1)

    @property
    def deviation(self) -> float:
        """σ, of the population."""
        variance = self.squares / max(self.number, 1) - self.mean**2
        return math.sqrt(max(variance, 0.0))


STANDARD = Moments(1, 0.0, 1.0)


def moments(tensor: torch.Tensor) -> Moments:
    """The moments of a tensor, summed piece by piece in float64.

    Arguments
    ---------
    tensor : torch.Tensor
        Of any shape.

    Returns
    -------
    Moments
        The same bits however many threads there are.
    """
    flat = tensor.reshape(-1)
    total = squares = 0.0
    for where in walk([flat]):
        piece = flat[where].to(torch.float64)
        total += float(piece.sum())
        squares += float(piece.square().sum())
    return Moments(flat.numel(), total, squares)


def added_up(each: list) -> Moments:
    """The moments of all numbers together.

    Arguments
    ---------
    each : list of Moments
        One a tensor.

    Returns
    -------
    Moments

    Example
    -------
    >>> added_up([Moments(1, 2.0, 4.0), Moments(1, 4.0, 16.0)]).mean
    3.0
    """
    return Moments(*(sum(column) for column in zip(*each)))


def moments_of_model(method, model: Weights, names: list[str]) -> dict:
    """The moments of tensors of a model together, of weights and biases apart.

    Arguments
    ---------
    method : MergeMethod
        On whose threads the model is read.
    model : Weights
        Open weights.
    names : list of str
        The tensors.

    Returns
    -------
    dict
        "weight" and "bias" to `Moments`.
    """
    each = method.each(
        lambda name: moments(model[name]), names, "measure for noise"
    )
    found = {}
    for kind in ("weight", "bias"):
        those = [
            moment
            for name, moment in zip(names, each)
            if part(name).kind == kind
        ]
        found[kind] = added_up(those) if those else STANDARD
    return found


def drawn_like(like: Moments, tensor: torch.Tensor, seed: int, name: str):
    """Normal numbers with some moments.

    Arguments
    ---------
    like : Moments
        Mean and deviation to have.
    tensor : torch.Tensor
        Shape, type and device to have.
    seed : int
        The method's seed.
    name : str
        What the noise is for. The same for a matrix of queries whatever model
        it is in.

    Returns
    -------
    torch.Tensor

    Example
    -------
    >>> drawn = drawn_like(Moments(1, 5.0, 26.0), torch.empty(100, 100), 0, "q")
    >>> print(f"{drawn.mean():.2f} ± {drawn.std():.2f}")
    5.01 ± 1.00
    """
    drawn = normal(seed, 0, name, slice(0, tensor.numel())).to(torch.float64)
    drawn = drawn.mul_(like.deviation).add_(like.mean)
    return drawn.reshape(tensor.shape).to(tensor)
