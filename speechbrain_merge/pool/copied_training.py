"""Telling the copy of a training from a training that was moved.

Whoever copies a results folder to try something from its checkpoint has two
trainings of one identity. Where they collect into the same pool, the copy would
replace what the first has collected since. So each checkpoint says where it was
saved: while checkpoints of its training are still there, another place is a copy.
So it is where later candidates of its training were saved elsewhere. Each
candidate says where, by the folder's path and its number in the file system,
which stays when it is moved.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.first_save import points_to
from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.pool.meta import finite_number, read_meta

logger = get_logger(__name__)

_MOST = 10_000
"""Folders that are looked at for one that was given another name."""


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


def place_of(checkpoints) -> str:
    """What tells the folder of a training's checkpoints from a copy of it.

    Arguments
    ---------
    checkpoints : str or Path
        The folder.

    Returns
    -------
    str
        Of its path and of its number in the file system. The path itself is
        not told.
    """
    path = os.path.realpath(checkpoints)
    code = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return f"{code} {os.stat(path).st_ino}"


def was_saved_in(checkpoints, record: Mapping) -> bool:
    """Whether the checkpoint of a candidate still lies in a folder.

    Arguments
    ---------
    checkpoints : str or Path
        The folder of a training's checkpoints.
    record : dict
        The candidate, as a manifest has it.

    Returns
    -------
    bool
        True for candidates of earlier versions, which do not name theirs.
    """
    if "checkpoint" not in record:
        return True
    folder = Path(checkpoints) / Path(record["checkpoint"]).name
    if not folder.is_dir():
        return False
    try:
        time = finite_number(read_meta(folder).get("unixtime"))
    except ValueError:
        return True  # a kill left it half written
    # Names are of a second, in which another training may have saved as well
    return time is None or time == record.get("time")


def is_of_a_copy(pointer: Mapping, path, pool, known: Iterable = ()) -> bool:
    """Whether a checkpoint is a copy, and its training collects here still.

    Arguments
    ---------
    pointer : dict
        What a checkpoint says of its candidate.
    path : str or Path
        Where it was read.
    pool : str or Path
        The folder that is collected into.
    known : iterable of dict
        Records of the candidates of its run there.

    Returns
    -------
    bool
        False for a training that was moved, or copied with its pool, while none
        but itself collects into that. A warning tells of a copy.
    """
    here, before = checkpoints_of(path), pointer.get("checkpoints")
    copied = _copied_with_the_pool(pointer, pool)
    if copied is None and before is not None and not _is_same(before, here):
        if _is_still_at(before, pointer["lineage"]):
            logger.warning(
                f"Pool {pool}: {Path(path).parent} is a copy of a checkpoint of "
                f"{before}, where that training still is. What is trained from "
                "here is collected under a name of its own."
            )
            return True
    if any(
        _is_from_elsewhere(each, pointer, here)
        for each in known
        if each["digest"] not in (copied or ())
    ):
        logger.warning(
            f"Pool {pool}: the training of {Path(path).parent} went on in "
            "another folder, of which this one is a copy, or the other way "
            "round. What is trained from here is collected under a name of its "
            "own."
        )
        return True
    return False


def _copied_with_the_pool(pointer, pool):
    """Digests of the candidates that came with a copy of the pool.

    None where the pool is the one that the checkpoint names, or took its place.
    """
    before = Path(pointer["pool"])
    if _is_same(before, pool) or not any(before.glob(f"*/{Manifest.FILE}")):
        return None
    return set(Manifest(before / pointer["run"]).read().digests)


def _is_still_at(checkpoints, lineage):
    """Whether a folder has checkpoints of a training."""
    try:
        files = sorted(Path(checkpoints).glob(f"*/*{PARAMFILE_EXT}"))
    except OSError:
        return False
    return any(points_to(each, lineage) for each in files)


def _is_from_elsewhere(record, pointer, checkpoints):
    """Whether a candidate was saved later than a checkpoint, in another folder."""
    place = record.get("place")
    if place is None or record.get("lineage") != pointer["lineage"]:
        return False
    if record.get("saves", 0) <= pointer["saves"]:
        return False
    (path, number), here = place.split(), place_of(checkpoints).split()
    if number == here[1]:
        return False  # moved, or where it was
    if path != here[0]:
        return True
    # Another folder at the same path: put back from a backup, or a copy, where
    # the first was given another name
    return _is_beside(number, Path(checkpoints))


def _is_beside(number, checkpoints):
    """Whether a folder of that number is beside one, or beside its results."""
    results = checkpoints.parent
    places = itertools.chain(
        _entries(results),
        (each / checkpoints.name for each in _entries(results.parent)),
    )
    for place in itertools.islice(places, _MOST):
        try:
            if str(os.stat(place).st_ino) == number:
                return True
        except OSError:  # no such folder there
            continue
    return False


def _entries(folder):
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _is_same(one, other):
    """Whether two paths lead to one place, by links as well."""
    return os.path.realpath(one) == os.path.realpath(other)
