"""Consensus merging: keep what several experts need.

Wang et al., "Localizing task information for improved model merging and
compression", ICML 2024. A TALL mask marks the weights in which the sum of all
task vectors is close enough to one expert's own; a weight that is marked for
too few experts serves one task at the others' cost, or none, and goes back to
the base.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Consensus
>>> base = {"w": torch.zeros(3)}
>>> experts = [
...     {"w": torch.tensor([1.0, 1.0, -1.0])},
...     {"w": torch.tensor([1.0, 0.0, 0.2])},
... ]
>>> Consensus()(experts, base)
{'w': tensor([2., 0., 0.])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_number, check_whole
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import add_to_base


@register("consensus")
class Consensus(MergeMethod):
    """``θ_0 + λ m ⊙ Σ τ_t``, ``m = [Σ_t [|τ_t| > μ |Σ τ − τ_t|] ≥ k]``.

    Arguments
    ---------
    mask_scale : float
        ``μ``: the larger, the fewer weights count as an expert's own. The
        authors choose among 0.2 to 0.6 on validation data, for each expert; a
        list gives one for each.
    minimum_agreement : int
        ``k``: for how many experts a weight must be marked. 1 removes only
        what serves nobody; 0 removes nothing, which is task arithmetic.
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``. A sum
        over several experts mostly wants less than 1.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    >>> Consensus(scale=0.5)(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([2.5000])}
    """

    needs_base = True
    piecewise = True

    def __init__(self, mask_scale=0.4, minimum_agreement=2, scale=1.0):
        super().__init__()
        several = isinstance(mask_scale, (list, tuple))
        for value in mask_scale if several else [mask_scale]:
            check_number(value, "mask_scale", at_least=0)
        check_coefficient(mask_scale, "mask_scale")
        check_whole(minimum_agreement, "minimum_agreement")
        check_coefficient(scale, "scale")
        self.mask_scale, self.scale = mask_scale, scale
        self.minimum_agreement = minimum_agreement
        # fewer experts could never agree, and the result would be the base
        self.minimum_experts = max(1, minimum_agreement)

    def merge_pieces(self, name, experts, base):
        """Adds the task vectors of one tensor where enough experts agree."""
        number = len(experts)
        scales = resolve(self.scale, name, number, self.labels, self.depths)
        masks = resolve(self.mask_scale, name, number)

        def change(vectors, where):
            total = sum(vectors)
            marked = sum(
                (vector.abs() > (total - vector).abs_().mul_(mask)).to(
                    total.dtype
                )
                for vector, mask in zip(vectors, masks)
            )
            merged = sum(
                vector.mul_(scale) for vector, scale in zip(vectors, scales)
            )
            return merged.mul_(marked >= self.minimum_agreement)

        return add_to_base(change, experts, base)
