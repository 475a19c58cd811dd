r"""How large the rounding errors of stored weights are, as matrices.

A LoRA of rank 8 changes a matrix in eight directions. Folded into the weights
and stored in float32, each entry of ``θ_t`` is rounded, so that the task vector
``τ_t = θ_t − θ_0`` is of full rank: eight directions of the fine-tuning, and
many weak ones of noise. A method that raises weak directions must know which
ones are noise. How strong they are depends on the size of the weights and on
the type they were stored in, and not on the size of the task vector.

The derivation. Rounding ``x`` to the nearest number of a type with machine
epsilon ``ε`` errs by at most ``ε|x|/2``, and by ``ε|x|/√12`` or less in root
mean square (the error is spread evenly over one step, and a step is at most
``ε|x|``; for the smallest numbers it is the smallest subnormal ``s``). The
errors of different entries are independent of one another, so that ``E``, the
error of a matrix, is a random matrix of independent entries with variances
``v_ij = ((εθ_ij)² + s²)/12``. Its largest singular value is at most about

``‖E‖ ≈ max_i √(Σ_j v_ij) + max_j √(Σ_i v_ij)``

(A. S. Bandeira et al., "Sharp nonasymptotic bounds on the norm of random
matrices with independent entries", 2016; where all weights have about the size
``rms(θ)``, this is ``ε rms(θ) (√m + √n)/√12``). A step is mostly shorter than
``ε|x|``, by a quarter in the mean, which leaves a margin.

The type is not asked for but seen: weights are taken to be of the coarsest type
that holds each of their values exactly. So a float16 checkpoint that somebody
converted to float32 is still known to have the errors of float16, and it makes
no difference in which type a tensor is handed over. A handful of values tells
nothing (0, 1 and 2 are in every type): small or nearly empty matrices are of
the type that they are given in, which for methods is float32 at least.

The base's own rounding counts as that of the finer of the two types. Experts
start from the base as it is stored: what float16 did to it before is in
float32 experts as well, and cancels in ``τ_t``.

Example
-------
>>> import torch
>>> torch.manual_seed(0)  # doctest: +ELLIPSIS
<torch._C.Generator object at ...>
>>> weights = torch.randn(64, 64, dtype=torch.float64)
>>> error = weights.float().double() - weights
>>> bound = spectral_noise(weights, stored_type(weights.float()))
>>> bool(0.5 * bound < torch.linalg.matrix_norm(error, 2) < bound)
True

Authors
 * The speechbrain_merge authors 2026
"""

import math
from dataclasses import dataclass

import torch

from speechbrain_merge.methods.tall import walk_rows
from speechbrain_merge.weights.dtypes import is_float8

# From the coarsest to the finest
STORED_TYPES = (
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
)

# So many entries are looked at first: few tensors look coarser than they are.
GLANCE = 1024

# With fewer entries than this that are not zero, a tensor is of its own type.
TELLING = 64

# Fewer different values than this are in every type, float8 as well.
DISTINCT = 8

# So many entries are squared at a time: they stay in a core's cache.
BLOCK = 1 << 18

# Squares of lengths between these are far from the ends of float32.
SHORT, LONG = 2.0**-50, 2.0**50


@dataclass(frozen=True)
class Noise:
    """Spectral norms of the rounding errors in task vectors of one matrix.

    Arguments
    ---------
    experts : tuple of float
        What the rounding of each expert ``θ_t`` adds to ``τ_t``.
    base : tuple of float
        What the rounding of ``θ_0`` adds to each ``τ_t``.

    Example
    -------
    >>> noise = Noise(experts=(3.0, 3.0), base=(4.0, 4.0))
    >>> noise.of(0), noise.of_all(), round(noise.of_sum(), 2)
    (5.0, 7.0710678118654755, 9.06)
    """

    experts: tuple
    base: tuple

    def of(self, number: int) -> float:
        """The error of the task vector of one expert."""
        return math.hypot(self.experts[number], self.base[number])

    def of_all(self) -> float:
        """The error of all task vectors side by side."""
        return math.hypot(*self.experts, *self.base)

    def first(self, number: int) -> "Noise":
        """The errors of the first so many experts alone."""
        return Noise(self.experts[:number], self.base[:number])

    def of_sum(self) -> float:
        """The error of their sum; the base's error counts once an expert."""
        return math.hypot(*self.experts, sum(self.base))


