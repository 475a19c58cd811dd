"""Recovers files of a run that its manifest lacks, or puts them aside.

A manifest may be lost, emptied, or cut by a disk that was full; a kill may come
between a candidate and the line that names it; a person may copy a file in.
None of this may cost a candidate. So at the start of a training each file with
a name that pools give is looked at:

- one that the manifest took back was about to be deleted, and is;
- one that carries a record of this run, and whose content is what the record
  says, is a candidate: its line is written anew;
- any other is moved to `quarantine/` beside it, where nothing deletes it.

Files with other names are a person's own, and stay where they are.

Example
-------
>>> import torch
>>> from speechbrain_merge.pool.run_folder import RunFolder
>>> run = RunFolder(getfixture("tmp_path") / "seed-1")
>>> record = {"name": "epoch-0001", "epoch": 1, "meta": {"WER": 9.5}}
>>> run.store(record, {"model.weight": torch.ones(2)})
>>> run.manifest.path.unlink()
>>> clear_up(run)
>>> [candidate.name for candidate in run.candidates()]
['seed-1/epoch-0001']

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import os
import re
import stat
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.records import candidate_record
from speechbrain_merge.records.checked import digest_text
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import remove_stale, sync_folder
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.records.written_check import without_check
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.verification import verify

logger = get_logger(__name__)

BASE_FILE = "base.safetensors"

METADATA = "candidate"
"""Key of a candidate's record in the metadata of its file."""

QUARANTINE = "quarantine"

OWN_FILE = re.compile(
    r"(base|(epoch|save)-\d{4,}(-step-\d{6,})?(-\d+)?)\.safetensors"
)
"""Names that a pool gives to its files."""


def clear_up(run):
    """Recovers what the manifest of a run lost, and removes remains.

    Arguments
    ---------
    run : RunFolder
        A run that this process alone writes.
    """
    remove_stale(run.folder)
    removed = run.read().removed
    for path in strays_of(run, deleted=True):
        if _was_left(run, path, removed):
            if not delete(path, removed[path.name]):
                put_aside(path, "it was to be deleted, and was changed since")
    strays = [(path, own_record(path, run.run)) for path in strays_of(run)]
    strays.sort(key=lambda each: (each[1] or {}).get("saves", 0))
    for path, record in strays:
        why = _why_not(run, path, record)
        if why:
            put_aside(
                path,
                "no line of the manifest names it and it cannot be recovered, "
                f"because {why}",
            )
        else:
            run.manifest.append(record)
            logger.warning(
                f"{path}: recovered. {run.manifest.path} did not name it; it "
                "carries its own record, and its content is as that says."
            )


def strays_of(run, deleted: bool = False) -> list[Path]:
    """Files with names that pools give, and that the manifest does not name.

    Arguments
    ---------
    run : RunFolder
        The run.
    deleted : bool
        Whether to give those that the manifest took back as well.

    Returns
    -------
    list of Path
    """
    if not run.folder.is_dir():
        return []
    contents = run.read()
    named = {record["file"] for record in contents.candidates.values()}
    if contents.base is not None:
        named.add(contents.base["file"])
    found = [
        path
        for path in sorted(run.folder.iterdir())
        if OWN_FILE.fullmatch(path.name) and path.name not in named
    ]
    if deleted:
        return found
    return [
        path for path in found if not _was_left(run, path, contents.removed)
    ]


def _was_left(run, path, removed):
    """Whether a kill came between the line that takes a file back and that.

    One that came there after the last line was put back by a person.
    """
    if path.name not in removed or not is_own(path, removed[path.name]):
        return False
    return path.stat().st_ctime_ns <= run.manifest.path.stat().st_mtime_ns


def tell_unnamed(run):
    """Warns of candidates that a run has lost from its manifest.

    Who reads a pool changes nothing in it, and merges what the manifest
    names: that there is more is said.

    Arguments
    ---------
    run : RunFolder
        The run; its manifest may be missing.
    """
    if words := what_is_unnamed(run):
        logger.warning(words)


def what_is_unnamed(run) -> str:
    """Says which candidates a run has lost from its manifest.

    Arguments
    ---------
    run : RunFolder
        The run; its manifest may be missing.

    Returns
    -------
    str
        Empty where there are none.
    """
    unnamed = [
        path.name
        for path in strays_of(run)
        if (own_record(path, run.run) or {}).get("event") == "candidate"
    ]
    if not unnamed:
        return ""
    return (
        f"{run.folder}: {len(unnamed)} candidates are left out, since no "
        f"line of {run.manifest.path} names them: "
        f"{', '.join(unnamed[:5])}{', …' * (len(unnamed) > 5)}. Was it "
        "damaged, or is a training just storing them? Their training recovers "
        f"them when it is started again by a Brain with run='{run.run}', or "
        "collects another there; or give the files themselves."
    )


