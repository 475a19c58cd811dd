r"""ACE: RegMean without data, its Gram matrices out of the task vectors.

RegMean weighs the experts of a layer by the covariances of the inputs that they
saw. What fine-tuning changed in a row of a matrix is a sum of such inputs, so
that the rows of a task vector tell the covariance (Xu et al., "ACE-Merging:
Data-Free Model Merging with Adaptive Covariance Estimation", CVPR 2026,
arXiv:2603.02945). With ``C_t``, the task vector ``τ_t`` ``[out, in]`` without
the mean of its rows:

- ``Σ_t = C_tᵀ C_t``, ``c = mean of the rows of Σ_t Σ_t``,
- ``τ = (Σ_t C_t (Σ_t + ε I)) (Σ_t (Σ_t + ε I) + 1 cᵀ)⁻¹``.

Experts are heterogeneous in a matrix where the variance of ``ln ‖τ_t‖²``, over
the square of its mean, is above a threshold. There ``Σ_t`` and ``ε`` are divided
by the trace of ``Σ_t``, ``c`` by the mean of ``‖τ_t‖²``, and to ``τ`` is added
what one singular value for the strongest directions of
``Δ = τ + Σ_t τ_t (Σ_t − Σ̄)`` makes of them: ``σ̄ U_k V_kᵀ``, with ``Σ̄`` the mean
of ``Σ_t + ε I``, ``k`` a part of the directions, and ``σ̄`` the mean of their
singular values.

The formulas are those of the authors' code
(https://github.com/unravel-xu/ACE-Merging, src/merge/strategy.py), which tests
compare with. As there, ``ε`` is not relative to the weights: where task vectors
are so short that ``ε`` outweighs ``Σ_t``, as after a few steps of fine-tuning,
``τ`` comes near to the mean of the ``C_t``. One expert is not given back, since
the mean of its rows is left out.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import ACE
>>> base = {"fc.weight": torch.zeros(2, 2)}
>>> experts = [
...     {"fc.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])},
...     {"fc.weight": torch.tensor([[0.0, 1.0], [0.0, -1.0]])},
... ]
>>> ACE()(experts, base)["fc.weight"].round(decimals=2)
tensor([[ 0.5000,  0.5000],
        [-0.5000, -0.5000]])

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.factorization import svd
from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register

# The authors', against logarithms and quotients of nothing
TINY = 1e-12


@register("ace")
class ACE(MatrixMethod):
    """``(Σ C_t (Σ_t + ε I)) (Σ (Σ_t + ε I) + 1 cᵀ)⁻¹`` in matrices; else the mean.

    An expert that stands still in a matrix has no say in it. In the authors'
    code, it pulls a heterogeneous merge to zero.

    Arguments
    ---------
    epsilon : float
        ``ε``, above 0.
    threshold : float
        From which on experts are heterogeneous, at least 0.
    fraction : float
        The part of the directions that are ``k``, from 0 to 1.
    scale : float or dict
        Multiplies the merged task vector, also by part or depth
        (``speechbrain_merge.methods.coefficients``).
    exclude, conv_as_matrix, split_projections, heads
        Which matrices the formula sees
        (``speechbrain_merge.methods.matrices.MatrixMethod``). The authors'
        code sees embeddings as well.

    Example
    -------
    >>> ACE(epsilon=0)
    Traceback (most recent call last):
    ...
    ValueError: `epsilon` must be a number above 0, got 0.
    """

    def __init__(
        self,
        epsilon=1e-2,
        threshold=0.3,
        fraction=0.3,
        scale=1.0,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            scale, exclude, conv_as_matrix, split_projections, heads
        )
        check_number(epsilon, "epsilon", above=0)
        check_number(threshold, "threshold", at_least=0)
        check_number(fraction, "fraction", at_least=0, at_most=1)
        self.epsilon, self.threshold = epsilon, threshold
        self.fraction = fraction

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula for one matrix of each expert."""
        moved = [vector for vector in vectors if vector.any()]
        if not moved:
            return torch.zeros_like(vectors[0])
        with single_thread():
            energies = torch.stack([vector.square().sum() for vector in moved])
            uneven = self._heterogeneous(energies)
            covariances, ridges, centred = [], [], []
            for vector in moved:
                rows = vector - vector.mean(0, keepdim=True)
                covariance = rows.T @ rows
                size = covariance.trace() + TINY if uneven else 1.0
                centred.append(rows)
                covariances.append(covariance / size)
                ridges.append(self.epsilon / size)
            total = sum(covariances)
            together = total + sum(ridges) * torch.eye(
                total.shape[0], dtype=total.dtype, device=total.device
            )
            shared = total.mean(0, keepdim=True)
            if uneven:
                shared = shared / (energies.mean() + TINY)
            weighed = sum(
                rows @ covariance + ridge * rows
                for rows, covariance, ridge in zip(centred, covariances, ridges)
            )
            # solved from the right: τ A = B
            merged = torch.linalg.solve(together + shared, weighed, left=False)
            if not uneven:
                return merged
            mean = together / len(moved)
            rest = sum(
                vector @ (covariance - mean)
                for vector, covariance in zip(moved, covariances)
            )
            return merged + self._level(merged + rest)

    def _heterogeneous(self, energies):
        """Whether the experts' lengths are so different."""
        if len(energies) == 1:
            return False
        logarithms = (energies + TINY).log()
        spread = logarithms.var() / (logarithms.mean().square() + TINY)
        return bool(spread > self.threshold)

    def _level(self, matrix):
        """The strongest directions, all with the mean of their values."""
        left, values, right = svd(matrix)
        count = int(len(values) * self.fraction)
        if count == 0:
            return torch.zeros_like(matrix)
        return values[:count].mean() * left[:, :count] @ right[:count]
