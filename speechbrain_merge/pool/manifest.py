r"""The manifest of a run: what is in the pool, one JSON line an event.

A line is appended after the file that it speaks of is whole on the disk, and
before a file that it speaks of is deleted. So at any instant the manifest
names whole files only. A process killed while writing leaves a torn last line,
which has no line end: readers pass over it and the next writer cuts it off.

Events: `base` (the weights that the run started from), `base removed`,
`candidate`, `passed` (a checkpoint that was seen but not stored), `removed`.

Example
-------
>>> manifest = Manifest(getfixture("tmp_path") / "run")
>>> manifest.append({"event": "candidate", "name": "a", "file": "a.st"})
>>> manifest.append({"event": "candidate", "name": "b", "file": "b.st"})
>>> manifest.append({"event": "removed", "name": "a"})
>>> with open(manifest.path, "a") as file:
...     _ = file.write('{"event": "cand')  # killed here
>>> list(manifest.read().candidates)
['b']

Authors
 * The speechbrain_merge authors 2026
"""

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

LOCK = ".lock"


@dataclass
class Contents:
    """The content of a manifest, all records taken together."""

    base: Optional[dict] = None
    """Record of the base, or None."""
    candidates: dict = field(default_factory=dict)
    """Name to record of each candidate that is there, as collected."""
    names: set = field(default_factory=set)
    """All names that were ever given."""
    digests: dict = field(default_factory=dict)
    """Digest to record of all weights that were ever seen."""
    lineages: set = field(default_factory=set)
    """The trainings that candidates came from."""


class Manifest:
    """The manifest of one run of a pool.

    Arguments
    ---------
    folder : str or Path
        The folder of the run. Created at the first writing.
    file : str
        Its name there.
    """

    FILE = "manifest.jsonl"

    def __init__(self, folder, file: str = FILE):
        self.folder = Path(folder)
        self.path = self.folder / file

    def records(self) -> list[dict]:
        """All whole lines.

        Returns
        -------
        list of dict

        Raises
        ------
        ValueError
            Where a line before the last is no JSON: someone edited the file.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().split(b"\n")
        found = []
        # What follows the last line end is empty, or torn
        for number, line in enumerate(lines[:-1], start=1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line {number} is not JSON ({error}). Repair "
                    "or delete that line; the weights are not affected."
                ) from error
        return found

    def read(self) -> Contents:
        """The content of the manifest, all records taken together.

        Returns
        -------
        Contents
        """
        contents = Contents()
        for record in self.records():
            event, name = record["event"], record.get("name")
            if event == "base":
                contents.base = record
            elif event == "candidate":
                contents.candidates[name] = record
                contents.lineages.add(record.get("lineage"))
                contents.names.add(name)
                contents.digests[record.get("digest")] = record
            elif event == "passed":
                contents.digests.setdefault(record["digest"], record)
            elif event == "base removed":
                contents.base = None
            elif event == "removed":
                contents.candidates.pop(name, None)
        return contents

    def append(self, record: dict):
        """Adds a line and has it on the disk before returning.

        Arguments
        ---------
        record : dict
            Plain values.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with open(self.path, "ab+") as file:
            whole = _whole_length(file)
            if whole < file.seek(0, os.SEEK_END):
                logger.warning(f"{self.path}: cut off a torn last line")
                file.truncate(whole)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync_folder(self.folder)


_held = {}


def hold(folder) -> bool:
    """Makes this process the only writer of a run, until it ends.

    The lock is the operating system's: it goes with the process, however that
    ends, and is not inherited by data loading workers.

    Arguments
    ---------
    folder : str or Path
        The folder of the run. Created when missing.

    Returns
    -------
    bool
        False where another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), folder.resolve())
    if key in _held:
        return True
    # Never closed: closing any descriptor of the file would release the lock
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return False
    except OSError as error:
        # Some cluster file systems have no locks, and training must go on
        logger.warning(
            f"{folder} cannot be locked ({error}). See to it that no two "
            "trainings use the same run of a pool at the same time."
        )
    _held[key] = descriptor
    return True


def _whole_length(file):
    """Length of the file up to its last line end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
