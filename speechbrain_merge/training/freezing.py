"""Freezing parts of a model by name.

SpeechBrain's wrappers can freeze a pretrained model, its feature extractor or
Whisper's encoder, each by an option of its own; the decoder, single layers or
the parts of SpeechBrain's own Transformer they cannot. ``freeze`` takes parts
as ``speechbrain_merge.weights.matches`` does, for any model. In YAML::

    __frozen: !apply:speechbrain_merge.training.freeze
        modules: !ref <modules>
        parts: [decoder]

Example
-------
>>> model = torch.nn.ModuleDict(
...     {"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2)}
... )
>>> freeze(model, ["decoder"])
['decoder.weight', 'decoder.bias']
>>> model["encoder"].weight.requires_grad, model["decoder"].weight.requires_grad
(True, False)

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from typing import Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.weights import matches

logger = get_logger(__name__)


def freeze(
    modules: Union[torch.nn.Module, Mapping], parts: Union[str, list[str]]
) -> list[str]:
    """Freezes the parameters of parts: they need no gradient.

    Dropout goes on in a frozen part, and so do the statistics of batch
    normalisation, which are no parameters.

    Arguments
    ---------
    modules : torch.nn.Module or dict
        The recipe's ``modules``.
    parts : str or list of str
        Such as ``decoder``, ``encoder.layers.0-3``, ``front_end``, or a glob
        or ``re:`` expression on the names of parameters. What is tied to a
        parameter of these parts is frozen with it.

    Returns
    -------
    list of str
        The names of the frozen parameters.

    Raises
    ------
    ValueError
        When there is no part, or one has no parameters.
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    if not parts:
        raise ValueError("`parts` is empty. Name at least one, as `decoder`.")
    if isinstance(modules, Mapping):
        modules = torch.nn.ModuleDict(modules)
    frozen, unused = {}, set(parts)
    for name, parameter in modules.named_parameters(remove_duplicate=False):
        found = [pattern for pattern in parts if matches(name, pattern)]
        if found:
            unused.difference_update(found)
            frozen[name] = parameter
    if unused:
        raise ValueError(
            f"`parts` names {sorted(unused)}, to which no parameter of the "
            "modules belongs. Write a glob on the names of parameters, e.g. "
            "'*head*', where the architecture is not known."
        )
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    logger.info("%d parameters of %s are frozen", len(frozen), parts)
    return list(frozen)
