"""Which folders are ours: each lists what was written into it.

The mark of a folder (``.speechbrain_merge.json``) holds the size and the
SHA-256 of each of its files. So a folder that this package wrote, and that no
one has touched since, can be told from everything else.

Example
-------
>>> folder = getfixture("tmp_path")
>>> _ = (folder / "weights").write_text("1")
>>> write_mark(folder, describe_files(folder))
>>> _ = (folder / "notes.txt").write_text("mine")
>>> foreign_files(folder)
['notes.txt']

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import (
    digest_text,
    fields,
    mapped,
    text,
    whole,
)
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json

logger = get_logger(__name__)

MARK = ".speechbrain_merge.json"
"""The file in a folder that says that it is ours, and what belongs to it."""

_BLOCK = 1 << 20
_mark = fields(
    {"written_by": text(100)},
    {
        "files": mapped(
            fields({"size": whole(0), "sha256": digest_text}), limit=100_000
        )
    },
)


def foreign_files(folder) -> list[str]:
    """The files in a folder that `whole_folder` did not write there.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    list of str
        Names relative to the folder, of files that are not listed in its mark
        or have another content; all of them where there is no mark that can
        be read. Empty for a folder that is ours, or empty.
    """
    folder = Path(folder)
    known = read_mark(folder)
    ours = {MARK} if known is not None else set()
    return sorted(
        name
        for name, path in walk_files(folder)
        if name not in ours and (known or {}).get(name) != _describe(path)
    )


def describe_files(folder) -> dict:
    """Size and SHA-256 of each file in a folder and in the folders of it.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    dict
        Relative name to ``{"size": …, "sha256": …}``, without the mark.
    """
    return {
        name: _describe(path)
        for name, path in walk_files(Path(folder))
        if name != MARK
    }


def write_mark(folder, files: Optional[dict]):
    """Writes the mark of a folder.

    Arguments
    ---------
    folder : str or Path
        A folder.
    files : dict or None
        What `describe_files` gave; None while the folder is being written.
    """
    content: dict = {"written_by": "speechbrain_merge"}
    if files is not None:
        content["files"] = files
    write_whole(Path(folder) / MARK, json.dumps(content, indent=2) + "\n")


def read_mark(folder) -> Optional[dict]:
    """The files that the mark of a finished folder lists.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    dict or None
        As `describe_files`; None where there is no mark that can be read, or
        that of a folder that was never finished.
    """
    return (_mark_of(folder) or {}).get("files")


def is_unfinished(folder) -> bool:
    """Whether the mark says that the folder was never finished.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    bool
    """
    mark = _mark_of(folder)
    return mark is not None and "files" not in mark


def _mark_of(folder):
    path = Path(folder) / MARK
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return _mark(read_json(path), str(path))
    except RecordError as error:
        logger.warning(f"{error}. The folder is not taken for ours.")
        return None


def _describe(path):
    if path.is_symlink() or not path.is_file():
        return {"link": True}
    result, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            result.update(block)
            size += len(block)
    return {"size": size, "sha256": result.hexdigest()}


def stamps_of(folder) -> dict:
    """Number, size and time of each file: they change when one is written.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    dict
        Relative name to number, size and time of change of each file.
    """
    found = {}
    for name, path in walk_files(folder):
        status = path.lstat()
        found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def walk_files(folder) -> Iterator[tuple]:
    """All files in a folder and in the folders of it, links among them.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Yields
    ------
    name : str
        Relative to the folder.
    path : Path
    """
    for above, folders, names in os.walk(folder):
        links = [each for each in folders if os.path.islink(Path(above, each))]
        for name in [*links, *names]:
            path = Path(above, name)
            yield path.relative_to(folder).as_posix(), path
