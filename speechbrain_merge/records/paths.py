"""Paths made from names that were read from a file.

A manifest, an index of shards or a header of a weights file may come from
anywhere, and the names in it become paths: to read, to write, to delete. A name
such as ``../../save`` or ``/etc/passwd`` would lead out of the folder it
belongs to. So every stored name passes through here before it becomes a path.

The check looks at the name alone. Links inside the folder are followed, because
the cache of Hugging Face, for one, is made of them.

Example
-------
>>> inside("pool/run", "epoch-0001.safetensors", "manifest.jsonl, line 1")
PosixPath('pool/run/epoch-0001.safetensors')
>>> plain_name("../save", "manifest.jsonl, line 2, key 'file'")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: manifest.jsonl, line 2, key 'file': expected the plain name of a file, without a folder, got '../save'. Names that lead elsewhere are not followed.

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import os
import re
from pathlib import Path, PurePosixPath
from typing import Union

from speechbrain_merge.records.errors import RecordError, shown

LONGEST_NAME = 255
"""Bytes that a file system allows in a name."""

LONGEST_CHOSEN = 200
"""Bytes of a name that a person chooses: endings and marks are added to it."""

_DEEPEST = 32

_MARKS = re.compile(r"[/\\\x00-\x1f\x7f]")


def plain_name(name, where: str) -> str:
    """A stored name, if it can only be that of an entry of its own folder.

    Arguments
    ---------
    name : object
        As it was read.
    where : str
        The file and the entry that it was read from, for the error.

    Returns
    -------
    str
        The name.

    Raises
    ------
    RecordError
        Where it is not a string, is empty, ``.`` or ``..``, is too long, or
        has a slash, a backslash or a control character in it.
    """
    if not _is_plain(name):
        raise RecordError(
            f"{where}: expected the plain name of a file, without a folder, "
            f"got {shown(name)}. Names that lead elsewhere are not followed."
        )
    return name


def check_length(name: str, what: str) -> None:
    """Refuses a name that a person chose, where it is too long for a folder.

    Before the work begins whose results go there, and not after it.

    Arguments
    ---------
    name : str
        The name; where there are folders in it, each of them counts.
    what : str
        What it names, for the error.

    Raises
    ------
    ValueError
        With its length, and what is allowed.

    Example
    -------
    >>> check_length(10 * "seed-", "run")
    >>> check_length(60 * "seed-", "run")
    Traceback (most recent call last):
    ...
    ValueError: run: 'seed-seed-seed-seed-…' is 300 bytes long, and becomes the name of a folder: expected 200 at most
    """
    for part in str(name).split("/"):
        size = len(part.encode("utf-8", "surrogatepass"))
        if size > LONGEST_CHOSEN:
            raise ValueError(
                f"{what}: '{part[:20]}…' is {size} bytes long, and becomes the "
                f"name of a folder: expected {LONGEST_CHOSEN} at most"
            )


def free_beside(path: Path, word: str) -> Path:
    """A name beside a file's, with a word in it, that nothing has.

    Arguments
    ---------
    path : Path
        The file.
    word : str
        E.g. ``before``.

    Returns
    -------
    Path

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.csv"
    >>> free_beside(path, "before").name
    'a.before.csv'
    >>> free_beside(path, "before").touch()
    >>> free_beside(path, "before").name
    'a.before-2.csv'
    """
    numbered = (f"{word}-{each}" for each in itertools.count(2))
    names = (
        path.with_name(f"{path.stem}.{middle}{path.suffix}")
        for middle in itertools.chain([word], numbered)
    )
    return next(name for name in names if not os.path.lexists(name))


def real_path(path: Union[str, Path]) -> Path:
    """Where a path leads by all links; a link to itself leads to itself.

    Arguments
    ---------
    path : str or Path
        Any path.

    Returns
    -------
    Path
        Absolute.

    Example
    -------
    >>> loop = getfixture("tmp_path") / "loop"
    >>> loop.symlink_to(loop)
    >>> real_path(loop) == loop
    True
    """
    return Path(os.path.realpath(path))


def entry_path(path: Union[str, Path]) -> Path:
    """Where an entry of a folder is: a link that it is itself is not followed.

    What is written in the place of a link would be somewhere else than where
    its name says. So it has to be seen that it is one.

    Arguments
    ---------
    path : str or Path
        Any path.

    Returns
    -------
    Path
        Absolute.

    Example
    -------
    >>> link = getfixture("tmp_path").resolve() / "link"
    >>> link.symlink_to("elsewhere")
    >>> entry_path(link) == link
    True
    """
    path = Path(path)
    if path.name in ("", ".."):
        return real_path(path)
    return real_path(path.parent) / path.name


def inside(folder, name, where: str) -> Path:
    """The path of a stored name in its folder.

    Arguments
    ---------
    folder : str or Path
        Where the name belongs.
    name : object
        As it was read. It may have folders in it (``shards/1.safetensors``),
        each a plain name.
    where : str
        The file and the entry that it was read from, for the error.

    Returns
    -------
    Path

    Raises
    ------
    RecordError
        Where the name is absolute, climbs out, or is no name at all.

    Example
    -------
    >>> inside("model", "shards/1.safetensors", "index.json").as_posix()
    'model/shards/1.safetensors'
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not 0 < len(parts) <= _DEEPEST or not all(map(_is_plain, parts)):
        raise RecordError(
            f"{where}: expected the name of a file inside {folder}, got "
            f"{shown(name)}. Names that lead elsewhere are not followed."
        )
    return Path(folder) / PurePosixPath(*parts)


def refuse_link_outside(folder, path):
    """Refuses a file of a folder that is a link to somewhere else.

    For files that are copied without a look at what is in them: a link in a
    stranger's folder may lead to anything on this machine. The cache of
    Hugging Face, where the files of a model are links to its ``blobs``, is
    followed.

    Arguments
    ---------
    folder : str or Path
        The folder.
    path : str or Path
        The file, in the folder.

    Raises
    ------
    RecordError
        Where it leads out of the folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "vocab.json").symlink_to("/etc/hostname")
    >>> try:
    ...     refuse_link_outside(folder, folder / "vocab.json")
    ... except ValueError as error:
    ...     print(str(error).removeprefix(str(folder)))
    /vocab.json is a link that leads out of its folder, to /etc/hostname. It is not copied: put the file itself there.
    """
    real = Path(path).resolve()
    cached = real.parent.name == "blobs" and real.parents[1].name.startswith(
        "models--"
    )
    if not cached and Path(folder).resolve() not in real.parents:
        raise RecordError(
            f"{path} is a link that leads out of its folder, to {real}. It is "
            "not copied: put the file itself there."
        )


def _is_plain(name):
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and _MARKS.search(name) is None
        and len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
    )
