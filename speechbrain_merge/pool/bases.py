"""The base of a run: the weights that its training started from.

Task vectors are differences from it, so a wrong one makes wrong merges. Each
candidate names its base by a digest, and has no other: a base that another
start left in the run, or that was lost, is never taken for it.

Example
-------
>>> import torch
>>> from speechbrain_merge.pool.run_folder import RunFolder
>>> run = RunFolder(getfixture("tmp_path") / "seed-1")
>>> weights = {"model.weight": torch.zeros(2)}
>>> provide_base(run, digest(weights), weights)
True
>>> has_base(run, digest(weights)), has_base(run, "0" * 64)
(True, False)

Authors
 * The speechbrain_merge authors 2026
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.recovery import BASE_FILE, delete, is_own, put_aside
from speechbrain_merge.pool.run_folder import RunFolder, run_folders
from speechbrain_merge.weights import digest, open_weights, write_weights

logger = get_logger(__name__)


def has_base(run: RunFolder, code: str) -> bool:
    """Whether a run has a base on record, and its file is there.

    Arguments
    ---------
    run : RunFolder
        The run.
    code : str
        Digest of the base.

    Returns
    -------
    bool
    """
    known = run.read().base
    return (
        known is not None
        and known["digest"] == code
        and (run.folder / known["file"]).is_file()
    )


def provide_base(
    run: RunFolder, code: str, tensors: Optional[Mapping] = None
) -> bool:
    """Sees to it that a run has the base that its training started from.

    The same weights in a run beside are linked, which takes no space. Those of
    an earlier attempt go, and are put aside where candidates name them.

    Arguments
    ---------
    run : RunFolder
        A run that this process alone writes.
    code : str
        Digest of the base.
    tensors : dict, optional
        The weights of that digest, if they are at hand.

    Returns
    -------
    bool
        False where it cannot be had.
    """
    if has_base(run, code):
        return True
    beside = _base_beside(run, code)
    if beside is None and tensors is None:
        _take_back(run, unless_named=True)
        return False
    _take_back(run)
    path = run.folder / BASE_FILE
    # One that was stored, and not yet on record when a kill came, goes
    if not delete(path, code):
        put_aside(path, "it is not the base that the manifest has on record")
    if beside is None or not _linked(beside, path):
        _write(path, code, beside, tensors)
    run.manifest.append(
        {
            "event": "base",
            "file": BASE_FILE,
            "digest": code,
            "time": time.time(),
        }
    )
    return True


def _take_back(run, unless_named=False):
    """Removes the base of a run, one that its candidates name if so asked."""
    contents = run.read()
    known = contents.base
    if known is None:
        return
    named = any(
        each.get("base", known["digest"]) == known["digest"]
        for each in contents.candidates.values()
    )
    if named and unless_named:
        return
    path = run.folder / known["file"]
    if named:
        run.manifest.append({"event": "base removed", "kept": True})
        if is_own(path, known["digest"]):
            put_aside(path, "another base takes its place")
        return
    run.manifest.append({"event": "base removed"})
    delete(path, known["digest"])


def _base_beside(run, code):
    """The file of the same base in a run beside, if there is one."""
    for other in run_folders(run.folder.parent):
        path = other.folder / BASE_FILE
        if other.folder != run.folder and has_base(other, code):
            if _holds(path, code):  # and not only on record
                return path
    return None


def _linked(source: Path, path: Path) -> bool:
    try:
        os.link(source, path)
    except OSError as error:
        logger.info(f"{path}: stored, not linked ({error})")
        return False
    return True


def _write(path, code, beside, tensors):
    metadata = {"format": "pt", "digest": code}
    if beside is None:
        write_weights(path, tensors, metadata)
    else:
        with open_weights(beside) as weights:
            write_weights(path, dict(weights), metadata)


def _holds(path, code):
    """Whether the weights in a file are those of a digest."""
    try:
        with open_weights(path) as weights:
            return not path.is_symlink() and digest(weights) == code
    except (ValueError, OSError):
        return False
