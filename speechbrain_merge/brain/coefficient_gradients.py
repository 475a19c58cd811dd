r"""A merge inside a Brain's modules, and the gradient of its coefficients.

With merged weights ``θ = θ_0 + Σ_k λ_k τ_k``, the derivative of a loss is

    ∂L/∂λ_{k,l} = Σ_{tensors of l} ⟨∂L/∂θ, τ_k⟩,

the gradient of the weights, which any backward pass gives, times a task
vector. So no graph need go through the merge: the merged weights are put into
the modules, the Brain runs as it always does, and one tensor after the other
the gradient meets the experts' tensors, which are read when needed.

In memory are the model and the gradient of its weights, as in training without
an optimizer, and of base and experts one tensor at a time. Files are read
anew in each step, from the system's cache where that has room for them;
state dicts that are in memory are used as they are.

Weight norm is no exception: merged is W, the layer has v = W and g = ‖W‖, and
``∂L/∂W = ∂L/∂v + ∂L/∂g · v / ‖v‖``.

Authors
 * The speechbrain_merge authors 2026
"""

from contextlib import ExitStack

import torch

from speechbrain_merge.methods.task_vectors import merged_names
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import fold, has_adapters, release
from speechbrain_merge.weights.parametrized import is_computed
from speechbrain_merge.weights.weight_norm import weight_norm_pairs

PIECE = 1 << 22
"""Entries that are multiplied at once."""

NO_GRADIENT = (
    "No merged weight has a gradient: the Brain computes with other modules, "
    "or runs them frozen, under no_grad (a `freeze: True` of SpeechBrain's "
    "wrappers)."
)


class WeightsInModules:
    """Keeps a Brain's modules at weights that change, and reads gradients.

    A context manager: afterwards, parameters want gradients as before.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    merged : Weights
        The weights, with the modules' own names, each read when it is asked
        for, so that it may be another one each time.
    names : list of str
        Plain names, those without weight norm.

    Raises
    ------
    ValueError
        Where the weights do not fit the modules, or a module has adapters.
    """

    def __init__(self, brain, merged, names):
        self.merged, self.names = merged, names
        self._places = self._find_places(brain)
        self._pairs = weight_norm_pairs(
            {name: self.merged.shape(name) for name in self.merged},
            self.merged.label,
        )
        self._wanted = {
            id(place): (place, place.requires_grad)
            for place in self._places.values()
            if isinstance(place, torch.nn.Parameter)
        }
        for place, _ in self._wanted.values():
            place.requires_grad_(True)
            place.grad = None

    def _find_places(self, brain):
        """Name to the tensor of the modules that it fills, after a first time.

        The first time everything is loaded, strictly; then only what the
        coefficients change.
        """
        found = {}
        for name in dict.fromkeys(
            name.partition(".")[0] for name in self.merged
        ):
            module = brain.module_named(name, self.merged.label)
            if has_adapters(module) or is_computed(module):
                raise ValueError(
                    f"Module '{name}' has LoRA or a learnable ratio, and "
                    "coefficients are learned on plain weights: give the Brain "
                    "a plain model (the experts may have had LoRA)."
                )
            found.update(
                (f"{name}.{key}", tensor)
                for key, tensor in module.state_dict(keep_vars=True).items()
            )
        brain.load_weights(self.merged)
        return {
            name: found[name]
            for name in self.merged
            if self.merged.dtype(name).is_floating_point
            and name not in self.merged.tied
        }

    def fill(self):
        """Puts the weights as they are now into the modules."""
        with torch.no_grad():
            for name, place in self._places.items():
                place.copy_(self.merged[name])
                place.grad = None

    def gradients(self):
        """The gradients of all plain weights that have one.

        Returns
        -------
        dict
            Name to tensor.

        Raises
        ------
        ValueError
            Where no weight has a gradient.
        """
        found = {name: self.gradient(name) for name in self.names}
        found = {name: each for name, each in found.items() if each is not None}
        if not found:
            raise ValueError(NO_GRADIENT)
        return found

    def close(self):
        """Lets parameters be as they were; their values stay."""
        for place, wanted in self._wanted.values():
            place.requires_grad_(wanted)
            place.grad = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def gradient(self, name):
        """The gradient of one plain weight, if it has one.

        Arguments
        ---------
        name : str
            Its plain name.

        Returns
        -------
        torch.Tensor or None
        """
        if name not in self._pairs:
            return self._places[name].grad
        g, v = (self._places[each] for each in self._pairs[name])
        if v.grad is None:
            return None
        # g is ‖v‖ here; where it is 0, v stands for no direction at all
        slope = torch.where(g == 0, torch.zeros_like(g), g.grad / g)
        return v.grad + slope.detach() * v.detach()


class MergeInModules(WeightsInModules):
    """Keeps a Brain's modules at the merge that coefficients say.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    method : AdaMerging
        Whose coefficients count.
    experts : list
        Of sources of ``open_weights``, with names ``<module>.<parameter>``.
    base : object
        Likewise, what the experts were fine-tuned from.
    labels : list of str
        Of the experts.

    Raises
    ------
    ValueError
        Where the weights do not fit the modules, or a module has adapters.
    ChangedContent
        Where an expert or the base is not what a pool has on record of it.
    """

    def __init__(self, brain, method, experts, base, labels):
        self.method = method
        with ExitStack() as stack:
            opened = [
                stack.enter_context(open_on_record(expert, experts))
                for expert in experts
            ]
            anchor = stack.enter_context(open_on_record(base, experts))
            self.experts = [fold(expert) for expert in opened]
            self.base = fold(anchor)
            method.make_coefficients(self.experts, self.base, labels)
            merged = method.merged(opened, anchor, labels)
            super().__init__(brain, merged, merged_names(self.experts))
            self._stack = stack.pop_all()

    def backward(self):
        """From the gradients of the weights to those of the coefficients.

        They are added to ``method.coefficients.grad``.

        Raises
        ------
        ValueError
            Where no weight has a gradient.
        """
        method = self.method
        slopes = torch.zeros_like(method.coefficients)
        reached = False
        for name in self.names:
            gradient = self.gradient(name)
            if gradient is None:
                continue
            reached = True
            column = method.groups.index(method.group_of(name))
            slopes[:, column] += self._products(name, gradient)
        if not reached:
            raise ValueError(NO_GRADIENT)
        # through the bounds, as they are when descent is to come back
        method.values().backward(slopes)

    def close(self):
        """Closes the experts; the modules stay as they are."""
        super().close()
        self._stack.close()

    def _products(self, name, gradient):
        """``⟨gradient, τ_k⟩`` of each expert, summed in float64."""
        flat = gradient.reshape(-1)
        sources = [self.base[name], *(each[name] for each in self.experts)]
        rows = [source.reshape(-1) for source in sources]
        sums = torch.zeros(len(self.experts), dtype=torch.float64)
        for start in range(0, flat.numel(), PIECE):
            where = slice(start, start + PIECE)
            piece = flat[where].double()
            anchor = rows[0][where].to(piece)
            for index, row in enumerate(rows[1:]):
                vector = row[where].to(piece) - anchor
                sums[index] += torch.dot(piece, vector).cpu()
        for source in sources:
            release(source)
        return sums
