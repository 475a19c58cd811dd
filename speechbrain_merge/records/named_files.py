"""Files that the code of a recipe names.

A recipe reads a lexicon beside its script by ``os.path.join(here, "data",
"lexicon.txt")``: no value holds that path, and the texts of the code have its
parts. So each text that the code reads is looked for as a file, in the folders
of the code and in those below that its other texts name.

Example
-------
>>> folder = getfixture("tmp_path")
>>> (folder / "data").mkdir()
>>> _ = (folder / "data" / "lexicon.txt").write_text("one")
>>> names = {"data", "lexicon.txt", "words", "data/lexicon.txt"}
>>> found = files_in([folder], names)
>>> {Path(each).relative_to(folder).as_posix() for each in found}
{'data/lexicon.txt'}

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Optional, Union

from speechbrain_merge.records.file_hashes import named_path

_DEEPEST = 3
"""Folders of which a path is put together, below that of the code."""


def files_in(folders: Iterable[Union[str, Path]], names: Set[str]) -> set[str]:
    """Files that some texts name, in folders and below.

    Arguments
    ---------
    folders : iterable of str or Path
        Where to look.
    names : set of str
        Texts, of which most are no names of files.

    Returns
    -------
    set of str
        Their paths.
    """
    return {
        path
        for folder in _with_those_below(set(map(str, folders)), names)
        for name in names
        if (path := _file_in(folder, name)) is not None
    }


def _with_those_below(folders, names):
    """Folders, and those within them that a path is put together of."""
    for _ in range(_DEEPEST):
        folders = folders | {
            os.path.join(folder, name)
            for folder in folders
            for name in names.intersection(_entries(folder))
            if os.path.isdir(os.path.join(folder, name))
        }
    return folders


def _entries(folder) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _file_in(folder: str, name: str) -> Optional[str]:
    """A file in a folder, where a text is the name of one."""
    if not name or len(name) > 255 or "\n" in name or "\0" in name:
        return None
    path = os.path.join(folder, named_path(name))
    return path if os.path.isfile(path) else None
