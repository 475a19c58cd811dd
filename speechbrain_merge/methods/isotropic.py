"""Isotropic merging: every direction equally strong.

The sum of the task vectors of a layer is dominated by the few directions that
the experts share; those of a single expert drown. Iso-C makes all singular
values of the sum equal; Iso-CTS first replaces its weakest directions by the
strongest that each expert has outside the common ones (Marczak et al., "No Task
Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
ICML 2025).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import IsoC
>>> base = {"w": torch.zeros(2, 2)}
>>> experts = [{"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}]
>>> IsoC()(experts, base)
{'w': tensor([[2., 0.],
        [0., 2.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.factorization import Singular, polar, strongest
from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.one_thread import single_thread, spread
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_singular_vectors import (
    Orthogonalizer,
    side_by_side,
)


@register("iso_c")
class IsoC(MatrixMethod):
    """``θ_0 + scale · mean(σ) U Vᵀ`` of ``Σ τ_t = U diag(σ) Vᵀ``; else the mean.

    One expert is not given back: its singular values are made equal too.
    Directions in which the sum is zero stay zero; LAPACK, in the reference
    implementation, fills them in with a basis of its own choice. So do those
    that are no stronger than the rounding errors of the weights as they were
    stored (``speechbrain_merge.methods.rounding``): what experts from a LoRA
    of low rank, folded into the weights, have there is noise. All count in
    the mean of ``σ``, as zeros, so that the merge of such experts is short and
    wants a larger ``scale``.

    Arguments
    ---------
    scale : float or dict
        ``α``, also by part or depth (``speechbrain_merge.methods.coefficients``).
        The authors search it between 0 and 3.
    exclude : list of str
        Patterns of matrices that the mean merges: by default embeddings and
        output layers, whose rows are words.
    conv_as_matrix : bool
        Whether convolutions are matrices ``[out, in · …]``; in the reference
        the mean merges them.
    split_projections : bool
        Whether fused queries, keys and values are merged apart.
    heads : int or None
        Attention heads of fused projections, where the weights do not tell.
    """

    def __init__(
        self,
        scale=1.0,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            scale, exclude, conv_as_matrix, split_projections, heads
        )

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula for one matrix of each expert."""
        with single_thread():
            factor, spectrum = polar(vectors.total(), ladder, noise.of_sum())
            return factor.mul_(spectrum.mean())


@register("iso_cts")
class IsoCTS(MatrixMethod):
    """Iso-C over common and task-specific directions.

    Of the ``r = min(m, n)`` directions of a matrix, a part ``common_fraction``
    are the strongest of ``Σ τ_t``, with left singular vectors ``U_c``. The
    others are shared out evenly: each expert gives the strongest of
    ``τ_t − U_c U_cᵀ τ_t``. (The common part is enlarged or reduced a little,
    as in the authors' code, until the rest divides by the number of experts.)
    Side by side, ``U`` and ``V`` are made orthonormal, and all singular values
    become their mean: ``θ_0 + scale · mean(σ) U_⊥ V_⊥ᵀ``.

    Arguments
    ---------
    scale : float or dict
        As of ``IsoC``.
    common_fraction : float
        From 0 (no common directions) to 1 (none of a single expert: Iso-C).
        The authors use 0.8.
    orthogonalizer : str
        ``"svd"`` is the paper's; ``"newton_schulz"`` is what Carvalho et al.
        (2026) compare BoostedTSV-M with. See ``TSVM``.
    steps, polynomials
        As of ``TSVM``.
    exclude, conv_as_matrix, split_projections, heads
        As of ``IsoC``.

    Example
    -------
    >>> base = {"w": torch.zeros(2, 2)}
    >>> experts = [{"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}]
    >>> IsoCTS(common_fraction=0.5)(experts, base)
    {'w': tensor([[2., 0.],
            [0., 2.]])}
    """

    def __init__(
        self,
        scale=1.0,
        common_fraction=0.8,
        orthogonalizer="svd",
        steps=5,
        polynomials="quintic",
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            scale, exclude, conv_as_matrix, split_projections, heads
        )
        check_number(common_fraction, "common_fraction", at_least=0, at_most=1)
        self._orthonormal = Orthogonalizer(orthogonalizer, steps, polynomials)
        self.common_fraction = common_fraction
        self.orthogonalizer = orthogonalizer
        self.steps, self.polynomials = steps, polynomials

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula for one matrix of each expert."""
        rank, number = min(vectors.shape), len(vectors)
        of_each = shared_out(rank, number, self.common_fraction)
        with single_thread():
            common = strongest(
                vectors.total(), rank - number * of_each, ladder, noise.of_sum()
            )
        own = []
        if of_each:
            outside = OutsideOf(common, vectors.shape[1])
            own = spread(
                # the common directions are as noisy as the sum: what they
                # miss of an expert's by that is left over outside of them
                lambda expert: outside.strongest(
                    vectors[expert],
                    of_each,
                    ladder,
                    noise.of(expert) + noise.of_sum(),
                ),
                range(number),
                threads,
            )
        together = [*own, common]
        length = sum(float(singular.values.sum()) for singular in together)
        return side_by_side(
            together,
            [
                torch.full_like(singular.values, length / rank)
                for singular in together
            ],
            self._orthonormal,
            threads,
            ladder,
            noise.of_all() + noise.of_sum(),
        )


def shared_out(rank: int, number: int, common_fraction: float) -> int:
    """How many directions each expert gives.

    Arguments
    ---------
    rank : int
        All there are.
    number : int
        How many experts.
    common_fraction : float
        The part that is not theirs.

    Returns
    -------
    of_each : int

    Example
    -------
    >>> shared_out(512, 5, 0.8), shared_out(8, 3, 0.8)
    (21, 1)
    """
    common = int(rank * common_fraction)
    return min(round((rank - common) / number), rank // number)


class OutsideOf:
    """Matrices without their part in some directions of the output.

    Arguments
    ---------
    common : Singular
        The directions ``[m, k]``, orthonormal columns, are those of its left.
    columns : int
        ``n`` of the ``[m, n]`` matrices.
    """

    def __init__(self, common, columns):
        self.directions = common.left.to(torch.float64)
        self.error = _error_of(common, max(len(common.left), columns))
        self.rest = None
        rows, number = self.directions.shape
        # In the coordinates of the remaining directions a matrix has m - k
        # rows. Where these are few, it is cheap to decompose.
        if 0 < number and rows - number < columns:
            with single_thread():
                basis = torch.linalg.qr(self.directions, mode="complete")[0]
            self.rest = basis[:, number:]

    def strongest(self, matrix, count, ladder, noise=0.0):
        """The strongest singular vectors of a matrix there."""
        # a matrix within the directions would leave nothing but their error
        # (by its largest entry, whose square may leave float64)
        largest = float(matrix.abs().max()) if matrix.numel() else 0.0
        if largest > 0:
            noise += self.error * largest * float((matrix / largest).norm())
        if self.rest is None:
            outside = matrix - self.directions @ (self.directions.T @ matrix)
            return strongest(outside, count, ladder, noise)
        singular = strongest(self.rest.T @ matrix, count, ladder, noise)
        return Singular(
            self.rest @ singular.left.to(torch.float64),
            singular.values,
            singular.right,
            singular.spectrum,
        )


def _error_of(singular, size):
    """How far singular vectors are off: those of the smallest value are by the
    rounding of the largest one. No more than half of the digits."""
    if len(singular.values) == 0:
        return 0.0
    spread = float(singular.values[0]) / float(singular.values[-1])
    epsilon = torch.finfo(torch.float64).eps
    return min(size * epsilon * spread, epsilon**0.5)
