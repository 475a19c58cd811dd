"""Files that are written whole, or not at all.

A file grows under a name of its own beside its target, is synced to the disk,
and then takes the target's place in one step. After a kill at any instant the
target is what it was before, or the new file whole. The temporary name says
who wrote it (``.<name>.<host>-<random>.partial``), and the writer holds a lock
on it, which the operating system releases when the writer ends, however it
ends. So what a killed process left can be told from what a living one is just
writing: `remove_stale` removes the first and leaves the second.

Example
-------
>>> path = getfixture("tmp_path") / "result.json"
>>> write_whole(path, '{"WER": 9.5}\\n')
>>> path.read_text()
'{"WER": 9.5}\\n'
>>> remains = temporary_beside(path)
>>> remains.write_text("a killed process wrote this")
27
>>> remove_stale(path.parent) == [remains]
True

Authors
 * The speechbrain_merge authors 2026
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, Union

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

TEMPORARY_SUFFIX = ".partial"
"""Ends every temporary name. Nothing here opens such a file."""

_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-[0-9a-f]{12}\.partial", re.DOTALL
)

_LONGEST = 200
"""Bytes of a name that is kept in a temporary one: 255 are allowed."""

FORGOTTEN_AFTER = 7 * 24 * 3600
"""Seconds after which remains that another host left are taken for stale."""

_LOCKS_UNSUPPORTED = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EBADF,
)


def write_whole(path, content: Union[str, bytes]):
    """Writes a file so that no one ever sees a part of it.

    What killed processes left of the same file is removed.

    Arguments
    ---------
    path : str or Path
        The file. One that is there is replaced. Its folder has to exist.
    content : str or bytes
        What the file shall hold. Text is written as UTF-8.

    Example
    -------
    >>> path = getfixture("tmp_path") / "note"
    >>> write_whole(path, b"first")
    >>> write_whole(path, "second")
    >>> [each.name for each in path.parent.iterdir()], path.read_text()
    (['note'], 'second')
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with _taking_the_place_of(Path(path)) as descriptor:
        write_all(descriptor, data)


def copy_whole(source, path):
    """Copies a file so that no one ever sees a part of the copy.

    Arguments
    ---------
    source : str or Path
        The file to copy, of any size.
    path : str or Path
        The copy, as for ``write_whole``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_whole(folder / "note", "first")
    >>> copy_whole(folder / "note", folder / "copy")
    >>> (folder / "copy").read_text()
    'first'
    """
    with open(source, "rb") as file:
        with _taking_the_place_of(Path(path)) as descriptor:
            with os.fdopen(descriptor, "wb", closefd=False) as copy:
                shutil.copyfileobj(file, copy)


@contextmanager
def _taking_the_place_of(path):
    """A new file, open for writing, which replaces a file when it is whole."""
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder, where a file is to be written. Nothing was "
            "changed. Move it away."
        )
    remove_stale(path.parent, path.name)
    temporary, descriptor = create_temporary(path)
    try:
        yield descriptor
        os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        # Already moved where os.replace was interrupted after its work
        temporary.unlink(missing_ok=True)
        name_file(error, path)
        raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def name_file(error: BaseException, path):
    """Puts the file into an error of the system that names none.

    A full disk is told by a number alone, where the file is known by one. An
    error of a sentence (of this package) names what it is about itself.

    Arguments
    ---------
    error : BaseException
        Any error.
    path : str or Path
        The file that was being written.
    """
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and error.filename is None
    ):
        error.filename = str(path)


