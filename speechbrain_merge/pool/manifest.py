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
>>> for name in "ab":
...     manifest.append(
...         {
...             "event": "candidate",
...             "name": name,
...             "file": f"{name}.safetensors",
...             "digest": "0" * 64,
...             "meta": {"WER": 9.5},
...         }
...     )
>>> manifest.append({"event": "removed", "name": "a"})
>>> with open(manifest.path, "a") as file:
...     _ = file.write('{"event": "cand')  # killed here
>>> list(manifest.read().candidates)
['b']

Authors
 * The speechbrain_merge authors 2026
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.records import event_record
from speechbrain_merge.records.files import open_to_append, try_lock
from speechbrain_merge.records.log import Log

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
    removed: dict = field(default_factory=dict)
    """File name to digest of what was taken back, and may be deleted."""


class Manifest(Log):
    """The manifest of one run of a pool.

    Arguments
    ---------
    folder : str or Path
        The folder of the run. Created at the first writing.
    """

    FILE = "manifest.jsonl"

    def __init__(self, folder):
        super().__init__(
            Path(folder) / self.FILE,
            event_record,
            "Repair or delete that line; the weights are not affected.",
        )

    def append(self, record: dict):
        """Adds a line. Every change in a run has one, so none is made in a run
        that another process writes.

        Arguments
        ---------
        record : dict
            The line.

        Raises
        ------
        BlockingIOError
            Where another process writes the run. Nothing was changed.
        """
        if not hold(self.path.parent):
            raise BlockingIOError(
                f"{self.path.parent} is being written by another process, so "
                "nothing was changed in it. Give each training its own run=."
            )
        super().append(record)

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
            elif event == "base removed" and contents.base is not None:
                _take_back(contents, contents.base, record)
                contents.base = None
            elif event == "removed" and name in contents.candidates:
                _take_back(contents, contents.candidates.pop(name), record)
        return contents


def _take_back(contents, record, event):
    """Notes what becomes of a file that is named no more."""
    if event.get("kept"):
        contents.removed.pop(record["file"], None)
    else:
        contents.removed[record["file"]] = record["digest"]


_held = {}


def hold(folder) -> bool:
    """Makes this process the only writer of a run, until it ends.

    The lock is the operating system's: it goes with the process, however that
    ends. Other descriptors of the lock file may come and go, as when the
    process copies its own pool, and data loading workers do not inherit it.

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
    path = folder / LOCK
    key = (os.getpid(), folder.resolve())
    if key in _held:
        if path.exists() and os.path.samestat(
            os.fstat(_held[key]), os.stat(path)
        ):
            return True
        os.close(_held.pop(key))  # the folder was made anew since
    # Never closed in this process: that would give the lock back
    descriptor = open_to_append(path)
    locked = try_lock(descriptor)
    if locked is False:
        os.close(descriptor)
        return False
    if locked is None:
        # Some cluster file systems have no locks, and training must go on
        logger.warning(
            f"{folder} cannot be locked on this file system. See to it that no "
            "two trainings use the same run of a pool at the same time."
        )
    _held[key] = descriptor
    return True


def is_held(folder) -> bool:
    """Whether this process is the writer of a run.

    Arguments
    ---------
    folder : str or Path
        The folder of the run.

    Returns
    -------
    bool
    """
    return (os.getpid(), Path(folder).resolve()) in _held


def release(folder):
    """Gives a run back that this process holds.

    Arguments
    ---------
    folder : str or Path
        The folder of the run.
    """
    os.close(_held.pop((os.getpid(), Path(folder).resolve())))


def _let_go():
    """In a forked child: the lock stays with the parent alone."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
