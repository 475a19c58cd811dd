"""Task arithmetic: add what fine-tuning did, or take it away.

``θ_0 + Σ λ_t τ_t`` with ``τ_t = θ_t − θ_0`` (Ilharco et al., "Editing models
with task arithmetic", ICLR 2023). A negative scale makes the base forget.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import TaskArithmetic
>>> base = {"w": torch.tensor([1.0, 1.0])}
>>> experts = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 0.0])}]
>>> TaskArithmetic(scale=0.5)(experts, base)
{'w': tensor([2.0000, 0.5000])}
>>> TaskArithmetic(scale=[1, -1])(experts, base)
{'w': tensor([3., 2.])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import add_to_base, scaled_sum


@register("task_arithmetic")
class TaskArithmetic(MergeMethod):
    """``θ_0 + Σ λ_t τ_t``.

    Arguments
    ---------
    scale : float, list or dict
        ``λ``: one for all, or by expert, part and depth, in any form of
        ``speechbrain_merge.methods.coefficients``. The default of 1 is the
        reference's; a sum over several experts mostly wants less (the paper
        finds 0.3 to 0.5), to be chosen on a development set. Negative: forget.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    >>> TaskArithmetic()(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([4.])}
    """

    needs_base = True
    piecewise = True
    shows_faults = True

    def __init__(self, scale=1.0):
        super().__init__()
        check_coefficient(scale, "scale")
        self.scale = scale

    def merge_pieces(self, name, experts, base):
        """Adds the scaled task vectors of one tensor."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )

        return add_to_base(
            lambda vectors, where: scaled_sum(vectors, scales), experts, base
        )
