"""Model Stock: how far to go from the base to the mean, told by the angles.

Models fine-tuned from one base lie around a centre that is better than any of
them; their task vectors' angles say how far from the base it is (Jang, Yun &
Han, "Model Stock: All we need is just a few fine-tuned models", ECCV 2024).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import ModelStock
>>> base = {"w": torch.zeros(2)}
>>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
>>> ModelStock()(experts, base)
{'w': tensor([0.8284, 0.4142])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_switch,
)
from speechbrain_merge.methods.pieces import suited
from speechbrain_merge.methods.registry import register

# Below this, 1 + (T−1)c is zero to the precision of float32 weights.
SINGULAR = 1e-6

# Entries of one expert that are looked at together: 2 MB of float64.
BLOCK = 1 << 18


@register("model_stock")
class ModelStock(MergeMethod):
    """``θ_0 + t (mean θ_t − θ_0)`` with ``t = T c / (1 + (T−1) c)``.

    ``c`` is the mean cosine of the pairs of task vectors. Task vectors of one
    direction (``c = 1``) give the mean; at right angles (``c = 0``), the base.

    The paper derives ``t`` for acute angles. Beyond them the formula walks
    away from the experts and explodes near ``c = −1/(T−1)``. By default ``t``
    is kept within 0 and 1 then, so that the result lies between the base and
    the mean; ``clamp=False`` is the formula as it stands, with ``t = 0`` at the
    very singularity. An expert that did not move has cosine 0 with all others.

    mergekit's reading is ``clamp=False, length_floor=1e-6``, and, with
    ``filter_wise``, ``filters="last"``. FusionBench's is ``average="angle",
    clamp=False``.

    Arguments
    ---------
    filter_wise : bool
        One ``t`` for each row (output) of a tensor, as for the filters in the
        paper's appendix, and not one for the tensor.
    average : str
        ``"cosine"``: the mean of the cosines (mergekit). ``"angle"``: the
        cosine of the mean angle (FusionBench). The same for two experts.
    clamp : bool
        Whether to keep ``t`` within 0 and 1.
    filters : str
        What ``filter_wise`` takes for a filter. ``"output"``: all weights of
        one output, as in the paper. ``"last"``: one row along the last
        dimension (mergekit), which for convolutions is a single kernel. The
        same for matrices.
    length_floor : float
        The smallest number that the product of two task vectors' lengths is
        taken for in their cosine. 0 by default; 1e-6 in mergekit, where task
        vectors shorter than about 1e-3 count as more orthogonal than they are,
        so that the result stays nearer to the base.

    Example
    -------
    >>> base = {"w": torch.zeros(2)}
    >>> experts = [
    ...     {"w": torch.tensor([1.0, 1.0])},
    ...     {"w": torch.tensor([2.0, 2.0])},
    ... ]
    >>> ModelStock()(experts, base)
    {'w': tensor([1.5000, 1.5000])}
    """

    needs_base = True
    minimum_experts = 2

    def __init__(
        self,
        filter_wise=False,
        average="cosine",
        clamp=True,
        filters="output",
        length_floor=0.0,
    ):
        super().__init__()
        check_switch(filter_wise, "filter_wise")
        check_choice(average, "average", ("cosine", "angle"))
        check_switch(clamp, "clamp")
        check_choice(filters, "filters", ("output", "last"))
        check_number(length_floor, "length_floor", at_least=0)
        self.filter_wise, self.average, self.clamp = filter_wise, average, clamp
        self.filters, self.length_floor = filters, length_floor

    def merge_tensor(self, name, experts, base):
        """Places one tensor between base and mean."""
        by_row = self.filter_wise and base.dim() > 1
        if base.numel() == 0:
            return base.clone()
        shape = (1, -1)
        if by_row and self.filters == "output":
            shape = (base.shape[0], -1)
        elif by_row:
            shape = (-1, base.shape[-1])
        anchor = base.reshape(shape)
        flat = [expert.reshape(shape) for expert in experts]
        # a piece is some whole rows, or a part of the one long row
        block = suited(base, BLOCK)
        rows = max(1, block // anchor.shape[1])
        products = anchor.new_zeros(
            anchor.shape[0], len(flat), len(flat), dtype=torch.float64
        )
        for first in range(0, anchor.shape[0], rows):
            some = slice(first, first + rows)
            for start in range(0, anchor.shape[1], block):
                where = (some, slice(start, start + block))
                vectors = torch.stack(
                    [
                        expert[where].to(torch.float64) - anchor[where]
                        for expert in flat
                    ],
                    dim=1,
                )
                products[some] += vectors @ vectors.mT
        ratio = self._ratio(products)[:, None]
        merged = torch.empty_like(anchor, memory_format=torch.contiguous_format)
        for first in range(0, anchor.shape[0], rows):
            some = slice(first, first + rows)
            for start in range(0, anchor.shape[1], block):
                where = (some, slice(start, start + block))
                start_point = anchor[where].to(torch.float64)
                change = -len(flat) * start_point
                for expert in flat:
                    change += expert[where]
                change *= ratio[some] / len(flat)
                merged[where] = change + start_point
        return merged.reshape(base.shape)

    def _ratio(self, products):
        """``t`` of each row from the inner products ``[rows, T, T]``."""
        number = products.shape[-1]
        lengths = products.diagonal(dim1=1, dim2=2).sqrt()
        scale = lengths[:, :, None] * lengths[:, None, :]
        scale = scale.clamp(min=self.length_floor)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        one, other = torch.triu_indices(number, number, offset=1)
        cosines = (products / scale)[:, one, other].clamp(-1.0, 1.0)
        if self.average == "angle":
            cosine = torch.cos(torch.acos(cosines).mean(dim=1))
        else:
            cosine = cosines.mean(dim=1)
        below = 1 + (number - 1) * cosine
        singular = below.abs() < SINGULAR
        ratio = (
            number
            * cosine
            / torch.where(singular, torch.ones_like(below), below)
        )
        ratio = torch.where(singular, torch.zeros_like(ratio), ratio)
        # past the singularity the fraction turns positive again: the angles
        # are obtuse all the same
        obtuse = cosine <= 0
        if self.clamp:
            ratio = torch.where(
                obtuse, torch.zeros_like(ratio), ratio.clamp(0.0, 1.0)
            )
        return ratio
