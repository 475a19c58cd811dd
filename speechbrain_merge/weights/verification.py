"""Whether weights still are what was written down of them.

A pool knows the digest of each candidate. Disks flip bits, and files are
replaced by hand; without a look at the content, a merge takes what there is
and records what was there. So what is merged is hashed as well, on the same
open file, beside the merging, and another digest is an error with both.

Example
-------
>>> import torch
>>> weights = {"weight": torch.ones(2)}
>>> known = digest(weights)
>>> verify(weights, known, "epoch-0001")
>>> verify({"weight": torch.zeros(2)}, known, "epoch-0001")
Traceback (most recent call last):
...
speechbrain_merge.weights.verification.ChangedContent: epoch-0001: its content has the SHA-256 ..., and ... is on record. It was damaged or replaced since it was written down. Restore it from a copy, or leave it out.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from pathlib import Path
from typing import Optional

from speechbrain_merge.weights.digest import digest

_verified = {}
"""Files as they were when they were last hashed, with their digest."""


class ChangedContent(ValueError):
    """Weights are not what was written down of them."""


def verify(weights, known: str, label: Optional[str] = None, path=None):
    """Refuses weights whose content is not what is on record.

    Arguments
    ---------
    weights : Weights or Mapping
        Open weights: what is read here is what the caller reads.
    known : str
        The digest on record.
    label : str, optional
        What the error calls the weights; by default their own label.
    path : str or Path, optional
        The file that they are in. The same file, not written to since, is
        hashed once in a process.

    Raises
    ------
    ChangedContent
        With both digests.
    """
    state = _state_of(path)
    found = _verified.get(state) if state is not None else None
    if found is None:
        found = digest(weights)
        if state is not None and state == _state_of(path):
            _verified[state] = found
    if found != known and _sha256_of(path) != known:
        label = str(label or getattr(weights, "label", "the weights"))
        raise ChangedContent(what_changed(label, found, known))


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
        f"{label}: its content has the SHA-256 {found}, and {known} is on "
        "record. It was damaged or replaced since it was written down. "
        "Restore it from a copy, or leave it out."
    )


def _sha256_of(path):
    """That of a file's bytes, which goes on record for files of no pool."""
    return None if _state_of(path) is None else digest(path)


def _state_of(path):
    """Inode, size and time of a file: they change when it is written."""
    if not isinstance(path, (str, Path)) or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
