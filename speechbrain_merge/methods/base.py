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

A new method is a class with one formula:

>>> from speechbrain_merge.methods import MergeMethod, register
>>> @register("median")
... class Median(MergeMethod):
...     "The median of the experts, entry by entry."
...
...     def merge_tensor(self, name, experts, base):
...         return torch.stack(experts).median(dim=0).values
>>> Median()(experts)
{'w': tensor([1., 2.])}

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from os import PathLike

import torch
from tqdm import tqdm

from speechbrain_merge.methods.entries import (
    float_names,
    is_finite,
    mean,
    merge_entry,
    weighted_sum,
)
from speechbrain_merge.weights import (
    Entry,
    Weights,
    check_compatible,
    common_ties,
    depth,
    fold,
    open_weights,
    promoted,
    refold,
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

    Example
    -------
    >>> from speechbrain_merge.methods import Average
    >>> Average(weights=[1, 3])([{"w": torch.zeros(1)}, {"w": torch.ones(1)}])
    {'w': tensor([0.7500])}
    """

    name = ""
    needs_base = False
    # Whether ``merge_tensor`` takes tensors as they are stored and goes over
    # them in pieces; others get them in float32 at least.
    piecewise = False
    # Whether a NaN or infinity in any input always shows in the result; the
    # inputs of others are inspected first.
    shows_faults = False
    # Whether experts and base must have the same names; a method that merges
    # other kinds of models finds itself what belongs together.
    needs_same_names = True
    # Which statistics of each expert over data it needs, and with what options
    # they are collected (``speechbrain_merge.brain.statistics``)
    statistics_kind = None
    statistics_options = {}
    # Whether the experts must be fine-tuned from the same weights; a method
    # that aligns models of different starts need not mind.
    needs_same_base = True
    minimum_experts = 1
    maximum_experts = None

    def __init__(self):
        super().__init__()
        self.labels = []
        self.depths = {}
        self.workers = 1
        self.show_progress = False

    def prepare(self, experts, base):
        """First pass over the whole model, before any tensor is merged.

        Arguments
        ---------
        experts : list of Weights
            Mappings from name to tensor that read a tensor when asked.
        base : Weights, optional
            The model that the experts were fine-tuned from.
        """

    def merge_tensor(self, name, experts, base):
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
        raise TypeError(f"{type(self).__name__} does not define merge_tensor.")

    def forward(self, state_dicts, base=None):
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
        """
        state_dicts = self.list_of_experts(state_dicts)
        with ExitStack() as stack:
            experts = [
                stack.enter_context(open_weights(expert))
                for expert in state_dicts
            ]
            if base is not None:
                base = stack.enter_context(open_weights(base))
            merged = self.merged(experts, base)
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
        self, experts, base=None, labels=None, workers=1, progress=False
    ):
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
            Where floating-point dtypes differ, the promoted ones.

        Raises
        ------
        IncompatibleWeights
            When the experts do not fit together.
        ValueError
            When the method's demands are not met.
        """
        self.check_experts(len(experts))
        folded = [fold(expert) for expert in experts]
        anchor = None if base is None else fold(base)
        if anchor is not None and self.needs_base:
            *folded, anchor = promoted([*folded, anchor])
        else:
            folded = promoted(folded)
        self.start(folded, anchor, labels, workers, progress)
        first = folded[0]
        merged = Weights(
            {
                name: Entry(
                    first.shape(name),
                    first.dtype(name),
                    partial(self.merge_entry, name, folded, anchor),
                )
                for name in first.names()
            },
            label=f"merge by {self.name}",
            tied=common_ties(folded),
        )
        weight_norm = set(first.names()) != set(experts[0].names()) and not any(
            "lora" in name or "adapter" in name for name in experts[0].names()
        )
        return refold(merged, like=experts[0]) if weight_norm else merged

    def start(self, experts, base=None, labels=None, workers=1, progress=False):
        """Checks the experts against the method and runs the first pass.

        Arguments and errors are those of ``merged``.
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
        self.labels = labels or [expert.label for expert in experts]
        self.depths = depth(experts[0].names())
        self.workers, self.show_progress = workers, progress
        self.prepare(experts, base)

    def prepare_inner(self, method, experts, base):
        """Runs the first pass of a method that this one wraps.

        Arguments
        ---------
        method : MergeMethod
            It gets the labels, depths and threads that this one has.
        experts : list of Weights
            What it may see of the experts.
        base : Weights, optional
            What it may see of the base.
        """
        method.labels, method.depths = self.labels, self.depths
        method.workers, method.show_progress = self.workers, self.show_progress
        method.prepare(experts, base)

    def list_of_experts(self, experts):
        """The experts as a list; a single one in its place is refused.

        Arguments
        ---------
        experts : iterable
            What was given: one source of weights an expert.

        Returns
        -------
        experts : list

        Raises
        ------
        ValueError
            When it is one source of weights itself, whose names or letters
            would be taken for files.
        """
        single = (str, PathLike, Mapping, torch.nn.Module)
        if isinstance(experts, single) or not isinstance(experts, Iterable):
            raise ValueError(
                f"Merge method '{self.name}' merges a list of experts, one "
                "state dict, file or module each, but got a single "
                f"{type(experts).__name__}: put it in a list."
            )
        return list(experts)

    def check_experts(self, number):
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
    merge_entry = merge_entry

    def each(self, function, names, description):
        """Runs a function over names, in threads, with a progress bar.

        For first passes: results come in the order of the names whatever the
        number of threads.

        Arguments
        ---------
        function : callable
            Takes a name.
        names : list of str
            What to run it on.
        description : str
            What the bar says.

        Returns
        -------
        results : list
            One a name.
        """
        bar = partial(
            tqdm,
            total=len(names),
            desc=description,
            disable=not self.show_progress,
        )
        if self.workers == 1:
            # no hand-overs between threads: they cost more than a small tensor
            return list(bar(map(function, names)))
        with ThreadPoolExecutor(self.workers) as pool:
            return list(bar(pool.map(function, names)))

    def configuration(self):
        """The parameters that made this method.

        Returns
        -------
        configuration : dict
            Constructor parameter to value; methods inside are given as
            ``{"method": name, "parameters": their configuration}``.

        Example
        -------
        >>> from speechbrain_merge.methods import LayerScaled, TaskArithmetic
        >>> LayerScaled(TaskArithmetic(), first=0, last=1).configuration()
        {'method': {'method': 'task_arithmetic', 'parameters': {'scale': 1.0}}, 'first': 0, 'last': 1}
        """
        configuration = {}
        for parameter in inspect.signature(type(self)).parameters:
            value = getattr(self, parameter)
            if isinstance(value, MergeMethod):
                value = {
                    "method": value.name,
                    "parameters": value.configuration(),
                }
            elif isinstance(value, torch.Tensor):
                value = value.tolist()
            configuration[parameter] = value
        return configuration

    def __repr__(self):
        shown = ", ".join(
            f"{parameter}={value!r}"
            for parameter, value in self.configuration().items()
        )
        return f"{type(self).__name__}({shown})"
