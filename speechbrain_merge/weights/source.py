"""Open the weights of a model, wherever they are.

Experts arrive as checkpoints of a SpeechBrain run, as Hugging Face folders, as
candidates of a pool, as modules in memory. `open_weights` makes them alike: a
read-only mapping whose tensors are read, or mapped, when they are asked for,
so that merging N models of 6 GB does not need N times 6 GB of memory.

Example
-------
>>> import torch
>>> with open_weights(torch.nn.Linear(2, 3)) as weights:
...     for name in weights.names():
...         print(name, weights.shape(name), weights.dtype(name))
weight (3, 2) torch.float32
bias (3,) torch.float32

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Optional

import torch

from speechbrain_merge.weights.files import open_file
from speechbrain_merge.weights.folders import open_folder
from speechbrain_merge.weights.head_count import heads_metadata
from speechbrain_merge.weights.mapping import Weights, from_tensors, under


def open_weights(source, recoverable: Optional[str] = None) -> Weights:
    """Open the weights of a model.

    Arguments
    ---------
    source : str, Path, Mapping, torch.nn.Module, Weights or object with `.path`
        - a file: ``.ckpt``, ``.pt``, ``.bin``, ``.pth`` or ``.safetensors``;
        - a SpeechBrain checkpoint folder ``CKPT+…``: names are then
          ``<recoverable>.<parameter>``, for all recoverables that are models;
        - a Hugging Face model folder, in one file or in shards;
        - a state dict, or a module;
        - a candidate of a pool, or anything else with a `.path`;
        - weights that are open already: the same object, held once more.
    recoverable : str, optional
        Take one recoverable of a checkpoint folder, with its bare names. Of
        other sources, the tensors under that prefix, without it.

    Returns
    -------
    Weights
        A context manager and a ``Mapping[str, Tensor]``.

    Raises
    ------
    FileNotFoundError
        Where a path does not exist.
    ValueError
        Where the source is not a whole set of weights.
    TypeError
        Where the source is nothing of the above.

    Example
    -------
    >>> path = getfixture("tmp_path") / "expert.pt"
    >>> torch.save({"model.bias": torch.tensor([1.0, 2.0])}, path)
    >>> with open_weights(path, recoverable="model") as weights:
    ...     weights["bias"]
    tensor([1., 2.])
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist. Give a file, a checkpoint folder or "
                "a Hugging Face folder on this machine."
            )
        if path.is_dir():
            weights = open_folder(path, recoverable)
            weights.metadata.update(heads_metadata(path))
            return weights
        weights = open_file(path)
    elif isinstance(source, Weights):
        weights = source.share()
    elif isinstance(source, torch.nn.Module):
        weights = from_tensors(
            source.state_dict(),
            f"a module of class {type(source).__name__}",
            heads_metadata(source),
        )
    elif isinstance(source, Mapping):
        weights = from_tensors(source)
    elif hasattr(source, "path"):
        return open_weights(source.path, recoverable)
    else:
        raise TypeError(
            f"weights cannot be opened from a {type(source).__name__}. Give a "
            "path, a state dict, a module or a candidate of a pool."
        )
    return weights if recoverable is None else under(weights, recoverable)
