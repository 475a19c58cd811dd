r"""Singular values, singular vectors and orthogonal factors, fast and safe.

What spectral methods ask of a matrix ``X`` is answered from the eigenvalues of
its small Gram matrix (``XᵀX`` or ``XXᵀ``, whichever is smaller). That is several
times cheaper than a singular value decomposition, and loses accuracy only in
directions that are weak beside the strongest one, because the Gram matrix
squares the singular values. Whether it lost too much is seen from the result
itself, and then the next rung of a ladder is tried: the Gram matrix in float32
(for weights that are stored in no more), then in float64, then the full
decomposition in float64. Where the first rung holds, its result is nearer to
the exact one than what a full decomposition in float32 gives.

Each decomposition runs on one thread: LAPACK on matrices of a few hundred rows
gains little from more, its results would depend on their number, and there are
always several matrices to work on side by side (``spread``).

Directions in which a matrix is exactly zero belong to nobody: a decomposition
returns some basis of them, another on another machine. Here they are left out.

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

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import scipy.linalg
import torch

PRECISION = torch.finfo(torch.float64).eps

# Types to try in their order, and how far from orthonormal the vectors may be
# in each. For weights stored in float32 or less:
SINGLE = ((torch.float32, 1e-5), (torch.float64, 1e-8))
# ... and for those in float64, or where every singular value counts:
DOUBLE = ((torch.float64, 1e-12),)

_threads_lock = threading.Lock()
_inside = []  # one entry for each thread that is in single_thread now
_outside = [0]  # the number of threads that torch had before the first


@contextmanager
def single_thread():
    """Torch works on one thread inside, in the calling thread.

    Torch keeps this number for each thread, but gives new threads the last
    one that was set anywhere; so what was there before the first thread came
    in is kept, and set again by each that leaves.
    """
    with _threads_lock:
        if not _inside:
            _outside[0] = torch.get_num_threads()
        _inside.append(True)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            _inside.pop()
            torch.set_num_threads(_outside[0])


def spread(function, items, threads=1):
    """Runs a function over items, each on one thread, several side by side.

    Arguments
    ---------
    function : callable
        Takes an item.
    items : list
        What to run it on.
    threads : int
        How many at once. The results do not depend on it.

    Returns
    -------
    results : list
        In the order of the items.
    """
    threads = min(threads, len(items))
    if threads <= 1:
        with single_thread():
            return [function(item) for item in items]
    with (
        single_thread(),
        ThreadPoolExecutor(
            threads, initializer=lambda: torch.set_num_threads(1)
        ) as pool,
    ):
        return list(pool.map(function, items))


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


def decompose(matrix):
    """Full singular value decomposition, without the directions of zero.

    LAPACK's divide and conquer fails to converge on rare matrices; its slower
    QR iteration is then tried.

    Arguments
    ---------
    matrix : torch.Tensor
        ``[m, n]``, float64.

    Returns
    -------
    singular : Singular
        With ``k`` the rank.
    """
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        left, values, right = (
            torch.from_numpy(factor)
            for factor in scipy.linalg.svd(
                matrix.numpy(), full_matrices=False, lapack_driver="gesvd"
            )
        )
    rank = rank_of(values, matrix.shape)
    return Singular(left[:, :rank], values[:rank], right[:rank].T, values)


def rank_of(values, shape):
    """How many singular values are more than rounding errors of the largest."""
    if values.numel() == 0:
        return 0
    noise = values[0] * PRECISION * max(shape)
    return int((values > noise).sum())


def strongest(matrix, count, ladder=DOUBLE):
    """The strongest singular vectors of a matrix, and all singular values.

    Arguments
    ---------
    matrix : torch.Tensor
        ``[m, n]``, float64.
    count : int
        How many vectors; fewer are given where the rank is lower.
    ladder : tuple
        Types to try, and how far from orthonormal the vectors may be in each
        (``SINGLE`` or ``DOUBLE``).

    Returns
    -------
    singular : Singular
        In the type that was good enough.
    """
    rows, columns = matrix.shape
    if rows < columns:
        turned = strongest(matrix.T, count, ladder)
        return Singular(
            turned.right, turned.values, turned.left, turned.spectrum
        )
    # With nearly as many columns as rows, some directions are so weak that
    # float32 fails nearly always, unless only the strongest are wanted.
    near_square = rows < 2 * columns
    for dtype, tolerance in ladder:
        if dtype == torch.float32 and near_square and 2 * count > columns:
            continue
        tried = matrix.to(dtype)
        squares, vectors = torch.linalg.eigh(tried.T @ tried)
        spectrum = squares.flip(0).clamp_min_(0.0).sqrt_()
        values = spectrum[:count]
        right = vectors.flip(1)[:, :count].contiguous()
        # A vector of length zero cannot be made to have length one: the
        # division leaves a NaN or an infinity, and the comparison is false.
        left = (tried @ right) / values
        error = left.T @ left - torch.eye(len(values), dtype=dtype)
        if count == 0 or bool(error.abs().max() <= tolerance):
            return Singular(left, values, right, spectrum)
    full = decompose(matrix)
    return Singular(
        full.left[:, :count],
        full.values[:count],
        full.right[:, :count],
        full.spectrum,
    )


def polar(matrix, ladder=DOUBLE):
    """The orthogonal factor of a matrix: its nearest orthonormal one.

    ``PQᵀ`` of ``X = P D Qᵀ``: all singular values become 1 (the solution of the
    orthogonal Procrustes problem). Directions in which the matrix is zero
    stay zero.

    Arguments
    ---------
    matrix : torch.Tensor
        ``[m, n]``.
    ladder : tuple
        Types to try, and how far from orthonormal the factor may be in each.

    Returns
    -------
    factor : torch.Tensor
        ``[m, n]``, in the type that was good enough.
    spectrum : torch.Tensor
        ``[min(m, n)]``, the singular values of the matrix.
    """
    rows, columns = matrix.shape
    if rows < columns:
        factor, spectrum = polar(matrix.T, ladder)
        return factor.T, spectrum
    if matrix.numel() == 0:
        return matrix, matrix.new_zeros(columns)
    near_square = rows < 2 * columns  # too weak directions, as above
    for dtype, tolerance in ladder:
        if dtype == torch.float32 and near_square:
            continue
        tried = matrix.to(dtype)
        squares, vectors = torch.linalg.eigh(tried.T @ tried)
        # the relative error of the smallest eigenvalue, and so of the length
        # of the direction that belongs to it
        error = 4 * torch.finfo(dtype).eps * squares[-1]
        if error < tolerance * squares[0]:
            root = (vectors * squares.rsqrt()) @ vectors.T
            return tried @ root, squares.sqrt().flip(0)
    full = decompose(matrix.to(torch.float64))
    return full.left @ full.right.T, full.spectrum


def orthogonalize(matrix, how="svd", polynomials=(), ladder=DOUBLE):
    """Makes the columns of a matrix orthonormal, exactly or nearly.

    Arguments
    ---------
    matrix : torch.Tensor
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
    rows, columns = matrix.shape
    if matrix.numel() == 0:
        return matrix
    if how == "svd":
        return polar(matrix, ladder)[0]
    if rows < columns:
        return orthogonalize(matrix.T, how, polynomials).T
    matrix = matrix.to(torch.float64)
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if how == "eigh":
        stretch = 1 / (squares.abs().sqrt() + 1e-12)
    else:
        stretch = newton_schulz_stretch(squares.clamp_min(0.0), polynomials)
    return matrix @ ((vectors * stretch) @ vectors.T)


# Added to the Frobenius norm, as in Muon: zero stays zero.
NORM_FLOOR = 1e-7


def newton_schulz_stretch(squares, polynomials):
    """What Newton–Schulz steps multiply each singular value by.

    Arguments
    ---------
    squares : torch.Tensor
        ``[n]``, squared singular values of the matrix.
    polynomials : list of tuple
        ``(a, b, c)`` for each step.

    Returns
    -------
    stretch : torch.Tensor
        ``[n]``: ``p(σ/‖X‖_F)/σ`` of the steps' composition ``p``.

    Example
    -------
    >>> squares = torch.tensor([4.0], dtype=torch.float64)
    >>> newton_schulz_stretch(squares, [(1.5, -0.5, 0.0)] * 9)
    tensor([0.5000], dtype=torch.float64)
    """
    start = 1 / (squares.sum().sqrt() + NORM_FLOOR)
    stretch = start.expand_as(squares)
    for a, b, c in polynomials:
        square = squares * stretch.square()
        stretch = stretch * (a + square * (b + c * square))
    return stretch
