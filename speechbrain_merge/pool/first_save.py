"""Knowing a training again that was killed in its very first save.

A resumed training is known by its checkpoint, which holds the training's
identity. A kill in the first save leaves a candidate, or a part of one, and no
checkpoint: started again, the training would take its own candidate for that of
another training. So a note lies in the run while the first checkpoint is saved.
Once the pool has saved its part, the note says so, and the checkpoint itself
has to show that it was left half done: one that is not there any more was
whole, for all that is known, and deleted. The note goes with the second save
and with the first resumption.

Example
-------
>>> run = getfixture("tmp_path") / "seed-1"
>>> run.mkdir()
>>> begin(run, "7f3a", "save/CKPT+1")
>>> killed_in_it(run)
'7f3a'
>>> end(run)
>>> killed_in_it(run) is None
True

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Optional

from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain_merge.pool.records import first_save_record, pointer_record
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import sync_folder, write_whole
from speechbrain_merge.records.written_check import read_written, with_check
from speechbrain_merge.weights.damage import damage_of

NOTE = ".first-save.json"


def begin(run: Path, lineage: str, checkpoint, last: Optional[str] = None):
    """Notes that a training saves its first checkpoint.

    Arguments
    ---------
    run : Path
        Folder of the run.
    lineage : str
        Identity of the training.
    checkpoint : str or Path
        The folder that is being saved.
    last : str, optional
        The recoverable that is saved last, where that is known.
    """
    content = {
        "lineage": lineage,
        "checkpoint": os.path.abspath(checkpoint),
        "last": last,
        "saved": False,
    }
    _write(run, content)


def pool_saved(run: Path):
    """Notes that the pool has saved its part of the first checkpoint.

    Arguments
    ---------
    run : Path
        Folder of the run. One without a note is past its first save.
    """
    if (note := _note_of(run)) is None:
        return
    # The note relies on the checkpoint from now on, which nothing else syncs
    checkpoint = Path(note["checkpoint"])
    for folder in (checkpoint, *list(checkpoint.parents)[:2]):
        sync_folder(folder)
    _write(run, {**note, "saved": True})


def end(run: Path):
    """Takes the note back.

    Arguments
    ---------
    run : Path
        Folder of the run.
    """
    (run / NOTE).unlink(missing_ok=True)


def has_note(run: Path) -> bool:
    """Whether a first save of a run has begun, and no second one.

    Arguments
    ---------
    run : Path
        Folder of the run.

    Returns
    -------
    bool
    """
    return _note_of(run) is not None


def killed_in_it(
    run: Path,
    saves_at: Optional[Path] = None,
    whole: Optional[Collection[Path]] = None,
) -> Optional[str]:
    """The training that was killed in its first save.

    Arguments
    ---------
    run : Path
        Folder of the run.
    saves_at : Path, optional
        Where the training that asks saves its checkpoints, if that is known.
    whole : collection of Path, optional
        The checkpoints there that are whole, if that is known. One of a plain
        Checkpointer may be whole without what a Brain saves last.

    Returns
    -------
    str or None
        Its identity. None where there is no note, where the training that asks
        saves elsewhere, so that it is another, or where the checkpoint was
        whole after all, so that its training can be resumed.
    """
    if (note := _note_of(run)) is None:
        return None
    checkpoint, lineage = Path(note["checkpoint"]), note["lineage"]
    if saves_at is not None and checkpoint.parent != Path(saves_at).absolute():
        return None
    if not note.get("saved", True):
        return lineage
    try:
        files = sorted(checkpoint.glob(f"*{PARAMFILE_EXT}"))
    except OSError:  # no path that a checkpoint could have
        return None
    if not any(points_to(path, lineage) for path in files):
        return None  # deleted, or another one under its name
    last = note.get("last")
    if whole is not None and last is not None:
        return None if checkpoint in map(Path.absolute, whole) else lineage
    torn = last is not None and last not in [path.stem for path in files]
    return lineage if torn or any(map(damage_of, files)) else None


def points_to(path, lineage: str) -> bool:
    """Whether a file of a checkpoint points to candidates of a training.

    Arguments
    ---------
    path : str or Path
        A file of a checkpoint, `pool.ckpt` or another.
    lineage : str
        Identity of the training.

    Returns
    -------
    bool
    """
    try:
        known = read_written(path, limit=1 << 20)
        pointer = pointer_record(known, str(path))
    except RecordError:
        return False
    return pointer["lineage"] == lineage


def _write(run, note):
    write_whole(run / NOTE, json.dumps(with_check(note)) + "\n")


def _note_of(run):
    """The note of a run; None where there is none that can be read."""
    if not (run / NOTE).is_file():
        return None
    try:
        known = read_written(run / NOTE)
        return first_save_record(known, str(run / NOTE))
    except RecordError:
        return None
