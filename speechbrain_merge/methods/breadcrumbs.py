"""Model Breadcrumbs: neither the noise nor the outliers of a task vector.

Davari and Belilovsky, "Model Breadcrumbs", ECCV 2024: of each layer's task
vector, drop the many small entries, and also the very largest, which belong to
one task alone and disturb the others; add up what is left.

The paper ranks the entries of a layer, as mergekit does: ``scope="tensor"``,
the default. The authors' code ranks within each row of the last dimension:
``scope="row"``. In both, the largest ``int(outliers · n)`` entries are removed
first, and the next ``int(density · n)`` kept; ``n`` counts the tensor or the
row. Entries that equal the smallest or the largest that is kept are kept too.
The defaults are the values from which the authors start their search.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Breadcrumbs
>>> base = {"w": torch.zeros(10)}
>>> expert = {"w": torch.arange(1.0, 11.0)}
>>> Breadcrumbs(density=0.5, outliers=0.1)([expert], base)
{'w': tensor([0., 0., 0., 0., 5., 6., 7., 8., 9., 0.])}

Authors
 * The speechbrain_merge authors 2026
"""

import numpy as np
import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.pieces import PIECE, suited
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import (
    add_to_base,
    scaled_sum,
    tensor_magnitudes,
)


@register("breadcrumbs")
class Breadcrumbs(MergeMethod):
    """``θ_0 + Σ λ_t m_t ⊙ τ_t``, ``m_t`` one for magnitudes in the middle.

    Arguments
    ---------
    density : float
        Share of the entries that is kept, in (0, 1].
    outliers : float
        Share of the entries that is dropped for being the largest, in [0, 1);
        together with ``density`` at most 1.
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``. A sum
        over several experts mostly wants less than 1.
    scope : str
        What the shares are counted in: each ``"tensor"``, or each ``"row"``
        along the last dimension. A tensor without dimensions is kept whole.

    Example
    -------
    >>> expert, base = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    >>> Breadcrumbs(density=1, outliers=0)([expert], base)
    {'w': tensor([3.])}
    """

    needs_base = True
    piecewise = True

    def __init__(self, density=0.15, outliers=0.006, scale=1.0, scope="tensor"):
        super().__init__()
        check_number(density, "density", above=0, at_most=1)
        check_number(outliers, "outliers", at_least=0, below=1)
        if density + outliers > 1:
            raise ValueError(
                "`density` and `outliers` are shares of the same entries: "
                f"{density} + {outliers} is more than 1."
            )
        check_coefficient(scale, "scale")
        check_choice(scope, "scope", ("tensor", "row"))
        self.density, self.outliers = density, outliers
        self.scale, self.scope = scale, scope

    def merge_pieces(self, name, experts, base):
        """Adds the middle of each task vector of one tensor."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )
        if base.dim() == 0 or base.numel() == 0:
            return add_to_base(
                lambda vectors, where: scaled_sum(vectors, scales),
                experts,
                base,
            )
        if self.scope == "row":
            width = base.shape[-1]
            step = max(1, suited(base, PIECE) // width) * width
            bounds = [None] * len(experts)
        else:
            width, step = base.numel(), suited(base, PIECE)
            bounds = [
                self._bounds(magnitudes[None])
                for magnitudes in tensor_magnitudes(experts, base)
            ]

        def change(vectors, where):
            for vector, found in zip(vectors, bounds):
                rows = vector.view(-1, width if found is None else len(vector))
                size = rows.abs()
                smallest, largest = found or self._bounds(size)
                rows.mul_((size >= smallest) & (size <= largest))
            return scaled_sum(vectors, scales)

        return add_to_base(change, experts, base, step)

    def _bounds(self, size):
        """The smallest and the largest magnitude to keep in each row."""
        width = size.shape[1]
        removed = int(self.outliers * width)
        kept = int(self.density * width)
        if kept == 0:
            return torch.inf, 0.0
        largest, smallest = width - removed - 1, width - removed - kept
        places = [smallest, largest]
        if size.is_cuda:
            return size.sort(dim=1).values[:, places].split(1, dim=1)
        ordered = np.partition(size.numpy(), places, axis=1)[:, places]
        return torch.from_numpy(ordered).split(1, dim=1)
