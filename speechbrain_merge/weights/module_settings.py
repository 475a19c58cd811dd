"""What a model computes beside its weights, where its modules say so.

No shape tells whether an encoder normalises its output, or sees the future. Pools
record it with the numbers of heads, merges carry it on, and an export compares
it with the model that is exported with.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> norm = torch.nn.GroupNorm(2, 4)
>>> module_settings(open_weights(norm))
{'': {'num_groups': 2}}

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import parse_json

logger = get_logger(__name__)

MODULE_SETTINGS = "module_settings"
"""Key of the metadata of open weights."""

NAMES = (
    "blank_id",
    "causal",
    "nonlinearity",
    "normalize_before",
    "normalize_wav",
    "num_groups",
    "output_all_hiddens",
    "output_norm",
)
"""Attributes of modules that are recorded."""


def module_settings(source) -> dict:
    """What the modules of a source compute beside their weights.

    Arguments
    ---------
    source : torch.nn.Module or Weights
        A live module or open weights. Of anything else nothing is known.

    Returns
    -------
    dict
        Path of a module to its settings by name.

    Example
    -------
    >>> module_settings(torch.nn.RNN(2, 2, nonlinearity="relu"))
    {'': {'nonlinearity': 'relu'}}
    """
    if isinstance(source, torch.nn.Module):
        found = {
            path: {
                name: _plain(getattr(module, name))
                for name in NAMES
                if getattr(module, name, None) is not None
            }
            for path, module in source.named_modules()
        }
        return {path: settings for path, settings in found.items() if settings}
    metadata = getattr(source, "metadata", None)
    text = metadata.get(MODULE_SETTINGS) if metadata else None
    try:
        content = {} if text is None else parse_json(text, source.label)
    except RecordError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in content.items() if isinstance(v, dict)}


def settings_metadata(source) -> dict:
    """The metadata that ``open_weights`` and pools add.

    Arguments
    ---------
    source : torch.nn.Module or dict
        A module, or modules by the names that come before those of their
        tensors.

    Returns
    -------
    dict
        Empty where nothing is known.
    """
    modules = source if isinstance(source, Mapping) else {"": source}
    found = {
        ".".join(filter(None, (name, path))): settings
        for name, module in modules.items()
        for path, settings in module_settings(module).items()
    }
    return {MODULE_SETTINGS: json.dumps(found)} if found else {}


def common_settings(models) -> dict:
    """The metadata of a merge: what its models say, as far as they agree.

    Arguments
    ---------
    models : list of Weights
        Open weights, of which some may say nothing. A warning names the first
        setting in which two differ.

    Returns
    -------
    dict
        Empty where none says anything.
    """
    known: dict = {}
    apart: dict = {}
    for model in models:
        for path, settings in module_settings(model).items():
            for name, value in settings.items():
                first = known.setdefault((path, name), (value, model.label))
                if first[0] != value:
                    apart.setdefault(
                        (path, name),
                        f"`{name}` of '{path}' is {first[0]!r} in {first[1]} "
                        f"and {value!r} in {model.label}",
                    )
    for message in list(apart.values())[:1]:
        logger.warning(f"{message}: a mean of their weights may be no model's.")
    found: dict = {}
    for (path, name), (value, _) in known.items():
        if (path, name) not in apart:
            found.setdefault(path, {})[name] = value
    return {MODULE_SETTINGS: json.dumps(found)} if found else {}


def _plain(value):
    """A value of JSON; of a function, class or module its name."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", type(value).__name__)
