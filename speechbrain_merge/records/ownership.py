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
>>> check_unchanged(folder)
>>> _ = (folder / "weights").write_text("2")
>>> check_unchanged(folder)
Traceback (most recent call last):
...
speechbrain_merge.records.ownership.ChangedFolder: .../weights has the SHA-256 d4..., and 6b... is on record in .speechbrain_merge.json: ...

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
from collections.abc import Callable, Collection, Iterator
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
from speechbrain_merge.records.file_hashes import file_state, stream_fingerprint
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.paths import inside
from speechbrain_merge.records.written_check import read_written, with_check

logger = get_logger(__name__)

MARK = ".speechbrain_merge.json"
"""The file in a folder that says that it is ours, and what belongs to it."""

_described: dict = {}
"""Files as they were when they were last hashed, with size and SHA-256."""

_mark = fields(
    {"written_by": text(100)},
    {
        "files": mapped(
            fields({"size": whole(0), "sha256": digest_text}), limit=100_000
        )
    },
)


class ChangedFolder(ValueError):
    """A folder of ours has other files than those that were written."""


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


def changed_files(
    folder,
    names: Optional[Collection[str]] = None,
    but: Collection[str] = (),
) -> list[str]:
    """What is not as it was written, in a folder that has our mark.

    A copy that was interrupted may leave a mixture of two exports, in which
    each file by itself is whole. Files are read as a stream, and each, as long
    as it is not written to, once in a process.

    Arguments
    ---------
    folder : str or Path
        A folder. Of one without a mark nothing is known.
    names : list of str, optional
        Only these files, relative to the folder.
    but : list of str
        Files that may change.

    Returns
    -------
    list of str
        A sentence for each file. Files that the mark does not list are a
        person's own, and are not looked at.
    """
    folder, faults = Path(folder), []
    for name, known in sorted((read_mark(folder) or {}).items()):
        if name in but or (names is not None and name not in names):
            continue
        path = inside(folder, name, str(folder / MARK))
        if not path.is_file():
            faults.append(f"{path} is missing, and is on record in {MARK}")
            continue
        found = _described_once(path)
        if found != known:
            faults.append(
                f"{path} has the SHA-256 {found['sha256']}, and "
                f"{known['sha256']} is on record in {MARK}"
            )
    return faults


def check_unchanged(
    folder,
    names: Optional[Collection[str]] = None,
    but: Collection[str] = (),
):
    """Refuses a folder of ours with files that are not as they were written.

    Arguments
    ---------
    folder, names, but
        As for `changed_files`.

    Raises
    ------
    ChangedFolder
        With the files, the hashes, and what to do.
    """
    faults = changed_files(folder, names, but)
    if faults:
        raise ChangedFolder(what_to_do(faults, folder))


def what_to_do(faults: list[str], folder) -> str:
    """The error for files that changed since the folder was written.

    Arguments
    ---------
    faults : list of str
        What `changed_files` gave.
    folder : str or Path
        The folder.

    Returns
    -------
    str
    """
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return (
        f"{'; '.join(faults[:5])}{more}: {folder} was changed since it was "
        "written, or its copy was interrupted. Copy it again. If you changed "
        f"it yourself, remove {MARK} from it; where its weights are others "
        "now, remove merge.json and README.md as well, which tell what they "
        "were merged from."
    )


def refuse_other(path, is_ours: Callable[[Path], bool], what: str, advice: str):
    """Refuses to replace a file that we did not write.

    Arguments
    ---------
    path : str or Path
        The file to be. Nothing may be there.
    is_ours : callable
        Tells, of what is there, whether we wrote it. Where it raises ValueError
        or OSError, the file is of another kind, or damaged: a person's in any
        case.
    what : str
        What the error says that the other file holds.
    advice : str
        What to do, other than to move it away.

    Raises
    ------
    FileExistsError
        Where anything else is there.

    Example
    -------
    >>> refuse_other("new.json", Path.is_file, "no scores", "choose another")
    """
    if not os.path.lexists(path):
        return
    try:
        ours = is_ours(Path(path))
    except (ValueError, OSError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{path} holds {what}. Nothing was changed. Move it away, or "
            f"{advice}."
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
    text = json.dumps(with_check(content), indent=2)
    write_whole(Path(folder) / MARK, text + "\n")


def note_file(folder, name: str):
    """Takes a file that was written later into the mark of a finished folder.

    Arguments
    ---------
    folder : str or Path
        A folder. Where it has no mark that lists files, nothing is written.
    name : str
        The file, relative to it.
    """
    files = read_mark(folder)
    if files is not None:
        write_mark(folder, {**files, name: _describe(Path(folder) / name)})


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
        return _mark(read_written(path), str(path))
    except RecordError as error:
        logger.warning(f"{error}. The folder is not taken for ours.")
        return None


def _describe(path):
    if path.is_symlink() or not path.is_file():
        return {"link": True}
    with open(path, "rb", buffering=0) as file:
        found = stream_fingerprint(file)
        return {"size": file.tell(), "sha256": found}


def _described_once(path):
    """As `_describe`; a link counts as the file that it leads to."""
    path = path.resolve()
    state = file_state(path)
    if state is None:
        raise FileNotFoundError(f"{path} is gone")
    if state not in _described:
        _described[state] = _describe(path)
    return _described[state]


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


def empty_folders(folder) -> list[str]:
    """Folders in a folder that have nothing in them: someone made them.

    Arguments
    ---------
    folder : str or Path
        A folder.

    Returns
    -------
    list of str
        Names relative to the folder.
    """
    return sorted(
        Path(above).relative_to(folder).as_posix()
        for above, folders, names in os.walk(folder)
        if not folders and not names and Path(above) != Path(folder)
    )


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
