"""Files of tensors that tell when they were damaged.

What is computed once and read by later merges (statistics, learned maps) lies
on the disk in between, and no pool or index knows its hash. So the file has the
hash of its own tensors in its metadata, and whoever reads it compares them. So
does the output of a merge plan, which is not made again while it is as it was.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> path = getfixture("tmp_path") / "fisher.safetensors"
>>> path = write_with_hash(path, {"weight": torch.ones(2)}, {"of": "digits"})
>>> with open_weights(path) as weights:
...     verify_own_hash(weights)
True
>>> content = bytearray(path.read_bytes())
>>> content[-1] ^= 1
>>> _ = path.write_bytes(content)
>>> with open_weights(path) as weights:
...     verify_own_hash(weights)
Traceback (most recent call last):
...
speechbrain_merge.weights.changed_content.ChangedContent: .../fisher.safetensors: its content has the hash blake3:..., and blake3:... is on record. ...

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.records.checked import digest_text
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.tree_hash import tree_hash
from speechbrain_merge.weights.verification import verify
from speechbrain_merge.weights.writer import write_weights

KEY = "content"
"""The entry of a file's metadata that has the hash of its tensors."""


def write_with_hash(path, tensors: Mapping, metadata: Mapping) -> Path:
    """Writes tensors to a safetensors file that knows their hash.

    Arguments
    ---------
    path : str or Path
        The file to write.
    tensors : dict
        Name to tensor.
    metadata : dict
        More strings to store.

    Returns
    -------
    Path
    """
    known = {**metadata, KEY: tree_hash(dict(tensors))}
    return write_weights(path, tensors, known)


def own_hash(weights: Weights) -> str:
    """The hash of tensors alone, whatever the metadata say.

    Arguments
    ---------
    weights : Weights
        Open weights.

    Returns
    -------
    str
        See ``speechbrain_merge.weights.tree_hash``.
    """
    return tree_hash(_bare(weights))


def _bare(weights):
    """Weights without metadata."""
    entries = {name: weights.entry(name) for name in weights}
    return Weights(entries, weights.label, tied=weights.tied)


def verify_own_hash(weights: Weights) -> bool:
    """Refuses tensors that are not those that were written.

    Arguments
    ---------
    weights : Weights
        Open weights. Of those without a hash in their metadata nothing is
        known. The same file, not written to since, is read once in a process.

    Returns
    -------
    bool
        Whether they have a hash.

    Raises
    ------
    ChangedContent
        With both hashes.
    """
    known = weights.metadata.get(KEY)
    if known is None:
        return False
    digest_text(known, f"{weights.label}, metadata '{KEY}'")
    verify(_bare(weights), known, weights.label, weights.label)
    return True


def verify_file(path) -> bool:
    """Refuses a file whose tensors are not those that were written.

    Arguments
    ---------
    path : str or Path
        The file, or the folder of a model.

    Returns
    -------
    bool
        Whether it has a hash.

    Raises
    ------
    ChangedContent
        With both hashes.
    """
    with open_weights(path) as weights:
        return verify_own_hash(weights)
