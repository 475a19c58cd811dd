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
from typing import Any

from speechbrain_merge.records.file_hashes import content_of, named_path
from speechbrain_merge.records.fingerprint import plain


def by_content(value: Any) -> Any:
    """A row of a dataset with the content of files in place of their paths.

    So audio that was replaced under its path is other audio, and a folder of
    data that was moved or copied holds the same.

    Arguments
    ---------
    value : object
        Plain data, perhaps with tensors and arrays in it.

    Returns
    -------
    object
        Plain data. The path of a file that is not there stays.

    Example
    -------
    >>> path = getfixture("tmp_path") / "1.wav"
    >>> _ = path.write_bytes(b"abc")
    >>> by_content({"wav": str(path), "wrd": "one"})
    {'wav': {'file': 'ba7816bf...f20015ad'}, 'wrd': 'one'}
    """
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if _is_file(text):
            return {"file": content_of(named_path(text))}
        # as Kaldi names a part of an archive
        archive, _, place = text.rpartition(":")
        if place.isdigit() and _is_file(archive):
            return {"file": content_of(named_path(archive)), "at": place}
        return text
    if isinstance(value, Mapping):
        return {key: by_content(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [by_content(entry) for entry in value]
    return plain(value)


def _is_file(text):
    """Whether a text is the path of a file, rather than what someone said."""
    if len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    named = os.sep in text or os.path.splitext(text)[1] != ""
    return named and os.path.isfile(named_path(text))


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
        str(path): content_of(path)
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
