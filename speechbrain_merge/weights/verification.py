"""Whether weights still are what was written down of them.

A pool knows the digest of each candidate. Disks flip bits, and files are
replaced by hand; without a look at the content, a merge takes what there is
and records what was there. So what is merged is hashed as well, on the same
open file, beside the merging, and another digest is an error with both.

Example
-------
>>> import torch
>>> weights = {"weight": torch.ones(2)}
>>> known = tree_hash(weights)
>>> verify(weights, known, "epoch-0001")
>>> verify({"weight": torch.zeros(2)}, known, "epoch-0001")
Traceback (most recent call last):
...
speechbrain_merge.weights.changed_content.ChangedContent: epoch-0001: its content has the hash ..., and ... is on record. It was damaged or replaced since it was written down. Restore it from a copy, or leave it out.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
from collections.abc import Mapping
from typing import Optional

from speechbrain_merge.records.file_hashes import file_state
from speechbrain_merge.weights.adapter_scales import ADAPTER_KEY
from speechbrain_merge.weights.changed_content import ChangedContent
from speechbrain_merge.weights.digest import digest
from speechbrain_merge.weights.tree_hash import PREFIX, TreeHash, tree_hash

_verified = {}
"""Files as they were when they were last hashed, with their digest."""


def verify(
    weights,
    known: str,
    label: Optional[str] = None,
    path=None,
    tree: Optional[TreeHash] = None,
    state: Optional[tuple] = None,
):
    """Refuses weights whose content is not what is on record.

    Arguments
    ---------
    weights : Weights or Mapping
        Open weights: what is read here is what the caller reads.
    known : str
        The hash on record: a tree hash, or a SHA-256.
    label : str, optional
        What the error calls the weights; by default their own label.
    path : str or Path, optional
        The file that they are in. The same file, not written to since, is
        hashed once in a process.
    tree : TreeHash, optional
        Has read some of the weights already.
    state : tuple, optional
        The ``file_state`` before that.

    Raises
    ------
    ChangedContent
        With both hashes.
    """
    if is_verified(path, known):
        return
    state = state or file_state(path)
    found = hash_like(weights, known) if tree is None else tree.result()
    if found != known:
        # that of an adapter whose scale is on record as well
        found = with_scale(found, getattr(weights, "metadata", {}))
    if found != known and state is not None and hash_like(path, known) == known:
        found = known  # that of a file's bytes, which earlier versions recorded
    if found != known:
        label = str(label or getattr(weights, "label", "the weights"))
        raise ChangedContent(what_changed(label, found, known))
    if state is not None and state == file_state(path):
        _verified[state] = found


def with_scale(code: str, metadata: Mapping) -> str:
    """The hash of weights together with the scale that they are read with.

    Arguments
    ---------
    code : str
        The hash of their tensors.
    metadata : dict
        Of their file. An adapter's says by what ΔW is multiplied.

    Returns
    -------
    str
        The same where nothing is said of a scale.
    """
    scale = metadata.get(ADAPTER_KEY)
    if scale is None:
        return code
    return hashlib.sha256(f"{code}\0{scale}".encode()).hexdigest()


def is_verified(path, known: str) -> bool:
    """Whether a file was seen to have a hash, and not written to since.

    Arguments
    ---------
    path : str, Path or None
        The file; None for weights in memory.
    known : str
        The hash on record.

    Returns
    -------
    bool
    """
    state = file_state(path)
    return state is not None and _verified.get(state) == known


def hash_like(source, known: Optional[str]) -> str:
    """The hash of weights, of the kind that is on record.

    Arguments
    ---------
    source : any source of ``open_weights``
        What to hash.
    known : str, optional
        The hash on record; without one, the kind of hash that goes on record.

    Returns
    -------
    str
        A tree hash, or a SHA-256.
    """
    if known is None or known.startswith(PREFIX):
        return tree_hash(source)
    return digest(source)


def what_changed(label: str, found: str, known: str) -> str:
    """The error for weights that are not what is on record.

    Arguments
    ---------
    label : str
        What it calls the weights.
    found : str
        The digest of their content.
    known : str
        The digest on record.

    Returns
    -------
    str
    """
    return (
        f"{label}: its content has the hash {found}, and {known} is on "
        "record. It was damaged or replaced since it was written down. "
        "Restore it from a copy, or leave it out."
    )
