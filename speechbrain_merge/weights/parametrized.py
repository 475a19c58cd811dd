"""Modules whose weights are computed from others, with plain weights instead.

`torch.nn.utils.parametrize` replaces a weight by a formula: the weight is
computed at each use, and the tensors that it is computed from are stored.
Weight norm is such a formula, and users can write others. A formula whose
result can permanently replace it has an attribute ``foldable = True``; then a
pool stores the result under the original name of the weight, and `fold` returns
it.

Weight norm is not among these: it is folded by `fold` alone, from the stored
tensors, and stored in a pool as it is.

Example
-------
>>> class Doubled(torch.nn.Module):
...     foldable = True
...
...     def forward(self, weight):
...         return 2 * weight
>>> layer = torch.nn.Linear(1, 1, bias=False)
>>> _ = torch.nn.init.ones_(layer.weight)
>>> _ = torch.nn.utils.parametrize.register_parametrization(
...     layer, "weight", Doubled()
... )
>>> list(layer.state_dict())
['parametrizations.weight.original']
>>> computed_state(layer)
{'weight': tensor([[2.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch
from torch.nn.utils.parametrize import is_parametrized


def is_computed(module: torch.nn.Module) -> bool:
    """Whether any weight of a module is computed and can be folded.

    Arguments
    ---------
    module : torch.nn.Module
        Any.

    Returns
    -------
    bool

    Example
    -------
    >>> is_computed(torch.nn.Linear(1, 1))
    False
    """
    return any(_computed(each) for each in module.modules())


def computed_state(module: torch.nn.Module) -> dict:
    """The tensors of a module, computed weights under their plain names.

    Arguments
    ---------
    module : torch.nn.Module
        With or without computed weights.

    Returns
    -------
    dict
        Name to tensor, detached. Tensors that are not computed are the
        module's own; layers that are one module have one tensor here, too.
    """
    state, made = {}, {}
    dropped = []
    with torch.no_grad():
        for path, each in module.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for name in _computed(each):
                if (each, name) not in made:
                    made[each, name] = getattr(each, name).detach()
                state[prefix + name] = made[each, name]
                dropped.append(f"{prefix}parametrizations.{name}.")
    rest = {
        name: tensor
        for name, tensor in module.state_dict().items()
        # Modules may keep other things there (`get_extra_state`)
        if isinstance(tensor, torch.Tensor)
        and not name.startswith(tuple(dropped))
    }
    return {**rest, **state}


def _computed(module):
    """The names of a module's own weights that are computed and foldable."""
    if not is_parametrized(module):
        return []
    return [
        name
        for name, formulas in module.parametrizations.items()
        if all(getattr(formula, "foldable", False) for formula in formulas)
    ]