def is_own(path: Path, code: str) -> bool:
    """Whether a file is what a pool wrote, and the manifest has on record.

    Only such a file is ever deleted: a line of a manifest may name another
    file, and someone may have put another under this name.

    Arguments
    ---------
    path : Path
        The file.
    code : str
        The digest on record.

    Returns
    -------
    bool
        False for links and folders as well.
    """
    if OWN_FILE.fullmatch(path.name) is None:
        return False
    return _digest_in_header(path) == code


def delete(path: Path, code: str) -> bool:
    """Deletes a file that a pool wrote, if it is as it was written.

    Its metadata may have been handed on to other tensors, as to those of a
    model that someone trained further and saved in its place.

    Arguments
    ---------
    path : Path
        The file. It need not be there.
    code : str
        The digest on record.

    Returns
    -------
    bool
        False where something else is there, which stays.
    """
    if not os.path.lexists(path):
        return True
    if not is_own(path, code):
        return False
    try:
        with open_weights(path) as weights:
            verify(weights, code)
    except (ValueError, OSError):
        return False
    path.unlink()
    return True


def put_aside(path: Path, why: str):
    """Moves a file where nothing deletes it, and never over another.

    Arguments
    ---------
    path : Path
        The file.
    why : str
        For the warning.
    """
    folder = path.parent / QUARANTINE
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        logger.warning(
            f"{path}: stays where it is, and is not used: {why}. It was to be "
            f"moved to {folder}, which is a file, or a link that is not "
            "followed."
        )
        return
    folder.mkdir(exist_ok=True)
    names = (f"{path.stem}-{each}.safetensors" for each in itertools.count(2))
    for name in itertools.chain([path.name], names):
        target = folder / name
        if not os.path.lexists(target):
            break
    os.rename(path, target)
    sync_folder(folder)
    sync_folder(path.parent)
    logger.warning(f"{path}: moved to {target}: {why}. It will not be deleted.")


def own_record(path: Path, run: str) -> Optional[dict]:
    """The line of a manifest that a file of a pool carries in itself.

    Arguments
    ---------
    path : Path
        The file.
    run : str
        Name of the run that it lies in.

    Returns
    -------
    dict or None
        None where it carries none, or one of another run or file.
    """
    try:
        if path.name == BASE_FILE:
            code = digest_text(_metadata(path).get("digest"), str(path))
            return {"event": "base", "file": BASE_FILE, "digest": code}
        record = candidate_in(path)
    except RecordError:
        return None
    if record.pop("run", None) != run or record["file"] != path.name:
        return None
    return {**record, "event": "candidate"}


def candidate_in(path: Path) -> dict:
    """The record that the file of a candidate carries, whatever run it is of.

    Arguments
    ---------
    path : Path
        The file.

    Returns
    -------
    dict
        With the name of its run.

    Raises
    ------
    RecordError
        Where it carries none, or not as it was written.
    """
    where = f"{path}, metadata '{METADATA}'"
    record = parse_json(_metadata(path).get(METADATA, ""), where)
    return candidate_record(without_check(record, where), where)


def _why_not(run, path, record):
    """Why a file is no candidate of the run; empty where it is one."""
    if record is None:
        return "it carries no record of this run, or one that was changed"
    contents = run.read()
    if record["event"] == "base" and contents.base is not None:
        return "the manifest has another base"
    if record["event"] == "candidate" and record["name"] in contents.names:
        return f"the manifest had another '{record['name']}'"
    try:
        with open_weights(path) as weights:
            verify(weights, record["digest"])
    except (ValueError, OSError) as error:
        return str(error).rstrip(".")
    return ""


def _digest_in_header(path):
    """The digest that a file of a pool says it has."""
    metadata = _metadata(path)
    if path.name == BASE_FILE:
        return metadata.get("digest")
    try:
        record = parse_json(metadata.get(METADATA, ""), str(path))
    except RecordError:
        return None
    return record.get("digest") if isinstance(record, dict) else None


def _metadata(path):
    """The metadata of a weights file; empty where it is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}
        with open_weights(path) as weights:
            return weights.metadata
    except (ValueError, OSError):
        return {}
