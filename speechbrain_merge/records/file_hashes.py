"""Hashes of files and folders.

Authors
 * The speechbrain_merge authors 2026
"""

import glob
import hashlib
import io
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

_BLOCK = 1 << 20
_READ_OF_A_FOLDER = 256 << 20
_SETTLED = 2 * 10**9  # ns: file systems tell times no finer than two seconds
_known: dict[tuple, str] = {}
"""State of a file that was read, and its SHA-256."""


def file_fingerprint(path) -> str:
    """The sha256 of a file's content.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits, as `sha256sum` prints them.
    """
    with open(path, "rb", buffering=0) as file:
        return stream_fingerprint(file)


def stream_fingerprint(file: io.RawIOBase, before: bytes = b"") -> str:
    """The sha256 of an open file, from where it stands to its end.

    Arguments
    ---------
    file : io.RawIOBase
        Opened with ``buffering=0``. Afterwards it stands at its end.
    before : bytes
        What is hashed before it.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> path = getfixture("tmp_path") / "words.txt"
    >>> _ = path.write_bytes(b"one two")
    >>> with open(path, "rb", buffering=0) as file:
    ...     before = file.read(3)
    ...     stream_fingerprint(file, before) == file_fingerprint(path)
    True
    """
    result = hashlib.sha256(before)
    block = memoryview(bytearray(_BLOCK))
    while count := file.readinto(block):
        result.update(block[:count])
    return result.hexdigest()


def content_of(path) -> str:
    """The SHA-256 of a file, which is read once while it stays as it is.

    A file is the same while its inode, size and times are, and is read again
    by a new process. One that was written just now is not remembered: it may
    be written again within the grain of the clock.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    state = file_state(path)
    if state is not None and state in _known:
        return _known[state]
    started = time.time_ns()
    found = file_fingerprint(path)
    if state is None or state != file_state(path):
        return found
    if started - max(state[3:]) > _SETTLED:
        _known[state] = found
    return found


def content_or_name(path) -> str:
    """The SHA-256 of a file; of one that cannot be read, its name.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str

    Example
    -------
    >>> content_or_name("gone/train.py")
    'not to be read: train.py'
    """
    try:
        return content_of(path)
    except OSError:  # not for us to read, or gone
        return f"not to be read: {os.path.basename(path)}"


def file_state(path) -> Optional[tuple]:
    """Inode, size and time of a file: they change when it is written.

    Arguments
    ---------
    path : str, Path or None
        The file.

    Returns
    -------
    tuple or None
        None where there is no such file.
    """
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


def named_path(text: str) -> str:
    """The path that a text stands for.

    Arguments
    ---------
    text : str
        With ``~``, variables of the environment or ``file://``, or without.

    Returns
    -------
    str

    Example
    -------
    >>> named_path("file://lexicon.txt"), named_path("~/a") != "~/a"
    ('lexicon.txt', True)
    """
    if text.startswith("file://"):
        text = text[len("file://") :]
    if "$" in text:
        text = os.path.expandvars(text)
    return os.path.expanduser(text) if text.startswith("~") else text


def matching_files(text: str) -> list:
    """The files that a pattern stands for, as ``folder_content`` tells them.

    Arguments
    ---------
    text : str
        A path with ``*``, ``?`` or ``[`` in it.

    Returns
    -------
    list of str
        In order; empty for any other text.
    """
    if os.sep not in text or not any(sign in text for sign in "*?["):
        return []
    files = sorted(filter(os.path.isfile, glob.iglob(text)))
    return _rows([(os.path.basename(file), file) for file in files])


def _rows(files):
    """A line for each of some files, given by name and path."""
    rows, left = [], _READ_OF_A_FOLDER
    for name, path in files:
        try:
            status = os.stat(path)
            left -= status.st_size
            content = (
                content_of(path)
                if left >= 0
                else f"{status.st_size} bytes of {status.st_mtime_ns}"
            )
        except OSError:  # not for us to read, or removed just now
            content = "not to be read"
        rows.append(f"{name}: {content}")
    return rows


def is_folder(value: Any) -> bool:
    """Whether a value names a folder that is there.

    Arguments
    ---------
    value : object
        A text, a Path or anything else.

    Returns
    -------
    bool
    """
    if not isinstance(value, (str, Path)):
        return False
    text = named_path(str(value))
    return bool(text) and "\0" not in text and os.path.isdir(text)


def folder_content(path, leave_out: Iterable[str] = ()) -> str:
    """A text for the files of a folder and of those in it.

    Files count by their content, but for those that would make more than
    256 MiB: these count by size and time of change. Hidden files and compiled
    Python do not count.

    Arguments
    ---------
    path : str or Path
        The folder.
    leave_out : list of str
        Folders whose files do not count, nor do the files of a folder in them.

    Returns
    -------
    str

    Example
    -------
    >>> folder = getfixture("tmp_path") / "lexicon"
    >>> folder.mkdir()
    >>> before = folder_content(folder)
    >>> _ = (folder / "words.txt").write_text("one two")
    >>> folder_content(folder) == before
    False
    """
    whole = os.path.abspath(path)
    skipped = {os.path.abspath(each) for each in leave_out}
    found, seen = [], set()
    for folder, folders, files in os.walk(whole, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # links that go round
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__pycache__"))
            and os.path.join(folder, name) not in skipped
        )
        for name in sorted(files):
            file = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(file):
                found.append((os.path.relpath(file, whole), file))
    return "\n".join(_rows(found))
