"""SCE: select, calculate, erase.

Wan et al., "FuseChat", 2024. In each tensor: select the entries in which the
experts differ most, calculate each expert's weight from how far it moved, and
erase the entries whose sign is not the elected one.

The formula follows mergekit's, with one exception. mergekit gives all experts
the same weight when the mean squares of a tensor's task vectors add up to less
than 1e-6, and fine-tuning often moves weights less than that; here the weights
are equal only where nothing moved. ``equal_below=1e-6`` is mergekit's reading.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import SCE
>>> base = {"w": torch.zeros(2)}
>>> experts = [
...     {"w": torch.tensor([3.0, 1.0])},
...     {"w": torch.tensor([1.0, -2.0])},
... ]
>>> SCE()(experts, base)
{'w': tensor([ 2.3333, -2.0000])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.pieces import PIECE, pieces, suited
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import (
    add_to_base,
    flat_task_vectors,
)
from speechbrain_merge.methods.thresholds import kth_largest


@register("sce")
class SCE(MergeMethod):
    """``θ_0 + Σ w_t m_t τ_t / max(Σ w_t m_t, 1e-6)``, ``w_t ∝ mean τ_t²``.

    Arguments
    ---------
    select : float
        Share of the entries that is merged, in (0, 1]: those in which the
        variance over the experts is largest, counted among the entries in
        which they differ at all. Entries of equal variance are all selected.
        With 1, all entries are merged.
    equal_below : float
        Where the mean squares of the experts' task vectors in a tensor (after
        the selection) add up to less than this, all experts weigh alike. 0 by
        default; 1e-6 in mergekit, which tells experts that moved by less than
        about 1e-3 no longer apart.

    Example
    -------
    >>> experts = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    >>> SCE()(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([2.8000])}
    """

    needs_base = True
    piecewise = True

    def __init__(self, select=1.0, equal_below=0.0):
        super().__init__()
        check_number(select, "select", above=0, at_most=1)
        check_number(equal_below, "equal_below", at_least=0)
        self.select, self.equal_below = select, equal_below

    def merge_pieces(self, name, experts, base):
        """Selects, calculates and erases in one tensor."""
        flat, anchor = [one.reshape(-1) for one in experts], base.reshape(-1)
        selected = self._selection(flat, anchor)
        energies = [0.0] * len(experts)
        for where in pieces(anchor.numel(), step=suited(anchor, PIECE)):
            for number, vector in enumerate(
                flat_task_vectors(flat, anchor, where)
            ):
                if selected is not None:
                    vector *= selected[where]
                energies[number] += float(vector.double().square_().sum())
        if sum(energies) == 0:
            return [anchor]
        if sum(energies) / base.numel() < self.equal_below:
            energies = [1.0] * len(experts)
        weights = [energy / sum(energies) for energy in energies]

        def change(vectors, where):
            votes = sum(vectors)
            total = divisor = 0
            for vector, weight in zip(vectors, weights):
                # plus wins where votes cancel; a zero never takes part
                taken = torch.where(votes >= 0, vector > 0, vector < 0)
                taken = taken.to(vector.dtype).mul_(weight)
                total = total + vector.mul_(taken)
                divisor = divisor + taken
            merged = total / divisor.clamp_(min=1e-6)
            return merged if selected is None else merged * selected[where]

        return add_to_base(change, experts, base)

    def _selection(self, experts, base):
        """Which entries vary most; None stands for all of them."""
        if self.select == 1:
            return None
        needed = torch.promote_types(base.dtype, torch.float32)
        variance = base.new_empty(base.numel(), dtype=needed)
        for where in pieces(base.numel(), step=suited(base, PIECE)):
            vectors = flat_task_vectors(experts, base, where)
            variance[where] = _variance(vectors)
        rank = int(int(torch.count_nonzero(variance)) * self.select)
        if rank == 0:
            return torch.zeros_like(variance, dtype=torch.bool)
        return variance >= kth_largest(variance, rank)


def _variance(vectors):
    """Population variance over the experts, exactly zero where all agree."""
    # measured from the first expert: what all share cancels before squaring
    total = torch.zeros_like(vectors[0])
    squares = torch.zeros_like(vectors[0])
    for vector in vectors[1:]:
        difference = vector - vectors[0]
        total += difference
        squares += difference.square_()
    number = len(vectors)
    mean = total.div_(number)
    return squares.div_(number).sub_(mean.square_()).clamp_(min=0)
