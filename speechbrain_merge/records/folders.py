"""Folders that are written whole, and replaced in one step.

A folder is filled under a name of its own beside its target. When it is
complete it carries a mark (``.speechbrain_merge.json``) with the size and the
SHA-256 of each of its files, is synced to the disk, and takes the target's
place. On Linux the two change places in one step, so that a reader, or a kill,
finds the old folder or the new one, never none and never a mixture.

A folder is only replaced if it is ours and untouched: every file in it is one
that its mark lists, with the same content. Anything else, such as a folder of
the same name that a person made, or one of ours that has a person's notes in
it, is refused, and the message names what is not ours.

Example
-------
>>> target = getfixture("tmp_path") / "model"
>>> for text in ("first", "second"):
...     with whole_folder(target) as folder:
...         _ = (folder / "weights").write_text(text)
>>> (target / "weights").read_text()
'second'
>>> _ = (target / "notes.txt").write_text("mine")
>>> with whole_folder(target) as folder:
...     pass
Traceback (most recent call last):
...
FileExistsError: .../model holds what was not written there by this package: 'notes.txt'. Nothing was changed. Move it away, or choose another folder.

Authors
 * The speechbrain_merge authors 2026
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.files import (
    is_of_this_host,
    name_file,
    remove_stale,
    sync_folder,
    temporaries,
    temporary_beside,
    try_lock,
)
from speechbrain_merge.records.ownership import (
    MARK,
    describe_files,
    empty_folders,
    foreign_files,
    is_unfinished,
    read_mark,
    stamps_of,
    walk_files,
    write_mark,
)
from speechbrain_merge.records.paths import real_path

logger = get_logger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def whole_folder(target):
    """Gives a folder to fill, which takes its place when it is complete.

    Arguments
    ---------
    target : str or Path
        The folder to be. One that is there is replaced at the end if it is
        empty or ours; its parents are made.

    Yields
    ------
    folder : Path
        Beside the target, empty. Files in it are to be closed at the end.

    Raises
    ------
    FileExistsError
        Where something that is not ours is in the target. Nothing was changed
        then.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(target.parent):
        _clear(target)
        check_replaceable(target)
    building, held = _new_folder(target)
    try:
        write_mark(building, None)
        yield building
        files = describe_files(building)
        # The mark says that they are whole, so they are on the disk first
        _sync_tree(building)
        write_mark(building, files)
        with _alone_in(target.parent):
            _put_in_place(building, target)
    except BaseException as error:
        # Whatever is in it was put there by this call
        shutil.rmtree(building, ignore_errors=True)
        name_file(error, target)  # a full disk names none
        raise
    finally:
        os.close(held)


