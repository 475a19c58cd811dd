"""Frozen copies of a recipe's modules, with the weights of other models.

A guide or a teacher computes what the model in training computes, with other
weights. Its modules are copies of the recipe's, so that no second YAML has to
say how they are put together; and it is no module, so that a Brain neither
trains nor checkpoints it.

Example
-------
>>> modules = {"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 3)}
>>> weights = {
...     f"{name}.{key}": torch.zeros_like(tensor)
...     for name, module in modules.items()
...     for key, tensor in module.state_dict().items()
... }
>>> frozen = FrozenModels(modules, [weights])
>>> def forward(modules, features):
...     return modules["head"](modules["encoder"](features))
>>> [outputs] = frozen.outputs(forward, torch.ones(1, 4, 2))
>>> outputs.shape, outputs.abs().max().item()
(torch.Size([1, 4, 3]), 0.0)

Authors
 * The speechbrain_merge authors 2026
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch

from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import load_plain


class FrozenModels:
    """Copies of modules, one for each source of weights.

    Arguments
    ---------
    modules : dict
        Name to module. Those that share parts (an encoder and what wraps it)
        share them in the copies.
    sources : list
        Of sources of ``open_weights`` with names ``<module>.<parameter>``.

    Raises
    ------
    ValueError
        Where weights name a module that there is not, lack one, or do not
        fit. A candidate that is not as its pool has it on record.
    """

    def __init__(
        self, modules: Mapping[str, torch.nn.Module], sources: Sequence
    ):
        self.models = [_with_weights(modules, source) for source in sources]

    def outputs(self, forward: Callable, *inputs: object) -> list:
        """What each model gives out, without dropout and gradients.

        Arguments
        ---------
        forward : callable
            ``forward(modules, *inputs)``, with the copies by their names.
        *inputs : object
            The models go to the device of the first tensor among them.

        Returns
        -------
        list
            Of what ``forward`` returns, one a source.
        """
        found = []
        for model in self.models:
            for each in inputs:
                if isinstance(each, torch.Tensor):
                    model.to(each.device)
                    break
            with torch.no_grad():
                found.append(forward(model, *inputs))
        return found


def _with_weights(modules, source):
    """A frozen copy of modules with the weights of a source."""
    # at once, so that what is shared stays shared
    model = torch.nn.ModuleDict(copy.deepcopy(dict(modules)))
    states = {}
    with open_on_record(source) as weights:
        for name in weights:
            module, _, parameter = name.partition(".")
            if module not in modules:
                raise ValueError(
                    f"{weights.label}: '{name}' is of no module that is known "
                    f"here ({', '.join(modules)})."
                )
            states.setdefault(module, {})[parameter] = weights[name]
        for name, state in states.items():
            load_plain(model[name], state)
        _check_whole(model, states, weights.label)
    model.requires_grad_(False)
    return model.eval()


def _check_whole(model, states, label):
    """Raises where a module with parameters has got no weights."""
    given = {id(one) for name in states for one in model[name].parameters()}
    lacking = [
        name
        for name, module in model.items()
        if any(id(one) not in given for one in module.parameters())
    ]
    if lacking:
        raise ValueError(
            f"{label} has no weights of {', '.join(lacking)}: this would be a "
            "model of which a part is the one in training. Give the weights of "
            f"{', '.join(model)}."
        )
