"""Patterns of paths, expanded within bounds.

A pattern is a glob: ``*``, ``?`` and ``[…]`` within a name, and ``**`` for any
number of folders. Whoever reads a stranger's plan expands a stranger's
patterns, and Python's `glob` has no bounds: ``/**/*`` is every name of the
machine, and two links that lead to their own folder are 2^40 folders. Here each
folder is looked into once, and only so many names are looked at.

Example
-------
>>> folder = getfixture("tmp_path")
>>> (folder / "run" / "save").mkdir(parents=True)
>>> (folder / "run" / "save" / "m.pt").touch()
>>> found = Patterns().matching(f"{folder}/**/*.pt")
>>> [each.removeprefix(str(folder)) for each in found]
['/run/save/m.pt']
>>> Patterns(most=2).matching(f"{folder}/**/*.pt")
Traceback (most recent call last):
...
ValueError: the pattern '.../**/*.pt' stands for too much: 2 names were looked at, and there are more. Name the folder more closely.

Authors
 * The speechbrain_merge authors 2026
"""

import glob
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

MOST_NAMES = 250_000
"""Names that are looked at: some seconds' work, and thousands of runs."""


class Patterns:
    """Expands patterns, which together may look at so many names.

    Arguments
    ---------
    most : int
        Names.
    """

    def __init__(self, most: int = MOST_NAMES):
        self.most = self.left = most

    def matching(self, pattern: str) -> list[str]:
        """What is there of a pattern.

        Arguments
        ---------
        pattern : str
            A glob, with ``**`` for any number of folders at most once. As in a
            shell, names that begin with a dot have to be asked for.

        Returns
        -------
        list of str
            Sorted paths.

        Raises
        ------
        ValueError
            Where there are several ``**``, or too many names.
        """
        *parts, last = pattern.split("/")
        if [*parts, last].count("**") > 1:
            raise ValueError(f"'{pattern}': expected ** at most once")
        parts = [part for part in parts if part]
        parts += ["**", "*"] if last == "**" else [last]
        found: Iterable[str] = ["/" if pattern.startswith("/") else ""]
        try:
            for part in parts:
                if part == "**":
                    found = list(self._folders_below(found))
                elif glob.has_magic(part):
                    found = list(self._named(found, part))
                else:  # the last is empty after a slash: a folder
                    paths = [os.path.join(each, part) for each in found]
                    found = [each for each in paths if os.path.lexists(each)]
        except _TooMany:
            raise ValueError(
                f"the pattern '{pattern}' stands for too much: {self.most} "
                "names were looked at, and there are more. Name the folder "
                "more closely."
            ) from None
        return sorted(set(found))

    def _named(self, folders, part) -> Iterator[str]:
        """Entries of folders, by a pattern of their names."""
        for folder in folders:
            for entry in self._entries(folder):
                shown = part.startswith(".") or not entry.name.startswith(".")
                if shown and fnmatchcase(entry.name, part):
                    yield os.path.join(folder, entry.name)

    def _folders_below(self, folders) -> Iterator[str]:
        """Folders, and all in them, each once, whatever links lead to it."""
        seen, waiting = set(), [*reversed(folders)]
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(folder or ".")
            except OSError:  # a link that leads nowhere
                continue
            key = status.st_dev, status.st_ino
            if key in seen:
                continue
            seen.add(key)
            yield folder
            inside = [
                (entry.is_symlink(), entry.name)
                for entry in self._entries(folder)
                if not entry.name.startswith(".") and _is_folder(entry)
            ]
            # links last, so that a folder goes by its own name
            inside.sort(reverse=True)
            waiting += [os.path.join(folder, name) for _, name in inside]

    def _entries(self, folder) -> Iterator[os.DirEntry]:
        """What is in a folder; nothing where it is none, or not to be read."""
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    if self.left == 0:
                        raise _TooMany
                    self.left -= 1
                    yield entry
        except OSError:
            return


class _TooMany(Exception):
    """More names than are looked at."""


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