def check_replaceable(target):
    """Refuses to replace what is in the place of a folder, and is not ours.

    Arguments
    ---------
    target : str or Path
        The folder to be. Nothing, or an empty folder, may be there.

    Raises
    ------
    FileExistsError
        With what is there that is not ours.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> check_replaceable(folder / "new")
    >>> _ = (folder / "notes.txt").write_text("mine")
    >>> check_replaceable(folder)
    Traceback (most recent call last):
    ...
    FileExistsError: ... holds what was not written there by this package: 'notes.txt'. Nothing was changed. Move it away, or choose another folder.
    """
    target = Path(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(
            f"{target} is a file or a link, not a folder. Nothing was changed. "
            "Choose another folder."
        )
    foreign = []
    if target.is_dir():
        foreign = [*foreign_files(target), *empty_folders(target)]
    if foreign:
        listed = ", ".join(map(repr, foreign[:5]))
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise FileExistsError(
            f"{target} holds what was not written there by this package: "
            f"{listed}{more}. Nothing was changed. Move it away, or choose "
            "another folder."
        )


def refuse_own_source(target, sources: Iterable):
    """Refuses to replace a folder by what is made of it.

    Arguments
    ---------
    target : str or Path
        The folder to be.
    sources : list of str or Path
        What it is made of. Words that are no path of this machine are passed
        over.

    Raises
    ------
    FileExistsError
        Where one of them is the folder, or in it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> refuse_own_source(folder / "new", [folder, "a state dict"])
    >>> refuse_own_source(folder, [folder])
    Traceback (most recent call last):
    ...
    FileExistsError: ... is to be replaced by what is made of .... Nothing was changed. Choose another folder.
    """
    place = real_path(target)
    for source in sources:
        if os.path.lexists(source) and real_path(source).is_relative_to(place):
            raise FileExistsError(
                f"{target} is to be replaced by what is made of {source}. "
                "Nothing was changed. Choose another folder."
            )


def refuse_other_kind(target, name: str, what: str):
    """Refuses to replace a folder of ours that is of another kind.

    Pictures would take the place of a model.

    Arguments
    ---------
    target : str or Path
        The folder to be.
    name : str
        A file that each folder of the kind has.
    what : str
        What the kind is called.

    Raises
    ------
    FileExistsError
        Where the folder is ours, has something in it, and not that file.
    """
    there = read_mark(target)
    if there and name not in there:
        raise FileExistsError(
            f"{target} holds '{min(there)}', which {what} did not write. "
            "Nothing was changed. Choose another folder."
        )


@contextmanager
def working_folder(target):
    """Gives a folder beside a target for files that are not to stay.

    It is removed at the end. What a killed process left of one is removed
    when the next one for the same target is made.

    Arguments
    ---------
    target : str or Path
        What the files are needed for. Its parents are made.

    Yields
    ------
    folder : Path
        Empty. Files in it are to be closed at the end.

    Example
    -------
    >>> target = getfixture("tmp_path") / "final.safetensors"
    >>> with working_folder(target) as folder:
    ...     _ = (folder / "half").write_text("1")
    >>> list(target.parent.iterdir())
    []
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(target.parent):
        remove_stale_folders(target.parent, target.name)
    folder, held = _new_folder(target)
    try:
        write_mark(folder, None)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def clear_remains(target):
    """Takes away what killed processes left of a file or folder.

    A folder that was put aside by a kill in the midst of an exchange is put
    back.

    Arguments
    ---------
    target : str or Path
        The file or folder, which need not be there.
    """
    target = Path(target)
    if not target.parent.is_dir():
        return
    with _alone_in(target.parent):
        _clear(target)


def _clear(target):
    """The same, by whoever is alone in the folder above."""
    recover_folder(target)
    remove_stale_folders(target.parent, target.name)
    remove_stale(target.parent, target.name)


def remove_stale_folders(parent, name: Optional[str] = None) -> list[Path]:
    """Removes unfinished folders that killed processes left.

    Arguments
    ---------
    parent : str or Path
        Where to look.
    name : str, optional
        Only remains of this target.

    Returns
    -------
    list of Path
        What was removed. A folder with something in it that is not ours stays.
    """
    removed = []
    for path in temporaries(parent, name):
        if path.is_symlink() or not path.is_dir() or not is_of_this_host(path):
            continue
        held = _hold(path)
        if held is None:
            continue
        try:
            if not is_unfinished(path) and _someone_elses(path):
                logger.warning(
                    f"{path}: left by a killed process, and not removed, since "
                    "it holds files that this package did not write"
                )
                continue
            _remove(path)
            removed.append(path)
        finally:
            os.close(held)
    return removed


def recover_folder(target) -> bool:
    """Puts a folder back that a killed process had put aside.

    Only needed on systems that cannot exchange two folders in one step.

    Arguments
    ---------
    target : str or Path
        The folder that should be there.

    Returns
    -------
    bool
        Whether it was put back.
    """
    target = Path(target)
    if target.exists() or target.is_symlink() or not target.parent.is_dir():
        return False
    for path in temporaries(target.parent, target.name):
        if path.is_symlink() or not path.is_dir():
            continue
        known = read_mark(path)
        if known is None or known != describe_files(path):
            continue
        held = _hold(path)
        if held is None:
            continue
        try:
            os.rename(path, target)
        finally:
            os.close(held)
        sync_folder(target.parent)
        logger.warning(f"{target}: recovered after a kill, from {path.name}")
        return True
    return False


def _someone_elses(folder):
    """What is foreign in remains, but for a mark that was being written."""
    marks = {path.name for path in temporaries(folder, MARK)}
    return set(foreign_files(folder)) - marks


def _put_in_place(building, target):
    """The finished folder under its name; the one before it removed."""
    try:
        # Onto nothing, or an empty folder
        os.rename(building, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        sync_folder(target.parent)
        return
    check_replaceable(target)
    before = stamps_of(target)
    replaced = _change_places(building, target)
    sync_folder(target.parent)
    if stamps_of(replaced) != before:
        # Someone wrote there between the check and the exchange
        _change_places(replaced, target)
        check_replaceable(target)
        raise OSError(f"{target} was being written by someone else")
    _remove(replaced)


def _change_places(one, other) -> Path:
    """Puts one folder in the place of another; gives where that is now."""
    if _exchange(one, other):
        return one
    # For an instant there is none: see `recover_folder`
    aside = temporary_beside(other)
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside, other)
        raise
    return aside


def _exchange(one, other) -> bool:
    """Whether two folders could change places in one step, and did."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    done = function(
        _AT_FDCWD,
        os.fsencode(one),
        _AT_FDCWD,
        os.fsencode(other),
        _RENAME_EXCHANGE,
    )
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@contextmanager
def _alone_in(folder):
    """One process of this package at a time changes entries of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _new_folder(target):
    """An empty folder beside a target, and a descriptor that holds it."""
    while True:
        folder = temporary_beside(target)
        folder.mkdir()
        try:
            held = _hold(folder)
        except FileNotFoundError:
            continue  # a cleaner took it for remains
        if held is not None:
            return folder, held


def _hold(folder):
    """A locked descriptor of a folder, or None where someone holds it."""
    descriptor = os.open(
        folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    if try_lock(descriptor) is False:
        os.close(descriptor)
        return None
    return descriptor


def _sync_tree(folder):
    for above, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(
                os.path.join(above, name), os.O_RDONLY | os.O_CLOEXEC
            )
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(above)


def _remove(folder):
    """Removes a folder of ours, its mark last.

    An unfinished one goes with all that is in it. Of a finished one only what
    its mark lists goes: what a person adds meanwhile stays.
    """
    known = read_mark(folder)
    for name, path in list(walk_files(folder)):
        if name != MARK and (known is None or name in known):
            path.unlink()
    try:
        for above, folders, _ in os.walk(folder, topdown=False):
            for name in folders:
                os.rmdir(os.path.join(above, name))
        # Without its mark, what is left of it would be no one's
        sync_folder(folder)
        if os.listdir(folder) in ([], [MARK]):
            (folder / MARK).unlink(missing_ok=True)
        os.rmdir(folder)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        logger.warning(
            f"{folder} was replaced, and not removed, because someone has "
            "written into it meanwhile"
        )


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files of a folder.

    Arguments
    ---------
    path : Path
        A file or a folder.

    Returns
    -------
    size : int
        A file that is linked twice counts once.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a").write_bytes(b"123")
    >>> os.link(folder / "a", folder / "b")
    >>> size_on_disk(folder), size_on_disk(folder / "b")
    (3, 3)
    """
    if path.is_file():
        return path.stat().st_size
    seen = {}
    for file in path.rglob("*"):
        if file.is_file():
            found = file.stat()
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())