def stored_type(weights: torch.Tensor) -> torch.finfo:
    """The type that weights were stored in, as far as their values tell.

    Arguments
    ---------
    weights : torch.Tensor
        Of a floating-point type.

    Returns
    -------
    info : torch.finfo
        Of the coarsest of ``STORED_TYPES`` that holds each value exactly.

    Example
    -------
    >>> weights = torch.arange(1, 100) / 3
    >>> stored_type(weights.half().double()).dtype
    'float16'
    >>> stored_type(weights.half()[:5].double()).dtype
    'float64'
    """
    flat = weights.reshape(-1)
    glance = flat[:GLANCE]
    few = int(torch.count_nonzero(glance)) < TELLING
    if few and int(torch.count_nonzero(flat)) < TELLING:
        return torch.finfo(weights.dtype)
    for dtype in STORED_TYPES:
        if dtype == weights.dtype:
            break
        if is_float8(dtype) and len(glance.abs().unique()) < DISTINCT:
            continue
        if _holds(dtype, glance) and _holds(dtype, flat):
            break
    return torch.finfo(dtype)


def _holds(dtype, values):
    """Whether values are the same after a conversion to a type."""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def spectral_noise(weights: torch.Tensor, info: torch.finfo) -> float:
    """The spectral norm of the errors that rounding made in a matrix.

    Arguments
    ---------
    weights : torch.Tensor
        ``[m, n]``.
    info : torch.finfo
        Of the type that the weights were rounded to.

    Returns
    -------
    noise : float
        ``max_i √(Σ_j v_ij) + max_j √(Σ_i v_ij)``, as derived above.
    """
    if weights.numel() == 0:
        return 0.0
    rows, columns = weights.shape
    row, column = longest_of(weights)
    if not (SHORT < row < LONG and SHORT < column < LONG):
        # squares overflow or vanish, if not all are zero
        largest = float(weights.abs().max()) or 1.0
        row, column = longest_of(weights.to(torch.float64) / largest)
        row, column = largest * row, largest * column
    smallest = info.smallest_normal * info.eps
    return (
        math.hypot(info.eps * row, smallest * math.sqrt(columns))
        + math.hypot(info.eps * column, smallest * math.sqrt(rows))
    ) / math.sqrt(12)


def longest_of(weights: torch.Tensor) -> tuple[float, float]:
    """Lengths of the longest row and of the longest column of a matrix.

    Arguments
    ---------
    weights : torch.Tensor
        ``[m, n]``. Its type is squared in; sums over rows are in float64.

    Returns
    -------
    row, column : float
        Right where both are between ``SHORT`` and ``LONG``.

    Example
    -------
    >>> longest_of(torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, 0.0]]))
    (5.0, 5.0)
    """
    of_rows = 0.0
    of_columns = weights.new_zeros(weights.shape[1], dtype=torch.float64)
    for where in walk_rows([weights], BLOCK):
        squares = weights[where].square()
        of_rows = max(of_rows, float(squares.sum(1).max()))
        of_columns += squares.sum(0)
    return math.sqrt(of_rows), math.sqrt(float(of_columns.max()))


def noise_of(
    experts: list, base: torch.Tensor, infos: list, base_info: torch.finfo
) -> Noise:
    """The rounding errors in the task vectors of one matrix.

    Arguments
    ---------
    experts : list of torch.Tensor
        ``[m, n]`` each.
    base : torch.Tensor
        ``[m, n]``.
    infos : list of torch.finfo
        The type that each expert was stored in.
    base_info : torch.finfo
        The type that the base was stored in.

    Returns
    -------
    noise : Noise
    """
    finer = [min(info, base_info, key=lambda one: one.eps) for info in infos]
    of_base = {
        info.eps: spectral_noise(base, info)
        for info in {one.eps: one for one in finer}.values()
    }
    return Noise(
        tuple(map(spectral_noise, experts, infos)),
        tuple(of_base[info.eps] for info in finer),
    )
