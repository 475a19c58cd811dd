r"""Singular values, singular vectors and orthogonal factors, fast and safe.

What spectral methods ask of a matrix ``X`` is answered from the eigenvalues of
its small Gram matrix (``XᵀX`` or ``XXᵀ``, whichever is smaller). That is several
times cheaper than a singular value decomposition, and loses accuracy only in
directions that are weak beside the strongest one, because the Gram matrix
squares the singular values. Whether it lost too much is seen from the result
itself, and then the next rung of a ladder is tried: the Gram matrix in float32
(for weights that are stored in no more), then in float64, then the full
decomposition in float64. Where the first rung holds, its result is about as near
to the exact one as that of a full decomposition in float32. A rung whose solver
does not converge gives way to the next one too. Matrices are gone through in
blocks of rows (``speechbrain_merge.methods.tall``), so that none has to be in
memory in more than one type.

Directions in which a matrix is exactly zero belong to nobody: a decomposition
returns some basis of them, another on another machine. Here they are left out,
and so are those in which it is no stronger than a ``noise`` that the caller
knows it to have (``speechbrain_merge.methods.rounding``).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.factorization import orthogonalize
>>> orthogonalize(torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64))
tensor([[1., 0.],
        [0., 1.]], dtype=torch.float64)

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import scipy.linalg
import torch

from speechbrain_merge.methods.newton_schulz import newton_schulz_stretch
from speechbrain_merge.methods.tall import Tall, TaskVector

PRECISION = torch.finfo(torch.float64).eps

# Types to try in their order, and how far from orthonormal the vectors may be
# in each. For weights stored in float32 or less:
SINGLE = ((torch.float32, 1e-5), (torch.float64, 1e-6))
# ... and for those in float64, or where every singular value counts:
DOUBLE = ((torch.float64, 1e-12),)

# A squared singular value from a Gram matrix may be wrong by a few times the
# machine epsilon of the largest one. Noise is told from the rest where its
# square is this many times as much.
RESOLVED = 100

# What LAPACK raises, through torch and through scipy
SOLVER_ERRORS = (torch.linalg.LinAlgError, scipy.linalg.LinAlgError)


@dataclass(frozen=True)
class Singular:
    """The strongest singular vectors of a matrix.

    Arguments
    ---------
    left : torch.Tensor
        ``[m, k]``, orthonormal columns.
    values : torch.Tensor
        ``[k]``, descending, above zero.
    right : torch.Tensor
        ``[n, k]``, orthonormal columns.
    spectrum : torch.Tensor
        ``[min(m, n)]``, all singular values, descending.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    spectrum: torch.Tensor


def svd(matrix):
    """Factors ``U``, ``σ`` and ``Vᵀ`` of a matrix in float64.

    LAPACK's divide and conquer fails to converge on rare matrices; its slower
    QR iteration is then tried, on the CPU.
    """
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        return tuple(
            torch.from_numpy(factor).to(matrix.device)
            for factor in scipy.linalg.svd(
                matrix.cpu().numpy(), full_matrices=False, lapack_driver="gesvd"
            )
        )


def decompose(matrix: torch.Tensor, noise: float = 0.0) -> Singular:
    """Full singular value decomposition, without the directions of zero.

    Arguments
    ---------
    matrix : torch.Tensor
        ``[m, n]``, float64.
    noise : float
        Directions that are no stronger than this are left out as well.

    Returns
    -------
    singular : Singular
        With ``k`` the rank.

    Raises
    ------
    LinAlgError
        When both solvers fail, one of ``SOLVER_ERRORS``.
    """
    left, values, right = svd(matrix)
    rank = rank_of(values, matrix.shape, noise)
    return Singular(
        left[:, :rank],
        values[:rank],
        right[:rank].T,
        without_noise(values, noise),
    )


def rank_of(values, shape, noise=0.0):
    """How many singular values are larger than rounding errors.

    Those are rounding errors of the largest value, and the given noise.
    """
    if values.numel() == 0:
        return 0
    rounding = float(values[0]) * PRECISION * max(shape)
    return int((values > max(rounding, noise)).sum())


def without_noise(values, noise):
    """Singular values, with zero for those that are no more than noise."""
    return torch.where(values > noise, values, torch.zeros_like(values))


