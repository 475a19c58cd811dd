r"""AdaMerging: task arithmetic whose coefficients are learned.

``θ_0 + Σ_k λ_{k,l} τ_k`` with ``τ_k = θ_k − θ_0`` and a coefficient for each
expert k, or for each expert and layer l, which is learned by gradient without
touching the weights themselves: from the entropy of the merged model's outputs
on audio without transcripts, or from the loss on a development set (Yang et
al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
arXiv 2310.02575; with speech models AdaLTM, arXiv 2603.25041).

This is the merge; ``speechbrain_merge.learn_coefficients`` is what learns, with
a recipe's Brain. The coefficients are a ``torch.nn.Parameter`` of this module,
which ``make_coefficients`` makes for models of one kind, and the method merges
with them as they are, over files and tensor by tensor, as any other method.
Without them it merges with those that learning would start from.

How finely: ``by="layer"`` has one coefficient for each expert and Transformer
layer, and one for what is outside the layers of each stack; ``by="tensor"``
has one for each expert and tensor, which is what the authors' code calls
layer-wise; ``by="expert"`` is their task-wise AdaMerging.

Example
-------
>>> import torch
>>> base = {"encoder.layers.0.w": torch.zeros(1), "head.w": torch.zeros(1)}
>>> experts = [{name: torch.full((1,), v) for name in base} for v in (1.0, 2.0)]
>>> method = AdaMerging()
>>> method(experts, base)
{'encoder.layers.0.w': tensor([0.9000]), 'head.w': tensor([0.9000])}
>>> method.make_coefficients(experts, base)
>>> method.groups
['encoder.layers.0', 'others']
>>> with torch.no_grad():  # stands for learning
...     _ = method.coefficients[:, 0].copy_(torch.tensor([0.5, 0.25]))
>>> method(experts, base)["encoder.layers.0.w"]
tensor([1.])
>>> method.learned["encoder.layers.0"]
[0.5, 0.25]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Optional

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.bounds import BOUNDS, bounded, value_of
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_choice
from speechbrain_merge.methods.plain_models import plain_models
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import (
    add_to_base,
    merged_names,
    scaled_sum,
)
from speechbrain_merge.weights import common_ties, part

GRAINS = ("expert", "layer", "tensor")
OTHERS = "others"
EVERYTHING = "everything"


@register("adamerging")
class AdaMerging(MergeMethod):
    """``θ_0 + Σ λ_{k,l} τ_k`` with learnable λ; see the module's text.

    Arguments
    ---------
    scale : float, list or dict
        λ before any learning, in any form of
        ``speechbrain_merge.methods.coefficients``; where a group of tensors
        would have several values, it starts from that of its first tensor.
        The default is the paper's.
    by : str
        "expert", "layer" or "tensor".
    lambda_param : str
        "clamp" keeps λ in [0, 1] as the authors' code does, "sigmoid" within,
        "free" lets it go; see ``speechbrain_merge.methods.bounds``.
    learned : dict, optional
        λ as it was learned: group to a list with one for each expert. This is
        what ``configuration`` gives, so that a merge can be made again.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    >>> AdaMerging(scale=0.5, by="expert")(experts, {"w": torch.tensor([1.0])})
    {'w': tensor([2.5000])}
    """

    needs_base = True
    piecewise = True
    shows_faults = True
    # Experts by groups; see ``make_coefficients``
    coefficients: Optional[torch.nn.Parameter]

    def __init__(
        self, scale=0.3, by="layer", lambda_param="clamp", learned=None
    ):
        super().__init__()
        check_coefficient(scale, "scale")
        check_choice(by, "by", GRAINS)
        check_choice(lambda_param, "lambda_param", BOUNDS)
        _check_learned(learned, lambda_param)
        self.scale, self.by, self.lambda_param = scale, by, lambda_param
        self.groups: list[str] = []
        self._given, self._start = learned, None
        self.register_parameter("coefficients", None)

    @property
    def learned(self):
        """λ where it is not the start: group to a list, one an expert."""
        if self.coefficients is None:
            return self._given
        if self._given is None and torch.equal(self.coefficients, self._start):
            return None
        return {
            group: values
            for group, values in zip(self.groups, self.values().T.tolist())
        }

    def values(self):
        """λ as it is used, experts by groups; gradients reach it."""
        return bounded(self.coefficients, self.lambda_param)

    def group_of(self, name):
        """The group of tensors that shares its coefficients with a tensor.

        Arguments
        ---------
        name : str
            Name of the tensor.

        Returns
        -------
        group : str
            Such as ``encoder.layers.3``, or ``encoder`` for what is in no
            layer of it, or ``others``; with ``by="tensor"`` the name.
        """
        if self.by != "layer":
            return name if self.by == "tensor" else EVERYTHING
        where = part(name)
        if where.layer is None:
            return where.stack or OTHERS
        stack = f"{where.stack}." if where.stack else ""
        return f"{stack}layers.{where.layer}"

    def make_coefficients(
        self,
        experts: list,
        base: Any,
        labels: Optional[list[str]] = None,
    ) -> None:
        """Makes the coefficients that are to be learned, for these models.

        Those that are there stay, where they were made for such models: an
        optimizer may hold them.

        Arguments
        ---------
        experts : list
            What ``speechbrain_merge.weights.fold`` takes.
        base : object
            Likewise, the base.
        labels : list of str, optional
            How ``scale`` names the experts.

        Raises
        ------
        ValueError
            When coefficients were learned for other models than these.
        """
        with ExitStack() as stack:
            opened, anchor = plain_models(experts, base)
            for model in [*opened, *([] if anchor is None else [anchor])]:
                stack.enter_context(model)
            groups, values, _ = self.prepared(opened, anchor, labels).found
        if values is not self.coefficients:
            self.groups, self._start = groups, values
            self.coefficients = torch.nn.Parameter(values.clone())

    def prepare(self, experts, base):
        """The groups of tensors, their coefficients, and which tensors are one.

        Raises
        ------
        ValueError
            When coefficients were learned for other models than these.
        """
        ties = common_ties(experts)
        names = {}
        for name in merged_names(experts):
            names.setdefault(self.group_of(name), name)
        number, learned = len(experts), self.learned
        if learned is not None:
            self._check_fit(learned, names, number)
            if self.coefficients is not None:
                return self.groups, self.coefficients, ties
            rows = learned
        else:
            rows = {
                group: resolve(
                    self.scale, name, number, self.labels, self.depths
                )
                for group, name in names.items()
            }
        values = self._within_bounds(rows, number)
        if self.coefficients is not None and list(rows) == self.groups:
            if torch.equal(values, self._start):
                # made for such models, but not learned yet
                return self.groups, self.coefficients, ties
        return list(rows), values, ties

    def _within_bounds(self, rows, number):
        """The parameters that give these coefficients, experts by groups."""
        parameters = [
            [value_of(each, self.lambda_param, "scale") for each in row]
            for row in rows.values()
        ]
        # float64, that nothing is lost on the way through a configuration
        start = torch.tensor(parameters, dtype=torch.float64)
        return start.reshape(-1, number).T.contiguous()

    def merge_pieces(self, name, experts, base):
        """Adds the task vectors of one tensor, scaled as they are now."""
        groups, coefficients, ties = self.found
        # tied tensors are one, and have the coefficients of one
        column = groups.index(self.group_of(ties.get(name, name)))
        with torch.no_grad():
            scales = bounded(coefficients, self.lambda_param)[:, column]
            scales = scales.tolist()

        return add_to_base(
            lambda vectors, where: scaled_sum(vectors, scales), experts, base
        )

    def _check_fit(self, learned, names, number):
        """Raises unless learned coefficients are for such models."""
        missing = [group for group in names if group not in learned]
        if missing:
            raise ValueError(
                f"The coefficients were learned for {len(learned)} groups of "
                f"tensors, and there is none for {', '.join(missing[:3])}: "
                "these are other models. Make a new AdaMerging for them."
            )
        for group, values in learned.items():
            if len(values) != number:
                raise ValueError(
                    f"{len(values)} coefficients were learned for {group}, and "
                    f"there are {number} experts: merge those that were learned "
                    "with, in their order, or make a new AdaMerging."
                )

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        """Takes coefficients up before any model was seen."""
        stored = state_dict.get(f"{prefix}coefficients")
        if stored is not None and self.coefficients is None:
            raise ValueError(
                "The coefficients of AdaMerging belong to experts: call "
                "`make_coefficients` before loading a state. (A "
                "configuration, with `learned`, needs no such thing.)"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _check_learned(learned, lambda_param):
    if learned is None:
        return
    if not isinstance(learned, Mapping) or not learned:
        raise ValueError(
            "`learned` must map groups of tensors to a list with one "
            f"coefficient for each expert, got {learned!r}."
        )
    for group, values in learned.items():
        if not isinstance(values, (list, tuple)):
            raise ValueError(
                f"`learned.{group}` must be a list with one coefficient for "
                f"each expert, got {values!r}."
            )
        check_coefficient(values, f"learned.{group}")
        for value in values:
            value_of(value, lambda_param, f"learned.{group}")
