"""LiNeS: the deeper the layer, the more of the change.

Wang et al., "LiNeS: Post-training layer scaling prevents forgetting and
enhances model merging", ICLR 2025. Early layers hold what all tasks share and
should stay close to the base; so the change that a merge makes is scaled by a
factor that grows linearly over the layers.

An encoder-decoder has two stacks of layers, and each has its own depth: both
go from ``first`` to ``last``. All that lies outside the layers (front end,
embeddings, final norms, output) gets ``first``, as in the authors' code, and so
does a stack's only layer.

In the paper's terms, ``first = α`` and ``last = α + β``. For one expert it sets
``last = 1``; for several it suggests ``α = (‖Σ τ_t‖₁ / ‖τ‖₁) / T``, where ``τ``
is what the wrapped method adds to the base, and searches ``β``.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import LayerScaled, TaskArithmetic
>>> names = [f"encoder.layers.{layer}.linear.weight" for layer in range(3)]
>>> base = {name: torch.zeros(1) for name in names}
>>> expert = {name: torch.ones(1) for name in names}
>>> merged = LayerScaled(TaskArithmetic(), first=0.2, last=1.0)([expert], base)
>>> [round(merged[name].item(), 3) for name in names]
[0.2, 0.6, 1.0]

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Union

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import resolve
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.restricted import check_method


@register("layer_scaled")
class LayerScaled(MergeMethod):
    """``θ_0 + (α + β l / (L − 1)) · (method − θ_0)`` in layer ``l`` of ``L``.

    Arguments
    ---------
    method : MergeMethod or str
        What makes the change: a method, or a registered name.
    first : float
        Factor of the first layer, and of all outside the layers.
    last : float
        Factor of the last layer.

    Example
    -------
    >>> layered = LayerScaled("ties", first=0.1, last=1.0)
    >>> layered.method
    TIES(density=0.2, scale=1.0, scope='model', aggregate='mean', vote_weights=None)
    """

    needs_base = True

    def __init__(
        self,
        method: Union[MergeMethod, str, dict],
        first: float,
        last: float,
    ):
        super().__init__()
        check_number(first, "first")
        check_number(last, "last")
        self.method = check_method(method)
        self.first, self.last = first, last

    @property
    def on_device(self):
        """Whether the method that it wraps computes on a GPU."""
        return self.method.on_device

    def check_experts(self, number: int) -> None:
        """Raises a ValueError when the method cannot merge so many experts."""
        self.method.check_experts(number)

    def prepare(self, experts, base):
        """The method, prepared."""
        return self.prepared_inner(self.method, experts, base)

    def merge_tensor(self, name, experts, base):
        """Scales what the method does to one tensor."""
        linear = {"depth": [self.first, self.last]}
        factor = resolve(linear, name, 1, depths=self.depths)[0]
        merged = self.found.merge_tensor(name, experts, base)
        # exact at both ends: the base at 0, the method's own at 1
        return torch.lerp(base, merged, factor)
