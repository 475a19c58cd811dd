"""Methods that change the singular values of what another method merged.

Merging by a sum makes some singular values too large (directions that the
experts share) or leaves others weak. A ``SpectralWrapper`` lets another method
merge, decomposes the matrices of the merged task vector, and gives them other
singular values. What is no matrix stays as the other method merged it.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.spectral_wrapper import SpectralWrapper
>>> class Halved(SpectralWrapper):
...     "Half of every singular value."
...
...     def merge_matrix(self, vectors, threads, ladder, noise):
...         merged, *experts = vectors
...         return merged / 2
>>> base = {"fc.weight": torch.zeros(1, 2), "fc.bias": torch.zeros(1)}
>>> experts = [{name: base[name] + step for name in base} for step in (1, 3)]
>>> Halved("task_arithmetic")(experts, base)
{'fc.weight': tensor([[2., 2.]]), 'fc.bias': tensor([4.])}

Authors
 * The speechbrain_merge authors 2026
"""

from typing import NamedTuple, Optional, Union

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.restricted import check_method
from speechbrain_merge.methods.sphere import combination


class Wrapped(NamedTuple):
    """The findings of the first pass of a ``SpectralWrapper``.

    Arguments
    ---------
    layouts, aliases : dict
        As of ``speechbrain_merge.methods.matrices.Fused``.
    method : MergeMethod
        The wrapped method, prepared.
    """

    layouts: dict
    aliases: dict
    method: MergeMethod


class SpectralWrapper(MatrixMethod):
    """Another method, and then other singular values.

    A subclass gives ``merge_matrix``, whose ``vectors`` (and ``noise``) start
    with the merged task vector and go on with those of the experts.

    Arguments
    ---------
    method : MergeMethod, str or dict
        What merges: a method on task vectors, or a registered name.
    exclude, conv_as_matrix, split_projections, heads
        Which matrices are changed, as of ``MatrixMethod``. Others stay as the
        method merged them.
    """

    def __init__(
        self,
        method: Union[MergeMethod, str, dict],
        exclude=NO_MATRICES,
        conv_as_matrix: bool = False,
        split_projections: bool = True,
        heads: Optional[int] = None,
    ):
        super().__init__(
            exclude=exclude,
            conv_as_matrix=conv_as_matrix,
            split_projections=split_projections,
            heads=heads,
        )
        self.method = check_method(method)

    @property
    def on_device(self):
        """Whether the method that it wraps computes on a GPU."""
        return self.method.on_device

    def check_experts(self, number: int) -> None:
        """Raises a ValueError when the method cannot merge so many experts."""
        self.method.check_experts(number)

    def prepare(self, experts, base):
        """The method, prepared, and what the matrices are."""
        fused = super().prepare(experts, base)
        inner = self.prepared_inner(self.method, experts, base)
        return Wrapped(fused.layouts, fused.aliases, inner)

    def merge_tensor(self, name, experts, base):
        """Merges one tensor by the method, and changes its singular values."""
        merged = self.found.method.merge_tensor(name, experts, base)
        if not self.sees(name, base) or merged.equal(base):
            return merged
        change = self.formula_of(name, [merged, *experts], base)
        return combination([base, change], [1.0, 1.0]).to(merged.dtype)
