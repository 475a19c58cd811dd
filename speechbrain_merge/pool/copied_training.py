"""Telling the copy of a training from a training that was moved.

Whoever copies a results folder to try something from its checkpoint has two
trainings of one identity. Where they collect into the same pool, the copy would
replace what the first has collected since. So each checkpoint says where it was
saved: while checkpoints of its training are still there, another place is a copy.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.first_save import points_to

logger = get_logger(__name__)


def checkpoints_of(pointer) -> Path:
    """Where a training saves its checkpoints.

    Arguments
    ---------
    pointer : str or Path
        `<checkpoints>/<checkpoint>/pool.ckpt`.

    Returns
    -------
    Path
        Absolute.
    """
    return Path(os.path.abspath(pointer)).parent.parent


def is_of_a_copy(pointer: Mapping, path, pool) -> bool:
    """Whether a checkpoint is a copy, and its training collects here still.

    Arguments
    ---------
    pointer : dict
        What a checkpoint says of its candidate.
    path : str or Path
        Where it was read.
    pool : str or Path
        The folder that is collected into.

    Returns
    -------
    bool
        False for a training that was moved, or copied with its pool. A warning
        tells of a copy.
    """
    before = pointer.get("checkpoints")
    if before is None or _is_same(before, checkpoints_of(path)):
        return False
    if not _is_same(pointer.get("pool", ""), pool):
        return False
    try:
        files = sorted(Path(before).glob(f"*/*{PARAMFILE_EXT}"))
    except OSError:
        return False
    if not any(points_to(each, pointer["lineage"]) for each in files):
        return False
    logger.warning(
        f"Pool {pool}: {Path(path).parent} is a copy of a checkpoint of {before}, "
        "where that training still is. What is trained from here is collected "
        "under a name of its own."
    )
    return True


def _is_same(one, other):
    """Whether two paths lead to one place, by links as well."""
    return os.path.realpath(one) == os.path.realpath(other)
