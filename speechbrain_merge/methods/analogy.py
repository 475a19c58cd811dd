"""Task analogies: what one expert has and another lacks, added to the base.

``θ_0 + λ (θ_a − θ_b)`` (Su et al., "Task Arithmetic can Mitigate
Synthetic-to-Real Gap in Automatic Speech Recognition", arXiv:2406.02925, after
the analogies of Ilharco et al., ICLR 2023). In the paper ``θ_a`` was fine-tuned
on recordings and ``θ_b`` on synthetic speech of one domain, and the difference
is added to a model that was fine-tuned on synthetic speech of another domain,
for which there are no recordings.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Analogy
>>> synthetic_target = {"w": torch.tensor([5.0])}
>>> real, synthetic = {"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}
>>> Analogy()([real, synthetic], base=synthetic_target)
{'w': tensor([6.])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import resolve
from speechbrain_merge.methods.matrices import check_scale
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.sphere import combination


@register("analogy")
class Analogy(MergeMethod):
    """``θ_0 + λ (θ_a − θ_b)``, experts ``a`` and ``b`` in this order.

    Arguments
    ---------
    scale : float or dict
        ``λ``, also by part or depth
        (``speechbrain_merge.methods.coefficients``).

    Example
    -------
    >>> Analogy(scale=0.5)
    Analogy(scale=0.5)
    """

    needs_base = True
    shows_faults = True
    minimum_experts = 2
    maximum_experts = 2

    def __init__(self, scale=1.0):
        super().__init__()
        check_scale(scale)
        self.scale = scale

    def merge_tensor(self, name, experts, base):
        """Adds the scaled difference of one tensor."""
        scale = resolve(self.scale, name, 1, self.labels, self.depths)[0]
        return combination([base, *experts], [1.0, scale, -scale])
