"""Ties: names of one model that share one tensor.

An output layer that is the transposed embedding, or one layer used twice,
appears in a state dict under two names. Averaging name by name then counts the
tensor twice where sums are done in place, and writes it twice to disk. So ties
are found once, by where the values lie in memory, and kept as a mapping from
each *alias* to the name that is *kept*: the first one.

`torch.save` and `torch.load` keep shared storage, hence a tie in a ``.ckpt``
file is found as in memory. A safetensors file cannot share storage: there the
ties are written down in its metadata.

Example
-------
>>> import torch
>>> embedding = torch.nn.Embedding(4, 2)
>>> output = torch.nn.Linear(2, 4, bias=False)
>>> output.weight = embedding.weight
>>> model = torch.nn.ModuleDict({"embedding": embedding, "output": output})
>>> find_ties(model.state_dict())
{'output.weight': 'embedding.weight'}

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Iterable, Mapping

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import parse_json


def find_ties(tensors: Mapping) -> dict:
    """Which names share the very same values in memory.

    Only tensors that coincide in address, dtype, shape and stride are tied: a
    view of a part of another tensor, or its transpose, is a tensor of its own.
    Tensors without elements have no address and are never tied.

    Arguments
    ---------
    tensors : Mapping
        Name to tensor.

    Returns
    -------
    dict
        Alias to kept name. The first name that shows a tensor is kept.
    """
    kept = {}
    ties = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        place = (
            tensor.device,
            tensor.data_ptr(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        first = kept.setdefault(place, name)
        if first != name:
            ties[name] = first
    return ties


def common_ties(models: Iterable) -> dict:
    """The ties that hold in every one of several models.

    A merged model may tie two names only if all of its parents do: where one
    parent has trained them apart, they are two tensors.

    Arguments
    ---------
    models : Iterable
        Open weights, or anything else with a `tied` dictionary.

    Returns
    -------
    dict
        Alias to kept name.

    Example
    -------
    >>> import torch
    >>> from speechbrain_merge.weights import open_weights
    >>> shared = torch.zeros(3)
    >>> tied = open_weights({"a": shared, "b": shared})
    >>> apart = open_weights({"a": torch.zeros(3), "b": torch.zeros(3)})
    >>> common_ties([tied, tied]), common_ties([tied, apart])
    ({'b': 'a'}, {})
    """
    models = list(models)
    in_first = models[0].tied if models else {}
    kept = {}
    ties = {}
    for name in dict.fromkeys([*in_first.values(), *in_first]):
        # The kept name may differ from model to model, the group may not
        group = tuple(model.tied.get(name, name) for model in models)
        first = kept.setdefault(group, name)
        if first != name:
            ties[name] = first
    return ties


def ties_to_text(ties: Mapping) -> str:
    """Ties as a string for the metadata of a file.

    Arguments
    ---------
    ties : Mapping
        Alias to kept name.

    Returns
    -------
    str
        A JSON object.
    """
    return json.dumps(dict(ties), sort_keys=True)


def ties_from_text(text: str, label: str) -> dict:
    """Ties from the metadata of a file.

    Arguments
    ---------
    text : str
        A JSON object that maps aliases to kept names.
    label : str
        The file, for the error.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Where the text is not such an object.
    """
    try:
        ties = parse_json(text, label)
    except RecordError:
        ties = None
    if not isinstance(ties, dict) or not all(
        isinstance(kept, str) and kept not in ties for kept in ties.values()
    ):
        raise ValueError(
            f"{label}: the metadata entry 'tied' should be a JSON object from "
            f"alias to stored name, but it is {text[:80]!r}. "
            "Write the file again."
        )
    return ties
