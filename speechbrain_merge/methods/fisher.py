"""Fisher merging: weigh each entry by how sure its expert is of it.

``Σ F_t θ_t / Σ F_t``, where ``F_t`` is the diagonal of the Fisher information
of expert t: the mean, over examples, of the squared gradient of the
log-likelihood (Matena & Raffel, "Merging models with Fisher-weighted
averaging", NeurIPS 2022). A weight that an expert's loss does not depend on
has no say.

Where the references disagree:

- the paper's Fisher is over single examples; MergeLM and FusionBench square the
  gradient of a batch. ``collect_fisher`` of
  ``speechbrain_merge.brain.statistics`` does either, by default the paper's;
- MergeLM and FusionBench divide each expert's Fisher by its norm over the whole
  model (``normalize=True``). That takes away that one expert may be surer than
  another everywhere, and is off by default;
- they add 1e-6 to each Fisher (``floor=1e-6``); the paper only to one of the
  models. Fishers of speech models are often smaller than that, and then the
  floor turns the merge into the mean. The default adds nothing, and takes the
  mean where all are zero.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Fisher
>>> experts = [{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 4.0])}]
>>> fishers = [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
>>> Fisher(statistics=fishers)(experts)
{'w': tensor([1., 3.])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod, mean
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.expert_statistics import (
    check_models,
    check_names,
    check_statistics,
    open_statistics,
)
from speechbrain_merge.methods.parameters import check_number, check_switch
from speechbrain_merge.methods.pieces import walk
from speechbrain_merge.methods.registry import register
from speechbrain_merge.weights import release

# MergeLM's, in the norm as in the Fisher itself: keeps a zero Fisher finite
SMALLEST_NORM = 1e-6


@register("fisher")
class Fisher(MergeMethod):
    """``Σ w_t F_t θ_t / Σ w_t F_t``, entry by entry.

    Tensors of which there is no Fisher (weight-normed ones, those frozen in
    training) are averaged plainly.

    Arguments
    ---------
    statistics : list or dict
        The diagonal Fisher of each expert: safetensors files as
        ``collect_fisher`` of ``speechbrain_merge.brain.statistics`` writes
        them, or mappings from names to tensors; in the order of the experts,
        or by their labels.
    weights : float, list or dict, optional
        ``w_t``, not negative, in any form of
        ``speechbrain_merge.methods.coefficients``. By default all are equal.
    floor : float
        Added to each Fisher.
    normalize : bool
        Whether to divide each Fisher by its norm over the whole model.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}]
    >>> fishers = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}]
    >>> Fisher(fishers)(experts)
    {'w': tensor([2.])}
    >>> round(Fisher(fishers, normalize=True)(experts)["w"].item(), 4)
    3.0
    """

    statistics_kind = "fisher"

    def __init__(
        self, statistics=None, weights=None, floor=0.0, normalize=False
    ):
        super().__init__()
        check_statistics(statistics)
        if weights is not None:
            check_coefficient(weights, "weights")
        check_number(floor, "floor", at_least=0)
        check_switch(normalize, "normalize")
        self.statistics, self.weights = statistics, weights
        self.floor, self.normalize = floor, normalize

    def prepare(self, experts, base):
        """Opens the statistics, and finds their norms if need be."""
        fishers = open_statistics(
            self.statistics, self.labels, self.name, self.statistics_kind
        )
        check_names(fishers, experts)
        check_models(fishers, experts)
        for name in experts[0].names() if self.weights is not None else []:
            weights = resolve(
                self.weights, name, len(experts), self.labels, self.depths
            )
            if min(weights) < 0 or max(weights) <= 0:
                raise ValueError(
                    "`weights` multiply what experts are sure of: they must "
                    f"not be negative, nor all zero; got {weights}."
                )
        shares = [1.0] * len(experts)
        if self.normalize:
            names = [n for n in experts[0].names() if n in fishers[0]]
            norms = [
                torch.stack([fisher[n].double().norm() for n in names]).norm()
                for fisher in fishers
            ]
            inverse = [1 / (float(norm) + SMALLEST_NORM) for norm in norms]
            shares = [value / sum(inverse) for value in inverse]
        return fishers, shares

    def merge_tensor(self, name, experts, base):
        """Weighted mean of one tensor."""
        of_models, shares = self.found
        if name not in of_models[0]:
            return mean(experts)
        weights = [1.0] * len(experts)
        if self.weights is not None:
            weights = resolve(
                self.weights, name, len(experts), self.labels, self.depths
            )
        scales = [weight * share for weight, share in zip(weights, shares)]
        fishers = [
            self._fisher(fisher, name, experts[0]) for fisher in of_models
        ]
        flat = [expert.reshape(-1) for expert in experts]
        merged = torch.empty_like(flat[0])
        for where in walk([*flat, *fishers]):
            importance = [
                (fisher[where].double() + self.floor) * scale
                for fisher, scale in zip(fishers, scales)
            ]
            parts = [expert[where].double() for expert in flat]
            total = sum(importance)
            weighted = sum(one * part for one, part in zip(importance, parts))
            merged[where] = torch.where(
                total > 0, weighted / total, sum(parts) / len(parts)
            )
        return merged.reshape(experts[0].shape)

    def _fisher(self, fisher, name, expert):
        """One expert's Fisher of one tensor, beside it, flat and checked."""
        values = fisher[name]
        if values.shape != expert.shape:
            raise ValueError(
                f"{fisher.label}: the Fisher of {name} has shape "
                f"{tuple(values.shape)}, the tensor {tuple(expert.shape)}."
            )
        if expert.device != values.device:
            stored, values = values, values.to(expert.device)
            release(stored)
        if values.numel() > 0 and not 0 <= values.min() <= values.max() < float(
            "inf"
        ):
            raise ValueError(
                f"{fisher.label}: the Fisher of {name} has values that are "
                "negative or not finite. Collect it again."
            )
        return values.reshape(-1)
