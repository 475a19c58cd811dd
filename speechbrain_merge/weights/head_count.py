"""How many attention heads a model has, where it says so itself.

The shapes of queries, keys and values do not tell heads: 6 heads of 64 and 12
heads of 32 are matrices of the same size. A live module knows its number, and
so does the ``config.json`` of a Hugging Face folder; ``open_weights`` keeps
what they say in the metadata of the open weights, as JSON.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> attention = torch.nn.MultiheadAttention(8, 4)
>>> head_count(attention)
4
>>> head_count(open_weights(attention))
4

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Optional

import torch

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import parse_json, read_text
from speechbrain_merge.weights.module_settings import (
    common_settings,
    settings_metadata,
)

# Key of the metadata of open weights
ATTENTION_HEADS = "attention_heads"
# What attention layers call their number of heads
_ATTRIBUTES = ("num_heads", "num_attention_heads")
_ENDING = "attention_heads"


def attention_heads(source) -> dict:
    """The number of heads of each attention layer, where a source has it.

    Arguments
    ---------
    source : torch.nn.Module, str, Path or Weights
        A live module, a Hugging Face folder, or open weights. Of anything
        else nothing is known.

    Returns
    -------
    dict
        Where the attention is, to its number of heads: the path of the layer
        in a module; of a folder the stack ("encoder", "decoder"), or "" where
        one number holds for all.

    Example
    -------
    >>> attention_heads({"a state dict": torch.ones(1)})
    {}
    """
    if isinstance(source, torch.nn.Module):
        counts = _of_modules(source, _number_of)
        return counts or _of_modules(source, _number_of_configuration)
    if isinstance(source, (str, PathLike)):
        return _of_configuration(Path(source) / "config.json")
    text = getattr(source, "metadata", {}).get(ATTENTION_HEADS)
    return {} if text is None else _whole_numbers(text, source.label)


def heads_at(counts: dict, name: str, stack: str = "") -> Optional[int]:
    """The number of heads of the attention layer that a tensor belongs to.

    Arguments
    ---------
    counts : dict
        From ``attention_heads``.
    name : str
        The name of the tensor.
    stack : str
        "encoder" or "decoder", where the tensor lies in one.

    Returns
    -------
    int or None
        ``None`` where it is not known.

    Example
    -------
    >>> counts = {"layers.0.attention": 4, "layers.1.attention": 2}
    >>> heads_at(counts, "layers.1.attention.q_proj.weight")
    2
    >>> heads_at({"encoder": 6}, "model.q_proj.weight", "encoder")
    6
    """
    known = [
        path
        for path in counts
        if path in ("", stack) or name.startswith(f"{path}.")
    ]
    return counts[max(known, key=len)] if known else None


def head_count(source) -> Optional[int]:
    """The number of heads of all attention layers of a model.

    Arguments
    ---------
    source : object
        As for ``attention_heads``.

    Returns
    -------
    int or None
        ``None`` where the source does not say.

    Raises
    ------
    ValueError
        Where its attention layers have different numbers.
    """
    numbers = set(attention_heads(source).values())
    if len(numbers) > 1:
        raise ValueError(
            f"The attention layers have {sorted(numbers)} heads: maps know "
            "one number for a model."
        )
    return numbers.pop() if numbers else None


def agreed_heads(given: Optional[int], *models) -> Optional[int]:
    """The number of heads, as given and as the models' metadata have it.

    Arguments
    ---------
    given : int, optional
        What the caller says.
    *models : Weights
        Open weights, whose metadata may tell.

    Returns
    -------
    int or None
        ``None`` where nobody says.

    Raises
    ------
    ValueError
        Where two say different things.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> agreed_heads(4, open_weights(torch.nn.MultiheadAttention(8, 4)))
    4
    """
    said = [] if given is None else [("`heads`", given)]
    for model in models:
        number = head_count(model)
        if number is not None:
            said.append((model.label, number))
    if len({number for _, number in said}) > 1:
        shown = ", ".join(f"{who} says {number}" for who, number in said)
        raise ValueError(
            f"The numbers of attention heads differ: {shown}. Both models "
            "must have as many, and `heads`, where it is given, must be that "
            "number: leave it out where the models tell."
        )
    return said[0][1] if said else None


def common_heads(models) -> dict:
    """The metadata of a merge on heads and settings: what its models say.

    Arguments
    ---------
    models : list of Weights
        Open weights, of which some may say nothing.

    Returns
    -------
    dict
        Empty where none says anything.

    Raises
    ------
    ValueError
        Where two models have different numbers in one layer.

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> one, other = [
    ...     open_weights(torch.nn.MultiheadAttention(8, heads))
    ...     for heads in (2, 4)
    ... ]
    >>> common_heads([one, one])
    {'attention_heads': '{"": 2}'}
    >>> common_heads([one, other])
    Traceback (most recent call last):
    ...
    ValueError: a module of class MultiheadAttention has 4 attention heads, and a module of class MultiheadAttention has 2: a mean of weights of different heads is no model's.
    """
    known: dict = {}
    for model in models:
        for path, number in attention_heads(model).items():
            found, label = known.setdefault(path, (number, model.label))
            if found != number:
                where = f" in '{path}'" if path else ""
                raise ValueError(
                    f"{model.label} has {number} attention heads{where}, and "
                    f"{label} has {found}: a mean of weights of different "
                    "heads is no model's."
                )
    counts = {path: number for path, (number, _) in known.items()}
    notes = {ATTENTION_HEADS: json.dumps(counts)} if counts else {}
    return {**notes, **common_settings(models)}


def heads_metadata(source) -> dict:
    """The metadata on heads and settings that ``open_weights`` and pools add.

    Arguments
    ---------
    source : torch.nn.Module, str, Path or dict
        A module, a Hugging Face folder, or modules by the names that come
        before those of their tensors.

    Returns
    -------
    dict
        Empty where the source does not say.

    Example
    -------
    >>> heads_metadata({"decoder": torch.nn.MultiheadAttention(8, 4)})
    {'attention_heads': '{"decoder": 4}'}
    """
    if isinstance(source, Mapping):
        counts = {
            ".".join(filter(None, (name, path))): number
            for name, module in source.items()
            for path, number in attention_heads(module).items()
        }
    else:
        counts = attention_heads(source)
    notes = {ATTENTION_HEADS: json.dumps(counts)} if counts else {}
    return {**notes, **settings_metadata(source)}


def _of_modules(module, number_of):
    """Path to number, of all modules that say one."""
    found = {path: number_of(each) for path, each in module.named_modules()}
    return {path: number for path, number in found.items() if number}


def _number_of_configuration(module):
    """The number of heads in the configuration of a Hugging Face model."""
    return _number_of(getattr(module, "config", None))


def _number_of(module):
    """The number of heads that a module says it has."""
    for attribute in _ATTRIBUTES:
        number = getattr(module, attribute, None)
        if isinstance(number, int) and not isinstance(number, bool):
            return number
    return None


def _of_configuration(path):
    """The number of heads in a configuration, for each stack."""
    if not path.is_file():
        return {}
    stacks = {
        key[: -len(_ENDING)].rstrip("_"): number
        for key, number in _whole_numbers(read_text(path), path).items()
        if key.endswith(_ENDING)
    }
    return {
        "" if stack == "num" else stack: number
        for stack, number in stacks.items()
        if stack in ("num", "encoder", "decoder")
    }


def _whole_numbers(text, where):
    """The whole numbers of a JSON object; of other text none."""
    try:
        content = parse_json(text, str(where))
    except RecordError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
    }
