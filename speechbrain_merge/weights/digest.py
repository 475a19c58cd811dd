"""A fingerprint of weights: the same content, the same sixty-four letters.

It identifies a candidate whatever its file is called, it is the key under which
a merge is cached, and a merged model lists the digests of its experts.

Example
-------
>>> import torch
>>> one = {"bias": torch.zeros(2), "weight": torch.ones(2)}
>>> other = {"weight": torch.ones(2), "bias": torch.zeros(2)}
>>> digest(one) == digest(other)
True
>>> digest(one) == digest({**one, "bias": torch.ones(2)})
False

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch

from speechbrain_merge.records.file_hashes import (
    file_fingerprint,
    stream_fingerprint,
)
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights.mapped import release
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.metadata_check import KEY, with_metadata_check
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.writer import header_bytes, tensor_bytes


def digest(source) -> str:
    """The sha256 of a file's bytes, or of all tensors of anything else.

    A single file is hashed as it lies on disk, so that `sha256sum` agrees. For
    folders, state dicts, modules and open weights the names, dtypes, shapes
    and values are hashed in the order of the sorted names: the order of
    insertion, shards and metadata make no difference there.

    Arguments
    ---------
    source : any source of `open_weights`
        What to hash.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    is_weights = isinstance(source, (Weights, torch.nn.Module, dict))
    if not is_weights and hasattr(source, "path"):
        source = source.path
    if isinstance(source, (str, PathLike)) and Path(source).is_file():
        return file_fingerprint(source)
    result = hashlib.sha256()
    with open_weights(source) as weights:
        for name in sorted(weights):
            shape = list(weights.shape(name))
            result.update(f"{name}\0{weights.dtype(name)}\0{shape}\0".encode())
            tensor = weights[name]
            result.update(tensor_bytes(tensor))
            release(tensor)
    return result.hexdigest()


def digest_with(path, metadata: Mapping) -> str:
    """The sha256 that a safetensors file would have with other metadata.

    Arguments
    ---------
    path : str or Path
        A file that ``WeightWriter`` wrote. It is not changed.
    metadata : dict
        The metadata, in their order. They have a check where the file has.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> from speechbrain_merge.weights import write_weights
    >>> folder = getfixture("tmp_path")
    >>> weights = {"bias": torch.ones(2)}
    >>> one = write_weights(folder / "1.safetensors", weights, {"by": "me"})
    >>> other = write_weights(folder / "2.safetensors", weights, {"by": "us"})
    >>> digest_with(one, {"by": "us"}) == digest(other)
    True
    """
    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length), f"the header of {path}")
        if KEY in header.get("__metadata__", {}):
            metadata = with_metadata_check(metadata)
        header["__metadata__"] = dict(metadata)
        return stream_fingerprint(file, header_bytes(header))