def check_writable(path):
    """Raises, before there is work to lose, where a file cannot be written.

    Arguments
    ---------
    path : str or Path
        The file to be. Its folder is made.

    Raises
    ------
    OSError
        Naming the file, and what to do.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = create_temporary(path)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"{error.strerror}: nothing can be written there, so nothing was "
            "begun. Name another file or folder",
            str(path),
        ) from error
    temporary.unlink()
    os.close(descriptor)


def write_all(descriptor: int, data):
    """Writes all of some bytes, where one call may write only a part.

    Arguments
    ---------
    descriptor : int
        An open file.
    data : bytes-like
        What to write at the present place.
    """
    data = memoryview(data)
    while data:
        data = data[os.write(descriptor, data) :]


def open_to_append(path) -> int:
    """Opens a file that is added to, and makes it where it is missing.

    Arguments
    ---------
    path : str or Path
        The file. Its folder has to exist.

    Returns
    -------
    int
        A descriptor, open for reading too. To be closed.

    Raises
    ------
    FileExistsError
        Where a link is there. It may lead to anyone's file.
    """
    how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, how, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FileExistsError(
            f"{path} is a link, and what is added to it would be written "
            "elsewhere. Put the file itself there."
        ) from None


def temporary_beside(path) -> Path:
    """A name beside a target that no one else uses.

    Arguments
    ---------
    path : str or Path
        The target.

    Returns
    -------
    Path
        Nothing is there yet.
    """
    path = Path(path)
    return path.with_name(
        f".{_short(path.name)}.{_host()}-{uuid.uuid4().hex[:12]}"
        f"{TEMPORARY_SUFFIX}"
    )


def create_temporary(path) -> tuple:
    """A new file beside a target, locked as long as it is open.

    Arguments
    ---------
    path : str or Path
        The target.

    Returns
    -------
    temporary : Path
        The file. To be moved to the target, or removed.
    descriptor : int
        The file, open for reading and writing. To be closed.
    """
    while True:
        temporary = temporary_beside(path)
        descriptor = os.open(
            temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666
        )
        try:
            try_lock(descriptor)
            # Between the two calls a cleaner may have taken it for remains
            if _is_at(temporary, descriptor):
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def try_lock(descriptor: int, wait: bool = False) -> Optional[bool]:
    """Locks an open file or folder, unless someone else has.

    The lock belongs to the open file, not to the process: other descriptors of
    the same file may be opened and closed without losing it.

    Arguments
    ---------
    descriptor : int
        An open file or folder. Closing it, or the end of the process, gives
        the lock back.
    wait : bool
        Waits until the other has given it back.

    Returns
    -------
    bool or None
        False where another holds it; None where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _LOCKS_UNSUPPORTED:
            return None
        raise
    return True


def remove_stale(folder, name: Optional[str] = None) -> list[Path]:
    """Removes what killed processes left of files that they were writing.

    Only files with a temporary name of this package are looked at, and of
    those only what no living process holds. What another host left is removed
    after a week, since not every shared file system tells of locks elsewhere.

    Arguments
    ---------
    folder : str or Path
        Where to look. Folders inside it are left alone.
    name : str, optional
        Only remains of this target.

    Returns
    -------
    list of Path
        What was removed.
    """
    removed = []
    for path in temporaries(folder, name):
        if _is_regular(path) and _is_abandoned(path):
            path.unlink(missing_ok=True)
            logger.info(f"{path}: removed, a killed process left it")
            removed.append(path)
    return removed


def temporaries(folder, name: Optional[str] = None) -> list[Path]:
    """Entries of a folder that have a temporary name, finished or not.

    Arguments
    ---------
    folder : str or Path
        Where to look.
    name : str, optional
        Only those of this target.

    Returns
    -------
    list of Path
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and (name is None or match["name"] == _short(name)):
                found.append(Path(entry.path))
    return sorted(found)


def sync_folder(folder):
    """Has the names in a folder on the disk, as `os.fsync` has the content.

    Arguments
    ---------
    folder : str or Path
        The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def is_of_this_host(temporary: Path) -> bool:
    """Whether a temporary name was given on this host.

    Arguments
    ---------
    temporary : Path
        A name as `temporary_beside` gives it.

    Returns
    -------
    bool
    """
    match = _TEMPORARY.fullmatch(temporary.name)
    return match is not None and match["host"] == _host()


def _is_regular(path):
    """Whether a path names a file, and no one has moved it meanwhile."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_abandoned(path):
    """Whether no living process holds a file with a temporary name."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # gone, or not ours to touch
    try:
        if not try_lock(descriptor) or not _is_at(path, descriptor):
            return False
        age = time.time() - os.fstat(descriptor).st_mtime
        return is_of_this_host(path) or age > FORGOTTEN_AFTER
    finally:
        os.close(descriptor)


def _is_at(path, descriptor):
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _short(name):
    """A name, or what stands for one that is too long to be added to."""
    data = os.fsencode(name)
    if len(data) <= _LONGEST:
        return name
    # No two names share it, so that nobody's remains are taken for another's
    code = hashlib.sha256(data).hexdigest()[:16]
    begun = data[: _LONGEST - 17].decode(errors="ignore")
    return f"{begun}~{code}"


def _host():
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