def resolved(noise, largest_square, dtype):
    """Whether a Gram matrix of a type can tell noise from weak directions."""
    smallest = RESOLVED * torch.finfo(dtype).eps * float(largest_square)
    return noise**2 > smallest


def near_square(shape):
    """Whether some directions are so weak that float32 fails nearly always."""
    return shape[0] < 2 * shape[1]


def all_stronger(
    tall: Tall,
    noise: float,
    ladder: tuple = DOUBLE,
    weights: Optional[torch.Tensor] = None,
) -> bool:
    """Whether all singular values of a matrix are surely more than noise.

    Arguments
    ---------
    tall : Tall
        ``X``, ``[m, n]``, with entries.
    noise : float
        Above zero.
    ladder : tuple
        Types to try.
    weights : torch.Tensor, optional
        ``[n]``: asks of ``X · diag(weights)``, with the Gram matrix of ``X``.

    Returns
    -------
    stronger : bool
        False also where the types cannot tell.
    """
    for dtype, _ in ladder:
        if dtype == torch.float32 and near_square(tall.shape):
            continue
        gram, size = tall.gram(dtype)
        untold = RESOLVED * torch.finfo(dtype).eps
        if weights is None:
            gram = gram.clone()
        else:
            largest = float(weights.max())
            unit = (weights / largest).to(dtype)
            gram, size = unit[:, None] * gram * unit, size * largest
        rounding, square = untold * float(gram.trace()), (noise / size) ** 2
        # Where rounding errors decide, not noise, the eigenvalues tell more.
        found = tall.eigen(dtype) if square < rounding else None
        if found is not None:  # which the factor is made from too
            squares, _, length = found
            weakest = float(squares[0] - untold * squares[-1])
            least = 1.0 if weights is None else float(weights.min())
            if math.sqrt(max(weakest, 0.0)) * length * least > noise:
                return True
        # A Cholesky factor is there exactly where all eigenvalues of a Gram
        # matrix less noise² are positive, and is much cheaper than they are.
        gram.diagonal().sub_(square + rounding)
        if not torch.linalg.cholesky_ex(gram)[1]:
            return True
    return False


def strongest(
    matrix: Union[torch.Tensor, TaskVector],
    count: int,
    ladder: tuple = DOUBLE,
    noise: float = 0.0,
) -> Singular:
    """The strongest singular vectors of a matrix, and all singular values.

    Arguments
    ---------
    matrix : torch.Tensor or TaskVector
        ``[m, n]``.
    count : int
        How many vectors; fewer are given where the rank is lower.
    ladder : tuple
        Types to try, and how far from orthonormal the vectors may be in each
        (``SINGLE`` or ``DOUBLE``).
    noise : float
        Directions that are no stronger than this do not count: they are left
        out, and have a zero among all singular values.

    Returns
    -------
    singular : Singular
        In the type that was good enough.
    """
    rows, columns = matrix.shape
    if rows < columns:
        turned = strongest(matrix.T, count, ladder, noise)
        return Singular(
            turned.right, turned.values, turned.left, turned.spectrum
        )
    tall = Tall(matrix)
    if columns == 0:
        return decompose(tall.whole())
    weak_too = 2 * count > columns and near_square(tall.shape)
    for dtype, tolerance in ladder:
        if dtype == torch.float32 and weak_too:
            continue
        found = tall.eigen(dtype)
        if found is None:
            continue
        squares, vectors, size = found
        spectrum = squares.flip(0).clamp_min_(0.0).sqrt_()
        spectrum = without_noise(spectrum, noise / size)
        rank = int(torch.count_nonzero(spectrum[:count]))
        if rank < count and not resolved(noise / size, squares[-1], dtype):
            continue
        values = spectrum[:rank]
        right = vectors.flip(1)[:, :rank].contiguous()
        left = tall.times(right, size).div_(values)
        error = left.T @ left - torch.eye(rank, dtype=dtype, device=left.device)
        if rank == 0 or bool(error.abs().max() <= tolerance):
            return Singular(left, values * size, right, spectrum * size)
    full = decompose(tall.whole(), noise)
    return Singular(
        full.left[:, :count],
        full.values[:count],
        full.right[:, :count],
        full.spectrum,
    )


