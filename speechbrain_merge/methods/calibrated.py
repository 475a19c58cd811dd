r"""Singular value calibration: what experts share is counted once.

Where experts moved in the same direction, their sum goes as far in it as all of
them together, and the merged model leans to what they share. Singular Value
Calibration (Zhang et al., "When Shared Knowledge Hurts: Spectral
Over-Accumulation in Model Merging", arXiv:2602.05536) decomposes the merged task
vector ``τ = U diag(σ) Vᵀ``, asks in each output direction ``u_r`` how far it goes
beyond each expert's own, and divides by the mean of that:

``a_r = u_rᵀ τ``, ``a_r^t = u_rᵀ τ_t``, ``s_r^t = ⟨a_r, a_r^t⟩ / ‖a_r^t‖²``,
``σ_r ← σ_r · T / Σ_t max(α, s_r^t)``.

``T`` equal experts that were summed give the one expert, and a mean of equal
experts stays. Singular vectors are not touched.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Calibrated, TaskArithmetic
>>> base = {"fc.weight": torch.zeros(2, 2)}
>>> experts = [{"fc.weight": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}] * 3
>>> Calibrated(TaskArithmetic())(experts, base)
{'fc.weight': tensor([[2., 0.],
        [0., 1.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.factorization import strongest
from speechbrain_merge.methods.matrices import NO_MATRICES
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.spectral_wrapper import SpectralWrapper


@register("calibrated")
class Calibrated(SpectralWrapper):
    """A method, and then ``σ_r ← σ_r · T / Σ_t max(α, s_r^t)``.

    The authors show it after task arithmetic, TIES and others, on matrices
    (embeddings and convolutions are left alone, as here).

    Directions in which the merged task vector is no stronger than the rounding
    errors of the weights as they were stored
    (``speechbrain_merge.methods.rounding``) stay as they are, and so does the
    part of an expert that has nothing in a direction: its ``s`` is zero.

    Arguments
    ---------
    method : MergeMethod, str or dict
        What merges: a method on task vectors, or a registered name.
    alpha : float
        ``α``, above 0: no direction becomes longer than by ``1 / α``. At the
        default of 1, as in the authors' code, nothing becomes longer.
    exclude, conv_as_matrix, split_projections, heads
        Which matrices are calibrated
        (``speechbrain_merge.methods.matrices.MatrixMethod``).

    Example
    -------
    >>> Calibrated("ties", alpha=0.5).alpha
    0.5
    """

    def __init__(
        self,
        method,
        alpha=1.0,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            method, exclude, conv_as_matrix, split_projections, heads
        )
        check_number(alpha, "alpha", above=0)
        self.alpha = alpha

    def merge_matrix(self, vectors, threads, ladder, noise):
        """Calibrates one matrix of the merged task vector."""
        merged, *experts = vectors
        with single_thread():
            found = strongest(
                merged, min(merged.shape), ladder[-1:], noise.of(0)
            )
            left = found.left.to(torch.float64)
            along = left.T @ merged
            total = along.new_zeros(len(along))
            for expert in experts:
                own = left.T @ expert
                square = own.square().sum(1)
                product = (along * own).sum(1)
                share = torch.where(square > 0, product / square, 0.0)
                total += share.clamp_min(self.alpha)
            factor = len(experts) / total
            return merged + left @ ((factor - 1)[:, None] * along)
