"""What every merge method is: weights in, weights out.

A merge method is a ``torch.nn.Module`` that knows how to make one tensor out of
the same tensor of several experts. Everything around that one formula is here,
once: checking the experts, tied tensors, integer buffers, the precision of the
arithmetic. The same ``merge_tensor`` serves two roads, and both give the same
bits: in memory, by calling the method on state dicts, and streamed over files,
by ``speechbrain_merge.engine.merge``.

Because a method is called like a function on state dicts, it is also a valid
``averager`` for ``speechbrain.utils.checkpoints.average_checkpoints``.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import Average
>>> experts = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
>>> Average()(experts)
{'w': tensor([2., 4.])}

A new method is a function of one tensor of each expert
(``speechbrain_merge.methods.plain_function``):

>>> from speechbrain_merge.methods import create, merge_method
>>> @merge_method("median")
... def median(experts):
...     "The median of the experts, entry by entry."
...     return torch.stack(experts).median(dim=0).values
>>> create("median")(experts)
{'w': tensor([1., 2.])}

or, where it needs to see the whole models first, a class: ``prepare`` returns
what it found there, and ``merge_tensor`` reads it as ``self.found``.

>>> from speechbrain_merge.methods import MergeMethod, register
>>> @register("longest")
... class Longest(MergeMethod):
...     "The expert with the longest weights, as a whole."
...
...     def prepare(self, experts, base):
...         names = experts[0].names()
...         lengths = [sum(e[n].norm() ** 2 for n in names) for e in experts]
...         return lengths.index(max(lengths))
...
...     def merge_tensor(self, name, experts, base):
...         return experts[self.found]
>>> Longest()(experts)
{'w': tensor([3., 6.])}

Authors
 * The speechbrain_merge authors 2026
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Optional

import torch

from speechbrain_merge.methods.configuration import configuration, files
from speechbrain_merge.methods.entries import (
    entry_pieces,
    float_names,
    formula_pieces,
    is_finite,
    mean,
    weighted_sum,
)
from speechbrain_merge.methods.first_pass import each
from speechbrain_merge.methods.list_of_experts import list_of_experts
from speechbrain_merge.methods.pieces import walk
from speechbrain_merge.methods.plain_models import plain_models
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import (
    Weights,
    check_compatible,
    common_ties,
    depth,
    entry_of_pieces,
    joined,
    narrowed,
    refold,
    widened,
)

# What formulas need as well, from here as from where it is
__all__ = [
    "MergeMethod",
    "float_names",
    "is_finite",
    "mean",
    "weighted_sum",
]


class MergeMethod(torch.nn.Module):
    """One way to make a single model out of several.

    A subclass gives ``merge_tensor``; if it must look at whole models first
    (for a global threshold, say), also ``prepare``. Each parameter of its
    constructor is kept as an attribute of the same name, so that a merge can
    say how it was made.

    A merge works on a copy of the method (``prepared``), which has what belongs
    to that merge: ``labels``, ``depths``, ``workers``, ``show_progress`` and
    ``found``. The method itself stays as it was made, and may serve several
    merges at once.
    """

    name: str = ""
    needs_base = False
    # Whether the formula takes tensors as they are stored and goes over them
    # in pieces (``merge_pieces``); others get them in float32 at least.
    piecewise = False
    # Whether the formula computes on a GPU, where its inputs then are: new
    # tensors are made there, and nothing is taken to NumPy or SciPy. One that
    # cannot do so says False, and computes on the CPU.
    on_device = True
    # Where tensors are merged
    device = torch.device("cpu")
    # Whether a NaN or infinity in any input always shows in the result; the
    # inputs of others are inspected first.
    shows_faults = False
    # Whether experts and base must have the same names; a method that merges
    # other kinds of models finds itself what belongs together.
    needs_same_names = True
    # Which statistics of each expert over data it needs, and with what options
    # they are collected (``speechbrain_merge.brain.statistics``)
    statistics_kind: Optional[str] = None
    statistics_options: Mapping[str, Any] = {}
    # Whether the experts must be fine-tuned from the same weights; a method
    # that aligns models of different starts need not mind.
    needs_same_base = True
    # Whether a merge stands for its experts when others are added to it
    goes_on = False
    # Whether the experts are LoRA adapters, to be merged into the base
    merges_adapters = False
    minimum_experts = 1
    maximum_experts: Optional[int] = None

    def __init__(self) -> None:
        super().__init__()
        # The experts' labels, and the depth of each layer in its stack
        self.labels: list[str] = []
        self.depths: dict = {}
        # Threads of the first pass, and whether it shows bars
        self.workers, self.show_progress = 1, False
        # What ``prepare`` returned
        self.found: Any = None

    def prepare(self, experts: list[Weights], base: Optional[Weights]) -> Any:
        """First pass over the whole model, before any tensor is merged.

        Arguments
        ---------
        experts : list of Weights
            Mappings from name to tensor that read a tensor when asked.
        base : Weights, optional
            The model that the experts were fine-tuned from.

        Returns
        -------
        found : object
            What ``merge_tensor`` needs to know of these models. It finds it
            in ``self.found``.
        """
        return None

    def merge_tensor(
        self,
        name: str,
        experts: list[torch.Tensor],
        base: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """Merges one floating-point tensor.

        Must not change its inputs, and must not depend on the order in which
        tensors are merged: several may be under way at once.

        Arguments
        ---------
        name : str
            Name of the tensor.
        experts : list of torch.Tensor
            The tensor of each expert, in float32 (or float64, if stored so).
        base : torch.Tensor, optional
            The tensor of the base.

        Returns
        -------
        merged : torch.Tensor
            Of the same shape.
        """
        if type(self).merge_pieces is MergeMethod.merge_pieces:
            kind = type(self).__name__
            raise TypeError(f"{kind} does not define merge_tensor.")
        first = experts[0]
        pieces = self.merge_pieces(name, experts, base)
        return joined(pieces, first.shape, first.dtype, first.device)

    def merge_pieces(
        self,
        name: str,
        experts: list[torch.Tensor],
        base: Optional[torch.Tensor],
    ) -> Iterable[torch.Tensor]:
        """Merges one tensor a piece after the other.

        A method whose formula treats each entry alone gives this in place of
        ``merge_tensor``, and sets ``piecewise``: neither a task vector nor the
        result is ever in memory as a whole.

        Arguments
        ---------
        name : str
            Name of the tensor.
        experts : list of torch.Tensor
            The tensor of each expert; with ``piecewise`` as it is stored.
        base : torch.Tensor, optional
            The tensor of the base.

        Returns
        -------
        pieces : iterable of torch.Tensor
            The merged values in order, as flat tensors; each is valid until
            the next is asked for.
        """
        merged = self.merge_tensor(name, experts, base)
        if merged.shape != experts[0].shape:
            raise ValueError(
                f"Merge method '{self.name}' made {tuple(merged.shape)} out of "
                f"{name} of shape {tuple(experts[0].shape)}."
            )
        # piece by piece with the inputs, so that who hashes those has them in
        # the cache, and no more of their pages in memory
        flat = merged.reshape(-1)
        models = experts if base is None else [*experts, base]
        together = [flat, *(model.reshape(-1) for model in models)]
        return (flat[where] for where in walk(together))

    def forward(
        self, state_dicts: Iterable[Any], base: Optional[Any] = None
    ) -> dict[str, torch.Tensor]:
        """Merges state dicts in memory.

        Arguments
        ---------
        state_dicts : iterable of dict
            One an expert: name to tensor.
        base : dict, optional
            The state dict that the experts were fine-tuned from.

        Returns
        -------
        merged : dict
            New tensors in the inputs' types; where floating-point types are
            mixed, in the type that holds all. Names that share a tensor in
            the experts share one here too.

        Raises
        ------
        IncompatibleWeights
            When the experts do not fit together.
        ValueError
            When the method's demands (number of experts, a base) are not met,
            or a tensor has a NaN or an infinity.
        ChangedContent
            When a candidate, or the base of one, is not what its pool has on
            record.
        """
        state_dicts = list_of_experts(state_dicts, self.name)
        with ExitStack() as stack:
            experts = [
                stack.enter_context(open_on_record(expert, state_dicts))
                for expert in state_dicts
            ]
            anchor = None
            if base is not None:
                anchor = stack.enter_context(open_on_record(base, state_dicts))
            merged = self.merged(experts, anchor)
            merged = narrowed(merged, self.deciding(experts, anchor))
            made = {
                name: merged[name]
                for name in merged.names()
                if name not in merged.tied
            }
            return {
                name: made[merged.tied.get(name, name)]
                for name in merged.names()
            }

    def merged(
        self,
        experts: list[Weights],
        base: Optional[Weights] = None,
        labels: Optional[list[str]] = None,
        workers: int = 1,
        progress: bool = False,
    ) -> Weights:
        """The merged model, each tensor of which is merged when it is read.

        Experts with weight norm are merged as the weights that they compute
        with, and the result has its magnitudes and directions again.

        Arguments
        ---------
        experts : list of Weights
            Open weights.
        base : Weights, optional
            The base.
        labels : list of str, optional
            How coefficients name the experts; by default the weights' labels.
        workers : int
            Threads that the first pass may use.
        progress : bool
            Whether the first pass shows bars.

        Returns
        -------
        merged : Weights
            With the names of the first expert, and the ties that all have.
            Where floating-point dtypes differ, the promoted ones; float32 for
            float8, which the doors narrow (``weights.narrowed``).

        Raises
        ------
        IncompatibleWeights
            When the experts do not fit together.
        ValueError
            When the method's demands are not met.
        """
        self.check_experts(len(experts))
        experts = [widened(expert) for expert in experts]
        folded, anchor = plain_models(experts, base, self.needs_base)
        method = self.prepared(folded, anchor, labels, workers, progress)
        first = folded[0]
        merged = Weights(
            {
                name: entry_of_pieces(
                    first.shape(name),
                    first.dtype(name),
                    partial(method.entry_pieces, name, folded, anchor),
                )
                for name in first.names()
            },
            label=f"merge by {self.name}",
            metadata=method.on_record(),
            tied=common_ties(folded),
        )
        if first.folded == {"weight norm"}:
            return refold(merged, like=experts[0])
        return merged

    def deciding(
        self, experts: list[Weights], base: Optional[Weights]
    ) -> list[Weights]:
        """The models whose dtypes decide those of the result.

        Arguments
        ---------
        experts : list of Weights
            Open weights.
        base : Weights, optional
            The base, which counts where the formula sees it.

        Returns
        -------
        models : list of Weights
        """
        return (
            experts if base is None or not self.needs_base else [*experts, base]
        )

    def prepared(
        self,
        experts: list[Weights],
        base: Optional[Weights] = None,
        labels: Optional[list[str]] = None,
        workers: int = 1,
        progress: bool = False,
    ) -> "MergeMethod":
        """A copy of this method that is ready to merge these experts.

        Arguments and errors are those of ``merged``.

        Returns
        -------
        method : MergeMethod
            After the first pass. Parameters and wrapped methods are not
            copied, but shared with this method.
        """
        if self.needs_base and base is None:
            raise ValueError(
                f"Merge method '{self.name}' works on task vectors and needs "
                "the model that the experts were fine-tuned from: give `base`."
            )
        if not experts[0].names():
            raise ValueError(
                f"{experts[0].label} has no tensors: there is nothing to "
                "merge. Give the state dict of a model that has weights."
            )
        if labels is not None and len(labels) != len(experts):
            raise ValueError(
                f"{len(labels)} labels were given for {len(experts)} experts "
                f"({', '.join(map(str, labels))}): give one for each, in their "
                "order."
            )
        # Values are looked at when they are read for the formula: looking at
        # them here too would read every model twice.
        check_compatible(
            experts, base if self.needs_base else None, finite=False
        )
        method = self._copy()
        method.labels = labels or [expert.label for expert in experts]
        method.depths = depth(experts[0].names())
        method.workers, method.show_progress = workers, progress
        method.found = method.prepare(experts, base)
        return method

    def prepared_inner(
        self,
        method: "MergeMethod",
        experts: list[Weights],
        base: Optional[Weights],
    ) -> "MergeMethod":
        """A method that this one wraps, ready to merge what it may see.

        Arguments
        ---------
        method : MergeMethod
            It gets the labels, depths and threads that this one has.
        experts : list of Weights
            What it may see of the experts.
        base : Weights, optional
            What it may see of the base.

        Returns
        -------
        method : MergeMethod
            A copy, to be returned by ``prepare``.
        """
        method = method._copy()
        method.device = self.device
        method.labels, method.depths = self.labels, self.depths
        method.workers, method.show_progress = self.workers, self.show_progress
        method.found = method.prepare(experts, base)
        return method

    def _copy(self) -> "MergeMethod":
        """A copy whose attributes can be set without setting this one's."""
        copied = type(self).__new__(type(self))
        # where a module keeps its tensors and its submodules
        copied.__dict__.update(self.__dict__)
        for own in ("_parameters", "_buffers", "_modules"):
            copied.__dict__[own] = dict(getattr(self, own))
        return copied

    def on_record(self) -> dict[str, str]:
        """What the first pass found that a later merge goes on from.

        Returns
        -------
        notes : dict
            Text entries for the metadata of the merged weights; most methods
            have none.
        """
        return {}

    def using(self, device: torch.device) -> "MergeMethod":
        """A copy of this method that merges on a device."""
        if device == self.device:
            return self
        method = copy.copy(self)
        method.device = device
        return method

    def check_experts(self, number: int) -> None:
        """Raises a ValueError when the method cannot merge so many experts."""
        if number < self.minimum_experts:
            raise ValueError(
                f"Merge method '{self.name}' needs at least "
                f"{self.minimum_experts} experts, got {number}."
            )
        if self.maximum_experts is not None and number > self.maximum_experts:
            raise ValueError(
                f"Merge method '{self.name}' takes at most "
                f"{self.maximum_experts} experts, got {number}."
            )

    # How the entry of one name is merged, whatever its type
    entry_pieces = entry_pieces

    # How a tensor is merged where its inputs are
    formula_pieces = formula_pieces

    # How a first pass goes over the names, in threads
    each = each

    # The parameters that made this method
    configuration = configuration

    # The files that the parameters name, with their hashes
    files = files

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{parameter}={value!r}"
            for parameter, value in self.configuration().items()
        )
        return f"{type(self).__name__}({shown})"