def polar(
    matrix: Union[torch.Tensor, Tall],
    ladder: tuple = DOUBLE,
    noise: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The orthogonal factor of a matrix: its nearest orthonormal one.

    ``PQᵀ`` of ``X = P D Qᵀ``: all singular values become 1 (the solution of the
    orthogonal Procrustes problem). Directions in which the matrix is zero
    stay zero.

    Arguments
    ---------
    matrix : torch.Tensor or Tall
        ``[m, n]``.
    ladder : tuple
        Types to try, and how far from orthonormal the factor may be in each.
    noise : float
        Directions that are no stronger than this become zero.

    Returns
    -------
    factor : torch.Tensor
        ``[m, n]``, in the type that was good enough.
    spectrum : torch.Tensor
        ``[min(m, n)]``, the singular values of the matrix; zero for what
        became zero.
    """
    if isinstance(matrix, torch.Tensor) and matrix.shape[0] < matrix.shape[1]:
        factor, spectrum = polar(matrix.T, ladder, noise)
        return factor.T, spectrum
    tall = matrix if isinstance(matrix, Tall) else Tall(matrix)
    columns = tall.shape[1]
    if columns == 0:
        whole = tall.whole()
        return whole, whole.new_zeros(columns, dtype=torch.float32)
    for dtype, tolerance in ladder:
        if dtype == torch.float32 and near_square(tall.shape):
            continue
        found = tall.eigen(dtype)
        if found is None:
            continue
        squares, vectors, size = found
        spectrum = squares.clamp_min(0.0).sqrt_()
        spectrum = without_noise(spectrum, noise / size)
        weak = columns - int(torch.count_nonzero(spectrum))
        if weak and not resolved(noise / size, squares[-1], dtype):
            continue
        squares, vectors = squares[weak:], vectors[:, weak:]
        # half the relative error of the smallest eigenvalue, which is that of
        # the length of the direction that belongs to it
        error = 2 * torch.finfo(dtype).eps * squares[-1:]
        if bool((error < tolerance * squares[:1]).all()):
            root = (vectors * squares.rsqrt()) @ vectors.T
            return tall.times(root, size), spectrum.flip(0) * size
    full = decompose(tall.whole(), noise)
    return full.left @ full.right.T, full.spectrum


def orthogonalize(
    matrix: Union[torch.Tensor, Tall],
    how: str = "svd",
    polynomials: Sequence = (),
    ladder: tuple = DOUBLE,
) -> torch.Tensor:
    """Makes the columns of a matrix orthonormal, exactly or nearly.

    Arguments
    ---------
    matrix : torch.Tensor or Tall
        ``[m, n]``.
    how : str
        ``"svd"``: the polar factor. ``"eigh"``: ``X(XᵀX + …)^{-1/2}`` with each
        root of an eigenvalue enlarged by 1e-12, without any check.
        ``"newton_schulz"``: see below.
    polynomials : list of tuple
        ``(a, b, c)`` for each Newton–Schulz step
        ``X ← aX + (bA + cA²)X``, ``A = XXᵀ``, which starts from ``X/‖X‖_F``.
        Each step is an odd polynomial of the singular values and leaves the
        singular vectors, so that all of them together are computed from one
        decomposition of the Gram matrix.
    ladder : tuple
        As of ``polar``; the other two are always in float64.

    Returns
    -------
    factor : torch.Tensor
        ``[m, n]``.
    """
    if how == "svd":
        return polar(matrix, ladder)[0]
    if isinstance(matrix, torch.Tensor) and matrix.shape[0] < matrix.shape[1]:
        return orthogonalize(matrix.T, how, polynomials).T
    tall = matrix if isinstance(matrix, Tall) else Tall(matrix)
    if tall.shape[1] == 0:
        return tall.whole()
    found = tall.eigen(torch.float64)
    if found is None:
        _, values, vectors = svd(tall.whole())
        squares, vectors = values.square(), vectors.T
    else:
        squares, vectors, size = found
        squares = squares * size**2
    if how == "eigh":
        stretch = 1 / (squares.abs().sqrt() + 1e-12)
    else:
        stretch = newton_schulz_stretch(squares.clamp_min(0.0), polynomials)
    return tall.times((vectors * stretch) @ vectors.T)
