"""RegMean: the linear layer whose outputs are closest to all the experts'.

For a linear layer, the merged weight that minimises
``Σ_t ‖X_t W − X_t W_t‖²`` over the inputs ``X_t`` that expert t sees is
``(Σ G_t)⁻¹ Σ G_t W_t`` with the Gram matrices ``G_t = X_tᵀ X_t`` (Jin et al.,
"Dataless knowledge fusion by merging weights of language models", ICLR 2023).
All other tensors are averaged.

The paper shrinks the off-diagonal entries of each Gram matrix to 0.9 of
themselves, since merged layers do not see the inputs that the experts' layers
see; the released code has 1 as its default, and smaller values help smaller
models.

Gram matrices need not have full rank: inputs that never vary, or fewer frames
than dimensions. References invert them all the same and get noise. Here,
``W = W̄ + (Σ G_t)⁺ Σ G_t (W_t − W̄)`` with the mean ``W̄``: a least-squares
solution that stays at the mean in all directions that the data say nothing of.
It is solved in float64.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import RegMean
>>> experts = [{"fc.weight": torch.tensor([[0.0, 2.0]])}] * 2
>>> experts[1] = {"fc.weight": torch.tensor([[4.0, 4.0]])}
>>> grams = [torch.diag(torch.tensor(d)) for d in ([3.0, 0.0], [1.0, 0.0])]
>>> RegMean(statistics=[{"fc.weight": gram} for gram in grams])(experts)
{'fc.weight': tensor([[1., 3.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod, mean
from speechbrain_merge.methods.expert_statistics import (
    check_models,
    check_names,
    check_statistics,
    open_statistics,
)
from speechbrain_merge.methods.factorization import SOLVER_ERRORS, svd
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register


@register("regmean")
class RegMean(MergeMethod):
    """``(Σ G̃_t)⁻¹ Σ G̃_t W_t`` for linear layers, the mean for all else.

    Arguments
    ---------
    statistics : list or dict
        The Gram matrices of each expert: safetensors files as
        ``collect_grams`` of ``speechbrain_merge.brain.statistics`` writes
        them, or mappings from names of weights ``[out, in]`` to matrices
        ``[in, in]``; in the order of the experts, or by their labels.
    off_diagonal : float
        What the off-diagonal entries of the Gram matrices are multiplied by,
        in [0, 1].

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([[1.0]])}, {"w": torch.tensor([[5.0]])}]
    >>> grams = [{"w": torch.tensor([[3.0]])}, {"w": torch.tensor([[1.0]])}]
    >>> RegMean(grams)(experts)
    {'w': tensor([[2.]])}
    """

    statistics_kind = "gram"

    def __init__(self, statistics=None, off_diagonal=0.9):
        super().__init__()
        check_statistics(statistics)
        check_number(off_diagonal, "off_diagonal", at_least=0, at_most=1)
        self.statistics, self.off_diagonal = statistics, off_diagonal

    def prepare(self, experts, base):
        """Opens the statistics."""
        grams = open_statistics(
            self.statistics, self.labels, self.name, self.statistics_kind
        )
        check_names(grams, experts)
        check_models(grams, experts)
        return grams

    def merge_tensor(self, name, experts, base):
        """Solves for one linear layer, or averages."""
        if name not in self.found[0]:
            return mean(experts)
        center = mean([expert.double() for expert in experts])
        gram, moved = 0, 0
        for statistics, expert in zip(self.found, experts):
            own = self._gram(statistics, name, expert)
            gram = gram + own
            # transposed: linear layers store [out, in]
            moved = moved + own @ (expert.double() - center).T
        try:
            solution = center + solve_symmetric(gram, moved).T
        except SOLVER_ERRORS as error:
            raise ValueError(
                f"The equations for {name} could not be solved from the "
                f"experts' Gram matrices ({error}). Collect them again, over "
                "more data, or leave this tensor out of them, so that it is "
                "averaged."
            ) from error
        return solution.to(experts[0].dtype)

    def _gram(self, statistics, name, expert):
        """One expert's Gram matrix, checked and shrunk, in float64."""
        gram = statistics[name].to(expert.device).double()
        size = expert.shape[-1] if expert.dim() == 2 else None
        if gram.shape != (size, size):
            raise ValueError(
                f"{statistics.label}: the Gram matrix of {name} has shape "
                f"{tuple(gram.shape)}, but the weight {tuple(expert.shape)}: "
                "expected [in, in] of a weight [out, in]."
            )
        if not torch.isfinite(gram).all() or (gram.diagonal() < 0).any():
            raise ValueError(
                f"{statistics.label}: the Gram matrix of {name} has values "
                "that are not finite, or negative on its diagonal. Collect "
                "it again."
            )
        diagonal = gram.diagonal().clone()
        gram = gram * self.off_diagonal
        gram.diagonal().copy_(diagonal)
        return gram


def solve_symmetric(matrix, right):
    """``A⁺ B`` for a symmetric positive semi-definite A, in float64.

    Arguments
    ---------
    matrix : torch.Tensor
        A, shape [n, n].
    right : torch.Tensor
        B, shape [n, m].

    Returns
    -------
    solution : torch.Tensor
        Shape [n, m]: exact where A has full rank; otherwise the least-squares
        solution of least norm, when the inputs are measured by their size.

    Example
    -------
    >>> A = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    >>> solve_symmetric(A, torch.ones(2, 1, dtype=torch.float64)).T
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    # Inputs of a layer may differ in size by far: look at correlations, so that
    # a small input is not taken for one that never varies.
    sizes = matrix.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(sizes > 0, 1 / sizes, torch.zeros_like(sizes))
    scaled = matrix * inverse[:, None] * inverse
    precision = len(matrix) * torch.finfo(matrix.dtype).eps
    # Statistics are kept in float32: what is below that is noise
    precision = max(precision, torch.finfo(torch.float32).eps)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if not failed and factor.diagonal().min() ** 2 > precision:
        solution = torch.cholesky_solve(right * inverse[:, None], factor)
        return solution * inverse[:, None]
    try:
        values, vectors = torch.linalg.eigh(scaled)
    except torch.linalg.LinAlgError:
        vectors, values, _ = svd(scaled)
    kept = values > precision * values.max().clamp(min=0)
    values, vectors = values[kept], vectors[:, kept]
    solution = vectors @ (
        (vectors.T @ (right * inverse[:, None])) / values[:, None]
    )
    return solution * inverse[:, None]
