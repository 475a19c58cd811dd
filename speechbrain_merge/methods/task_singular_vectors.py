"""Task singular vectors: each expert keeps the directions that it moved most.

TSV-M (Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in
Model Merging", CVPR 2025). The task vector of a layer is a matrix, and few of
its singular vectors do most of its work. Each expert keeps its strongest ones;
those of all experts, side by side, are made orthonormal, so that what one
expert writes is not what another reads.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import TSVM
>>> base = {"w": torch.zeros(2, 2)}
>>> experts = [
...     {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])},
...     {"w": torch.tensor([[0.5, 0.0], [0.0, 2.0]])},
... ]
>>> TSVM()(experts, base)  # each keeps one direction of the two
{'w': tensor([[3., 0.],
        [0., 2.]])}

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional, Union

import torch

from speechbrain_merge.methods.factorization import (
    Singular,
    all_stronger,
    orthogonalize,
    strongest,
)
from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.newton_schulz import polynomials_of
from speechbrain_merge.methods.one_thread import single_thread, spread
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.tall import Tall

ORTHOGONALIZERS = ("svd", "eigh", "newton_schulz")


class Orthogonalizer:
    """How the singular vectors of several experts are made orthonormal.

    Arguments
    ---------
    how : str
        ``"svd"``, ``"eigh"`` or ``"newton_schulz"``; see ``TSVM``.
    steps : int
        Newton–Schulz steps.
    polynomials : str or list
        Their coefficients.

    Example
    -------
    >>> from speechbrain_merge.methods.factorization import DOUBLE
    >>> columns = torch.tensor([[3.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    >>> made = Orthogonalizer("svd", 5, "quintic")(columns, DOUBLE)
    >>> torch.allclose(made.T @ made, torch.eye(2, dtype=torch.float64))
    True
    """

    def __init__(self, how: str, steps: int, polynomials: Union[str, list]):
        check_choice(how, "orthogonalizer", ORTHOGONALIZERS)
        check_whole(steps, "steps", at_least=1)
        self.how = how
        self.polynomials = polynomials_of(polynomials, steps)

    def __call__(
        self, matrix: Union[torch.Tensor, Tall], ladder: tuple
    ) -> torch.Tensor:
        """The matrix with orthonormal columns."""
        return orthogonalize(matrix, self.how, self.polynomials, ladder)


def kept(
    shape: tuple, number: int, rank_fraction: Optional[float] = None
) -> int:
    """How many singular vectors each expert keeps.

    Arguments
    ---------
    shape : tuple of int
        ``(m, n)``.
    number : int
        How many experts there are.
    rank_fraction : float, optional
        Part of ``min(m, n)``; ``1/number`` by default.

    Returns
    -------
    kept : int
        Rounded down, and at least one: with more experts than rows, the
        reference keeps none and loses the task vectors without a word.

    Example
    -------
    >>> kept((8, 10), 3), kept((2, 10), 3), kept((8, 10), 3, rank_fraction=1)
    (2, 1, 8)
    """
    rank = min(shape)
    if rank_fraction is None:
        return max(1, rank // number)
    return max(1, int(rank * rank_fraction + 1e-9))


def side_by_side(
    strong: list[Singular],
    lifted: list[torch.Tensor],
    orthogonal: Orthogonalizer,
    threads: int,
    ladder: tuple,
    noise: float,
) -> torch.Tensor:
    """``U_⊥ diag(σ) V_⊥ᵀ`` of the experts' singular vectors together.

    Directions that experts share are made no stronger by the orthonormal
    factors. Where two experts differ in such a direction by rounding errors
    alone, the difference is no direction of its own, and is left out.

    Arguments
    ---------
    strong : list of Singular
        What each expert keeps.
    lifted : list of torch.Tensor
        The singular values to give each, ``[k_t]``.
    orthogonal : Orthogonalizer
        Makes the columns of a matrix orthonormal.
    threads : int
        How many to work on at once.
    ladder : tuple
        The first of its types is that of the result: two orthonormal factors
        are multiplied without loss.
    noise : float
        Spectral norm of the rounding errors in all task vectors together.

    Returns
    -------
    merged : torch.Tensor
        ``[m, n]``.
    """
    dtype = ladder[0][0]
    values = torch.cat(
        [singular.values.to(torch.float64) for singular in strong]
    )

    def orthonormal(columns):
        together = torch.cat(columns, dim=1)
        rows, number = together.shape
        # decomposed once, for the test against noise and for the factor
        tall = Tall(together) if rows >= number else None
        basis = real_directions(together, values, ladder, noise, tall)
        if basis is None:
            return orthogonal(tall or together, ladder).to(dtype)
        inside = basis.T @ together.to(torch.float64)
        made = orthogonal(inside, ladder).to(torch.float64)
        return (basis @ made).to(dtype)

    left, right = spread(
        orthonormal,
        [
            [singular.left for singular in strong],
            [singular.right for singular in strong],
        ],
        threads,
    )
    with single_thread():
        return left @ (torch.cat(lifted).to(dtype)[:, None] * right.T)


def real_directions(
    columns: torch.Tensor,
    values: torch.Tensor,
    ladder: tuple,
    noise: float,
    tall: Optional[Tall] = None,
) -> Optional[torch.Tensor]:
    """The directions in which singular vectors are more than noise.

    Arguments
    ---------
    columns : torch.Tensor
        ``[m, K]``, singular vectors of several matrices side by side.
    values : torch.Tensor
        ``[K]``, their singular values. ``columns · diag(values)`` is as noisy
        as the matrices are.
    ladder : tuple
        Types to factorize in.
    noise : float
        How noisy these are together.
    tall : Tall, optional
        The columns, where they are no more than the rows.

    Returns
    -------
    basis : torch.Tensor or None
        ``[m, k]``, float64, orthonormal. None where all of the ``min(m, K)``
        directions count.
    """
    count = min(columns.shape)
    if noise == 0 or count == 0:
        return None
    if tall is not None and all_stronger(tall, noise, ladder, values):
        return None
    found = strongest(columns * values, count, ladder, noise)
    if len(found.values) == count:
        return None
    return found.left.to(torch.float64)


@register("tsv_m")
class TSVM(MatrixMethod):
    """``θ_0 + scale · U_⊥ Σ V_⊥ᵀ`` for matrices, the mean for all else.

    With the singular value decompositions ``τ_t = U_t Σ_t V_tᵀ``: the first
    ``k`` columns of all ``U_t`` side by side, made orthonormal, are ``U_⊥``;
    ``V_⊥`` likewise; ``Σ`` has their singular values. Sums are in float64.

    One expert with ``rank_fraction=1`` is given back, scaled. Two equal experts
    give their first ``r/2`` directions, and an expert that did not move
    changes nothing: directions in which a task vector, or all of them
    together, are zero are left out. (LAPACK fills them in with a basis of its
    own choice, which in the reference implementations takes part.) So are
    directions that are no stronger than the rounding errors of the weights as
    they were stored (``speechbrain_merge.methods.rounding``).

    Arguments
    ---------
    scale : float or dict
        ``α``, also by part or depth (``speechbrain_merge.methods.coefficients``).
    rank_fraction : float or None
        Part of the ``r = min(m, n)`` directions that each expert keeps, above 0
        and at most 1. ``None`` is ``1/T``, as in the paper: together they
        fill the space. More directions than fit are made as orthonormal as
        they can be (in rows, not in columns); choose the scale anew then.
    orthogonalizer : str
        ``"svd"``: the polar factor, as in the paper. ``"eigh"``: the authors'
        second variant, an inverse root of the Gram matrix, inexact where
        experts share directions. ``"newton_schulz"``: what BoostedTSV-M takes;
        no polar factor when ranks are low, see
        ``speechbrain_merge.methods.newton_schulz``.
    steps : int
        Newton–Schulz steps; only with that orthogonalizer.
    polynomials : str or list
        Their coefficients: ``"quintic"``, ``"muon"``, ``"classical"`` or a
        list of ``[a, b, c]``, one a step.
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

    Example
    -------
    >>> base, expert = {"w": torch.zeros(2, 2)}, {"w": torch.eye(2)}
    >>> TSVM(scale=0.5)([expert], base)
    {'w': tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])}
    """

    def __init__(
        self,
        scale=1.0,
        rank_fraction=None,
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
        if rank_fraction is not None:
            check_number(rank_fraction, "rank_fraction", above=0, at_most=1)
        self._orthonormal = Orthogonalizer(orthogonalizer, steps, polynomials)
        self.rank_fraction = rank_fraction
        self.orthogonalizer = orthogonalizer
        self.steps, self.polynomials = steps, polynomials

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula for one matrix of each expert."""
        count = kept(vectors.shape, len(vectors), self.rank_fraction)
        strong = spread(
            lambda number: strongest(
                vectors.by_rows(number), count, ladder, noise.of(number)
            ),
            range(len(vectors)),
            threads,
        )
        return side_by_side(
            strong,
            [singular.values for singular in strong],
            self._orthonormal,
            threads,
            ladder,
            noise.of_all(),
        )
