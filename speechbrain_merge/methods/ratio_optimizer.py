"""A learning rate of its own for λ, the ratio of learnable attention merging.

λ is one number a layer, between 0 and 1, and the weights beside it are learned
with rates at which such a number does not move: it wants a rate 10 to 100
times as high. ``ratio_optimizer`` takes the place of an optimizer in the YAML
of a recipe, of which no line changes::

    opt_class: !name:speechbrain_merge.methods.ratio_optimizer
        modules: !ref <modules>
        optimizer: !name:torch.optim.AdamW
            lr: 0.00001
        lambda_learning_rate: 0.001

λ has no weight decay, which would be a decay towards the target. A schedule of
SpeechBrain writes one rate into all groups: that is the weights' rate, and λ
keeps its multiple of it. (Where λ's rate is to stay, let the recipe's schedule
write into the first group alone.) SpeechBrain clips gradients of the first
group, the weights.

Example
-------
>>> from speechbrain_merge.methods.parametrization import SourceRatio
>>> modules = torch.nn.ModuleDict(
...     {
...         "encoder": torch.nn.Linear(2, 2),
...         "ratio": SourceRatio(0.1, "clamp", "encoder.layers.0.attention"),
...     }
... )
>>> optimizer = ratio_optimizer(
...     modules.parameters(),
...     modules,
...     lambda groups: torch.optim.AdamW(groups, lr=1e-5),
...     lambda_learning_rate=1e-3,
... )
>>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
[('weights', 1e-05), ('ratios', 0.001)]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Optional, Union

import torch

from speechbrain_merge.methods.parameters import check_number
from speechbrain_merge.methods.parametrization import SourceRatio


def ratio_optimizer(
    parameters: Iterable,
    modules: Union[torch.nn.Module, Mapping],
    optimizer: Callable = torch.optim.AdamW,
    lambda_learning_rate: float = 1e-3,
) -> torch.optim.Optimizer:
    """An optimizer in which λ has a rate of its own.

    Arguments
    ---------
    parameters : iterable
        Parameters, or groups of them, as ``Brain.init_optimizers`` or
        ``layerwise_decay`` hand them over. Groups keep their options.
    modules : torch.nn.Module or dict
        The recipe's ``modules``, which have λ somewhere.
    optimizer : callable
        Makes the optimizer out of groups, with the weights' rate as its
        ``lr``: ``!name:torch.optim.AdamW`` with ``lr`` in YAML.
    lambda_learning_rate : float
        λ's rate, where the weights have the full one.

    Returns
    -------
    torch.optim.Optimizer
        The weights' groups first, then those of λ, named ``ratios``.

    Raises
    ------
    ValueError
        When the modules have no λ.
    """
    given = list(parameters)
    if not given or not isinstance(given[0], Mapping):
        given = [{"params": given, "name": "weights"}]
    known = _known(modules)
    groups, ratios = [], []
    for group in given:
        apart = [each for each in group["params"] if id(each) in known]
        rest = [each for each in group["params"] if id(each) not in known]
        if rest:
            groups.append({**group, "params": rest})
        if apart:
            name = f"ratios of {group['name']}" if len(given) > 1 else "ratios"
            ratios.append(
                {**group, **_options(lambda_learning_rate, name)}
                | {"params": apart}
            )
    built = optimizer(groups + ratios)
    if any("ratio" in group for group in given):
        return built  # layerwise_decay keeps the rates of its groups itself
    full = built.defaults["lr"]
    for group in built.param_groups:
        group["multiple"] = group["lr"] / full
    built.register_step_pre_hook(_keep_multiples)
    return built


def parameter_groups(
    module: torch.nn.Module,
    learning_rate: float,
    lambda_learning_rate: Optional[float] = None,
) -> list:
    """Two parameter groups, for loops that create the optimizer themselves.

    Arguments
    ---------
    module : torch.nn.Module
        After ``parametrize_attention``, or what contains such a model.
    learning_rate : float
        Of the weights.
    lambda_learning_rate : float, optional
        Of λ. By default a hundred times that of the weights.

    Returns
    -------
    list of dict
        The weights, and λ without weight decay. What needs no gradient is in
        neither; what is shared is there once.

    Raises
    ------
    ValueError
        When the model has no λ.

    Example
    -------
    >>> model = torch.nn.ModuleList(
    ...     [torch.nn.Linear(1, 1), SourceRatio(0.1, "free", "layers.0")]
    ... )
    >>> groups = parameter_groups(model, 1e-5, 1e-3)
    >>> [(group["lr"], len(group["params"])) for group in groups]
    [(1e-05, 2), (0.001, 1)]
    """
    check_number(learning_rate, "learning_rate", above=0)
    if lambda_learning_rate is None:
        lambda_learning_rate = 100 * learning_rate
    known = _known(module)
    trained = [each for each in module.parameters() if each.requires_grad]
    weights = [each for each in trained if id(each) not in known]
    ratios = [each for each in trained if id(each) in known]
    return [
        {"params": weights, "lr": learning_rate, "name": "weights"},
        {"params": ratios, **_options(lambda_learning_rate, "ratios")},
    ]


def _options(lambda_learning_rate, name):
    check_number(lambda_learning_rate, "lambda_learning_rate", above=0)
    return {"lr": lambda_learning_rate, "name": name, "weight_decay": 0.0}


def _known(modules):
    """The parameters of all λ, by identity."""
    if isinstance(modules, Mapping):
        modules = torch.nn.ModuleDict(modules)
    known = {
        id(each.value)
        for each in modules.modules()
        if isinstance(each, SourceRatio)
    }
    if not known:
        raise ValueError(
            "The modules have no learnable ratio: call "
            "`parametrize_attention` (or `LearnableAttentionMerge.attach`) on "
            "the model before the optimizer is made."
        )
    return known


def _keep_multiples(optimizer, *arguments):
    """Makes one rate that was written into all groups the weights' rate.

    Groups of different multiples never have equal rates but by such a writer.
    """
    groups = optimizer.param_groups
    if len({group["multiple"] for group in groups}) == 1:
        return
    if len({float(group["lr"]) for group in groups}) == 1:
        for group in groups:
            group["lr"] = group["lr"] * group["multiple"]
