r"""Products of thin matrices: the nearest of a rank, and their common space.

An adapter changes a weight by ΔW = B·A with B (m × r) and A (r × n). Sums of
such products are products again, of the matrices side by side:

    Σ_t c_t B_t A_t = [c_1 B_1 … c_T B_T] · [A_1; …; A_T].

``thin_svd`` decomposes such a product by way of two thin QR factorizations, so
that nothing of the size of ΔW is ever made. Its first r terms are the nearest
matrix of rank r, and what is cut off is the error (Eckart and Young, "The
approximation of one matrix by another of lower rank", 1936).

``core_space`` is the space that all B_t and A_t lie in (Panariello et al.,
"Accurate and Efficient Low-Rank Model Merging in Core Space", NeurIPS 2025,
https://arxiv.org/abs/2509.17786): with U_B the left singular vectors of the
stacked B and V_A the right ones of the stacked A,

    M_t = U_Bᵀ B_t A_t V_A,    B_t A_t = U_B M_t V_Aᵀ

without loss. M_t is small and square in the number of all ranks together.

Example
-------
>>> up, down = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2)
>>> factors = thin_svd(up, down, rank=1)
>>> (factors.up @ factors.down).round().abs().tolist(), round(factors.error, 6)
([[3.0, 0.0], [0.0, 0.0]], 1.0)

Authors
 * The speechbrain_merge authors 2026
"""

from typing import NamedTuple

import torch


class ThinFactors(NamedTuple):
    """A product of two thin matrices, and how near it is.

    Arguments
    ---------
    up : torch.Tensor
        (m, rank), float64.
    down : torch.Tensor
        (rank, n), float64.
    error : float
        Frobenius norm of what was cut off.
    norm : float
        Frobenius norm of the product before.
    """

    up: torch.Tensor
    down: torch.Tensor
    error: float
    norm: float


class CoreSpace(NamedTuple):
    """The common space of several products.

    Arguments
    ---------
    left : torch.Tensor
        U_B, (m, k), orthonormal columns; zeros where the stacked B have no
        more directions.
    right : torch.Tensor
        V_Aᵀ, (l, n), likewise of rows.
    cores : list of torch.Tensor
        M_t, (k, l), one a product.
    """

    left: torch.Tensor
    right: torch.Tensor
    cores: list


def thin_svd(up: torch.Tensor, down: torch.Tensor, rank: int) -> ThinFactors:
    """The nearest product of a rank, its singular values shared equally.

    Arguments
    ---------
    up : torch.Tensor
        B, (m, k).
    down : torch.Tensor
        A, (k, n).
    rank : int
        Columns and rows of the result; filled up with zeros where the product
        has a lower one.

    Returns
    -------
    ThinFactors

    Example
    -------
    >>> factors = thin_svd(torch.ones(2, 1), torch.ones(1, 3), rank=2)
    >>> factors.up.shape, factors.down.shape, factors.error
    (torch.Size([2, 2]), torch.Size([2, 3]), 0.0)
    """
    q_up, r_up = torch.linalg.qr(up.to(torch.float64))
    q_down, r_down = torch.linalg.qr(down.to(torch.float64).T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    new_up = up.new_zeros((len(up), rank), dtype=torch.float64)
    new_down = up.new_zeros((rank, down.shape[1]), dtype=torch.float64)
    new_up[:, :kept] = (q_up @ u[:, :kept]) * root
    new_down[:kept] = root[:, None] * (v[:kept] @ q_down.T)
    return ThinFactors(
        new_up,
        new_down,
        values[kept:].norm().item(),
        values.norm().item(),
    )


def core_space(ups: list, downs: list) -> CoreSpace:
    """The space in which products of thin matrices are small matrices.

    Arguments
    ---------
    ups : list of torch.Tensor
        B_t, (m, r_t), scaled: ΔW_t = B_t A_t.
    downs : list of torch.Tensor
        A_t, (r_t, n).

    Returns
    -------
    CoreSpace
        In float64.

    Example
    -------
    >>> space = core_space([torch.ones(2, 1)] * 2, [torch.ones(1, 3)] * 2)
    >>> (space.left @ space.cores[1] @ space.right).round(decimals=6)
    tensor([[1., 1., 1.],
            [1., 1., 1.]], dtype=torch.float64)
    """
    ups = [up.to(torch.float64) for up in ups]
    downs = [down.to(torch.float64) for down in downs]
    left = _range_of(torch.cat(ups, 1))
    right = _range_of(torch.cat(downs).T).T
    cores = [(left.T @ b) @ (a @ right.T) for b, a in zip(ups, downs)]
    return CoreSpace(left, right, cores)


def _range_of(matrix):
    """Left singular vectors, zeros for singular values that are rounding."""
    u, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    smallest = values[:1] * max(matrix.shape) * torch.finfo(values.dtype).eps
    return u * (values > smallest)
