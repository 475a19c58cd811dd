r"""REPAIR: units of a merge get the statistics that they had in its parents.

Units of two models that were matched are alike and not the same, and the mean
of two signals that are not the same varies less than each of them. Layer after
layer the deviation shrinks ("variance collapse"), and the merge hears less the
deeper it is. Jordan et al. ("REPAIR: REnormalizing Permuted Activations for
Interpolation Repair", ICLR 2023, arXiv 2211.08403) scale and shift the output
``W x + b`` of each unit such that its mean and deviation are the parents' mean
ones. With μ, σ of the merge and μ*, σ* wanted,

    W ← W σ* / σ,    b ← (b − μ) σ* / σ + μ*

which is exact for the output of a linear layer or convolution with a bias, as
these are the formulas of a scaled and shifted random variable. The statistics
come from a pass over audio without transcripts
(``speechbrain_merge.brain.repair``).

Example
-------
>>> weight, bias = torch.tensor([[2.0]]), torch.tensor([1.0])
>>> inputs = torch.tensor([[0.0], [2.0]])
>>> found = Moments.of(inputs @ weight.T + bias)
>>> wanted = Moments(torch.tensor([0.0]), torch.tensor([6.0]))
>>> weight, bias = repaired(weight, bias, found, wanted)
>>> (inputs @ weight.T + bias).flatten()
tensor([-6.,  6.])

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# A unit that varies less than this part of what is wanted is dead in the merge:
# scaled up, it would be noise
DEAD = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean and deviation of the units of a layer.

    Arguments
    ---------
    mean, deviation : torch.Tensor
        Of each unit, [units].
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    @staticmethod
    def of(outputs: torch.Tensor) -> "Moments":
        """Those of a sample [samples, units]; the deviation is the sample's."""
        return Moments(outputs.mean(0), outputs.std(0, correction=0))

    @staticmethod
    def interpolated(
        moments: Sequence["Moments"], weights: Sequence[float]
    ) -> "Moments":
        """Weighted means of means and of deviations, as in the paper."""
        means = torch.stack([each.mean for each in moments], -1)
        deviations = torch.stack([each.deviation for each in moments], -1)
        shares = torch.tensor(weights, dtype=means.dtype) / sum(weights)
        return Moments(means @ shares, deviations @ shares)


def repaired(
    weight: torch.Tensor,
    bias: torch.Tensor,
    found: Moments,
    wanted: Moments,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a layer whose units have the wanted moments.

    Arguments
    ---------
    weight : torch.Tensor
        [units, …].
    bias : torch.Tensor
        [units].
    found : Moments
        Of the layer's outputs with these.
    wanted : Moments
        Of its outputs afterwards. A unit that does not vary is shifted only.

    Returns
    -------
    weight, bias : torch.Tensor
        New, of the same types.
    """
    mean, deviation = found.mean.double(), found.deviation.double()
    target = wanted.deviation.double()
    dead = deviation <= DEAD * target
    scale = torch.where(dead, 1.0, target / deviation.where(~dead, 1.0))
    shape = (-1, *[1] * (weight.ndim - 1))
    new_bias = (bias.double() - mean) * scale + wanted.mean.double()
    return (
        (weight.double() * scale.reshape(shape)).to(weight.dtype),
        new_bias.to(bias.dtype),
    )


class RunningMoments:
    """Moments of outputs that come batch by batch, summed in float64.

    Example
    -------
    >>> running = RunningMoments()
    >>> running.add(torch.tensor([[0.0], [2.0]]))
    >>> running.add(torch.tensor([[4.0], [6.0]]))
    >>> moments = running.moments()
    >>> moments.mean.item(), round(moments.deviation.square().item(), 9)
    (3.0, 5.0)
    """

    def __init__(self):
        self.number, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, outputs: torch.Tensor) -> None:
        """Adds outputs [samples, units], by Chan's formula for two samples."""
        outputs = outputs.detach().double()
        mean = outputs.mean(0)
        squares = (outputs - mean).square().sum(0)
        number = self.number + len(outputs)
        far = mean - self.mean
        self.squares = (
            self.squares
            + squares
            + far.square() * self.number * len(outputs) / number
        )
        self.mean = self.mean + far * len(outputs) / number
        self.number = number

    def moments(self) -> Moments:
        """Of all that was added."""
        return Moments(self.mean, (self.squares / self.number).sqrt())
