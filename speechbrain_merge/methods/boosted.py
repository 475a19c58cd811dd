"""Subspace boosting after any method: weak directions of a merge, raised.

The lift of BoostedTSV-M (Carvalho et al., arXiv:2603.05354), whose idea is that
of Subspace-Boosted Model Merging (Skorobogat et al., arXiv:2506.16506): of the
merged task vector ``τ = U diag(σ) Vᵀ``, every singular value below the one at
which a part ``boost`` of the energy is reached is raised to that one. As a
wrapper, boosting can be compared after task arithmetic, TIES and TSV-M.

``Boosted("tsv_m")`` is ``BoostedTSVM(boost_stage="merged")`` with the same
orthogonalizer. What the paper calls BoostedTSV-M raises the experts' values
instead, before they are joined.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Boosted
>>> base = {"fc.weight": torch.zeros(2, 2)}
>>> expert = {"fc.weight": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
>>> Boosted("task_arithmetic", boost=0.3)([expert], base)
{'fc.weight': tensor([[3., 0.],
        [0., 3.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.boosted_task_singular_vectors import floor_of
from speechbrain_merge.methods.factorization import strongest
from speechbrain_merge.methods.matrices import NO_MATRICES
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.spectral_wrapper import SpectralWrapper


@register("boosted")
class Boosted(SpectralWrapper):
    """A method, and then ``σ_j ← max(σ_j, σ_i)``.

    ``i`` is the first index where ``Σ_{j≤i} σ_j ≥ boost · Σ_j σ_j``.

    Directions in which the merged task vector is no stronger than the rounding
    errors of the weights as they were stored are noise, and not raised
    (``speechbrain_merge.methods.rounding``). Raising makes the task vector
    longer: choose the ``scale`` of the method together with ``boost``.

    Arguments
    ---------
    method : MergeMethod, str or dict
        What merges: a method on task vectors, or a registered name.
    boost : float
        Above 0 and at most 1, which raises nothing. The smaller, the more is
        raised.
    energy : str
        ``"l1"`` or ``"l2"``: sums of singular values or of their squares.
    exclude, conv_as_matrix, split_projections, heads
        Which matrices are boosted
        (``speechbrain_merge.methods.matrices.MatrixMethod``).

    Example
    -------
    >>> Boosted("ties", boost=0.5, energy="l2").energy
    'l2'
    """

    def __init__(
        self,
        method,
        boost=0.3,
        energy="l1",
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            method, exclude, conv_as_matrix, split_projections, heads
        )
        check_number(boost, "boost", above=0, at_most=1)
        check_choice(energy, "energy", ("l1", "l2"))
        self.boost, self.energy = boost, energy

    def merge_matrix(self, vectors, threads, ladder, noise):
        """Raises the singular values of one matrix of the merge."""
        merged = vectors[0]
        if self.boost == 1:
            return merged
        with single_thread():
            # What the experts' rounding adds to a merge is less than what it
            # adds to their sum, for every method that does not enlarge it.
            found = strongest(
                merged, min(merged.shape), ladder[-1:], noise.of_sum()
            )
            floor = floor_of(found.spectrum, self.boost, self.energy)
            raised = found.values.clamp_min(floor) - found.values
            left = (found.left * raised).to(torch.float64)
            return merged + left @ found.right.T.to(torch.float64)
