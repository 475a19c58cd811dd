"""Plain weights into a module with adapters, which computes with them alone.

The way back from `fold`. Plain weights have no low-rank factors, and a module
with LoRA computes W + s·B·A. So each plain weight takes the place of the frozen
W, and B becomes zero: what the adapter adds is exactly nothing, and training
it further, if one wants to, starts as LoRA always starts.

What the module held before is lost thereby. SpeechBrain's `AdaptedModel` saves
only what was trained, so a checkpoint does not bring the frozen W back: keep a
copy of the state before, as the merge stage does.

Example
-------
>>> import torch
>>> from speechbrain.nnet.adapters import AdaptedModel, LoRA
>>> plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
>>> inputs, state = torch.ones(1, 4), plain.state_dict()
>>> adapted = AdaptedModel(
...     torch.nn.Sequential(torch.nn.Linear(4, 4)), LoRA, all_linear=True
... )
>>> load_plain(adapted, state)
>>> torch.equal(adapted(inputs), plain(inputs))
True

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.weights.adapters import (
    adapter_names,
    factor_of,
    plain_name,
)
from speechbrain_merge.weights.mapping import from_tensors
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.tied import find_ties
from speechbrain_merge.weights.weight_norm import refold


def load_plain(module: torch.nn.Module, source):
    """Loads plain weights into a module with LoRA, strictly.

    Arguments
    ---------
    module : torch.nn.Module
        Has layers with LoRA of SpeechBrain or PEFT. Changed in place.
    source : any source of `open_weights`
        Under the names of the plain module, as `fold` gives them; or under the
        module's own names, adapters included, which are loaded as they are.

    Raises
    ------
    ValueError
        Where names, shapes or ties do not fit; nothing is loaded then.
    """
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        # Modules may keep other things there (`get_extra_state`)
        if isinstance(tensor, torch.Tensor)
    }
    with open_weights(source) as weights:
        if set(weights) == set(state):
            module.load_state_dict(dict(weights), strict=False)
            return
        _refuse_merged(module)
        places = _places(state)
        like = from_tensors(
            {plain: state[names[-1]] for plain, names in places.items()},
            f"the {type(module).__name__} without its adapters",
        )
        plain = refold(weights, like)  # raises where names do not fit
        wrong = [
            f"{name} {list(plain.shape(name))} and {list(like.shape(name))}"
            for name in plain
            if plain.shape(name) != like.shape(name)
        ]
        if wrong:
            raise ValueError(
                f"{weights.label} does not fit {like.label}: shapes of "
                f"{', '.join(wrong[:3])}"
            )
        loaded = {
            name: torch.zeros_like(tensor) if factor.side == "up" else tensor
            for name, tensor in state.items()
            if (factor := factor_of(name)) is not None
        }
        for own, names in places.items():
            loaded.update(dict.fromkeys(names, plain[own]))
    for alias, kept in find_ties(state).items():
        if not torch.equal(loaded[alias], loaded[kept]):
            raise ValueError(
                f"{weights.label} has different values for {alias} and {kept}, "
                "which are one tensor in the module (an adapter on one of two "
                "tied layers unties them). Load them into a plain module whose "
                "layers are not tied."
            )
    module.load_state_dict(loaded, strict=False)


def _places(state):
    """Plain name to the names under which the module has it.

    A module that PEFT trained in full is there twice, the original one first.
    """
    adapters = adapter_names(state)
    if len(adapters) > 1:
        raise ValueError(
            f"the module has the adapters {adapters}: plain weights can be "
            "loaded into a module with one. Delete the others "
            "(model.delete_adapter)."
        )
    (adapter,) = adapters or [None]
    places = {}
    for name in state:
        if factor_of(name) is None:
            places.setdefault(plain_name(name, adapter), []).append(name)
    return places


def _refuse_merged(module):
    for path, layer in module.named_modules():
        if hasattr(layer, "lora_A") and getattr(layer, "merged", False):
            raise ValueError(
                f"the adapter of '{path}' is merged into its weight. Call "
                "unmerge_adapter() before loading weights."
            )
