r"""MonoSoup: one fine-tuned checkpoint, softened towards its base.

A soup needs several trainings. MonoSoup (Hazimeh, Abdollahpoorrostam,
Dimitriadis and Frossard, "Model soups need only one ingredient",
arXiv:2602.09689) needs one: each matrix of the task vector ``τ = U diag(σ) Vᵀ``
is split into its strong directions, which hold what the fine-tuning was for, and
its weak ones, which hold noise and what helps outside of the domain. Both are
weighed by how much energy the strong ones have:

- ``p_i = σ_i² / Σ σ²``, ``k = ⌈exp(−Σ p_i ln p_i)⌉`` (the effective rank),
- ``P_k = Σ_{i≤k} p_i``, ``ρ = (σ_{k+1} / σ_1)²``,
- ``λ_low = ρ + (1 − ρ) √(1 − P_k)``, ``λ_high = 1 − λ_low``,
- ``τ' = λ_high τ_{≤k} + λ_low τ_{>k}``.

A task vector of rank one is given back. There is nothing to choose, and no data
is needed.

The authors' code takes ``p_i = σ_i / Σ σ`` for the effective rank, which keeps
more directions; it also has a threshold for the energy in place of the effective
rank, which is ``energy`` here.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import MonoSoup
>>> base = {"fc.weight": torch.zeros(3, 3)}
>>> expert = {"fc.weight": torch.diag(torch.tensor([2.0, 1.0, 1.0]))}
>>> MonoSoup(energy=0.6)([expert], base)["fc.weight"].diagonal()
tensor([0.6340, 0.6830, 0.6830])

Authors
 * The speechbrain_merge authors 2026
"""

import math
from typing import Optional

import torch

from speechbrain_merge.methods.factorization import strongest
from speechbrain_merge.methods.matrices import MatrixMethod
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.registry import register


@register("monosoup")
class MonoSoup(MatrixMethod):
    """``θ_0 + λ_high τ_{≤k} + λ_low τ_{>k}`` in matrices; else the expert.

    Directions no stronger than the rounding errors of the weights as they were
    stored (``speechbrain_merge.methods.rounding``) count as zeros: what a
    folded LoRA of rank one changed is of rank one.

    Arguments
    ---------
    energy : float or None
        ``k`` is the smallest number of directions with this part of ``Σ σ²``,
        above 0 and at most 1 (the authors' code has 0.8). ``None``: the
        effective rank.
    exclude : list of str
        Patterns of matrices that stay the expert's. By default none, as in the
        authors' code: embeddings are softened as well.
    conv_as_matrix : bool
        Whether convolutions are matrices ``[out, in · …]``, as in the authors'
        code; if not, they stay the expert's.
    split_projections : bool
        Whether fused queries, keys and values are softened apart.
    heads : int or None
        Attention heads of fused projections, where the weights do not tell.

    Example
    -------
    >>> base = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    >>> expert = {name: torch.ones_like(base[name]) for name in base}
    >>> MonoSoup()([expert], base)
    {'fc.weight': tensor([[1., 1.],
            [1., 1.]]), 'fc.bias': tensor([1., 1.])}
    """

    maximum_experts = 1

    def __init__(
        self,
        energy: Optional[float] = None,
        exclude=(),
        conv_as_matrix=True,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            exclude=exclude,
            conv_as_matrix=conv_as_matrix,
            split_projections=split_projections,
            heads=heads,
        )
        if energy is not None:
            check_number(energy, "energy", above=0, at_most=1)
        self.energy = energy

    def merge_matrix(self, vectors, threads, ladder, noise):
        """The formula for one matrix of the task vector."""
        vector = vectors[0]
        with single_thread():
            found = strongest(
                vector, min(vector.shape), ladder[-1:], noise.of(0)
            )
            if len(found.values) == 0:
                return torch.zeros_like(vector)
            count, low = self.weighed(found.spectrum.to(torch.float64))
            strong = (found.left[:, :count] * found.values[:count]).to(
                torch.float64
            ) @ found.right[:, :count].T.to(torch.float64)
            return (1 - 2 * low) * strong + low * vector

    def weighed(self, spectrum: torch.Tensor) -> tuple[int, float]:
        """How many directions are strong, and the weight of the others.

        Arguments
        ---------
        spectrum : torch.Tensor
            ``[r]``, singular values, descending, the first above zero.

        Returns
        -------
        count : int
            ``k``.
        low : float
            ``λ_low``; ``λ_high`` is the rest to 1.

        Example
        -------
        >>> count, low = MonoSoup().weighed(torch.tensor([2.0, 1.0, 1.0]))
        >>> count, round(low, 4)  # of an effective rank of 2.38
        (3, 0.0)
        """
        # of the largest, so that squares neither overflow nor vanish
        squares = (spectrum / spectrum[0]).square().to(torch.float64)
        parts = squares / squares.sum()
        reached = parts.cumsum(0)
        if self.energy is None:
            seen = parts[parts > 0]
            count = math.ceil(math.exp(-float((seen * seen.log()).sum())))
        else:
            count = int((reached < self.energy).sum()) + 1
        count = min(max(count, 1), len(parts))
        outside = min(max(1.0 - float(reached[count - 1]), 0.0), 1.0)
        ratio = float(squares[count]) if count < len(parts) else 0.0
        return count, ratio + (1 - ratio) * math.sqrt(outside)
