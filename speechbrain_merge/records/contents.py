"""Whether files still have the content that they had.

What was made from files is stale when one of them changes, though its path is
the same. So a record keeps the SHA-256 of each::

    {"data/csv/digits_train.csv": "9f86d08…", …}

A file that is gone does not count as changed: data may be put away when the
work is done.

Example
-------
>>> path = getfixture("tmp_path") / "train.csv"
>>> _ = path.write_text("ID,wrd\\n1,one\\n")
>>> known = contents_of([path, "gone.csv"])
>>> changed_files(known)
[]
>>> _ = path.write_text("ID,wrd\\n1,two\\n")
>>> changed_files(known) == [str(path)]
True

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

from speechbrain_merge.records.fingerprint import file_fingerprint


def contents_of(paths: Iterable) -> dict[str, str]:
    """The content of files.

    Arguments
    ---------
    paths : iterable of str or Path
        Those that are no files are left out.

    Returns
    -------
    dict
        Path to SHA-256 in hexadecimal, in the order of the paths.
    """
    return {
        str(path): file_fingerprint(path)
        for path in dict.fromkeys(paths)
        if os.path.isfile(path)
    }


def changed_files(known: Mapping) -> list[str]:
    """The files that have another content than they had.

    Arguments
    ---------
    known : dict
        Path to SHA-256, as `contents_of` gave it.

    Returns
    -------
    list of str
        Their paths. Those that are gone are not among them.
    """
    now = contents_of(known)
    return [path for path, content in now.items() if content != known[path]]


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
