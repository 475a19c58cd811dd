"""Knowing a training again that was killed in its very first save.

A resumed training is known by its checkpoint, which holds the training's
identity. A kill in the first save leaves a candidate, or a part of one, and no
checkpoint: started again, the training would take its own candidate for that of
another training. So a note lies in the run while the first checkpoint is saved.
It goes with the second save, with the first resumption, and at the end of a
process that saved it whole; a kill, or an error in that save, leaves it there.

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

import atexit
import json
import os
from pathlib import Path
from typing import Optional

from speechbrain.utils.checkpoints import PARAMFILE_EXT
from speechbrain_merge.pool.records import first_save_record, pointer_record
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json
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
    }
    write_whole(run / NOTE, json.dumps(content) + "\n")
    atexit.register(_end_of_process, run, os.getpid())


def end(run: Path):
    """Takes the note back.

    Arguments
    ---------
    run : Path
        Folder of the run.
    """
    (run / NOTE).unlink(missing_ok=True)


def killed_in_it(run: Path, saves_at: Optional[Path] = None) -> Optional[str]:
    """The training that was killed in its first save.

    Arguments
    ---------
    run : Path
        Folder of the run.
    saves_at : Path, optional
        Where the training that asks saves its checkpoints, if it is known to
        have none there.

    Returns
    -------
    str or None
        Its identity. None where there is no note, where the training that asks
        saves elsewhere, so that it is another, or where the checkpoint was
        whole after all, so that its training can be resumed.
    """
    if not (run / NOTE).is_file():
        return None
    try:
        note = first_save_record(read_json(run / NOTE), str(run / NOTE))
    except RecordError:
        return None
    checkpoint = Path(note["checkpoint"])
    if saves_at is not None:
        same = checkpoint.parent == Path(saves_at).absolute()
        return note["lineage"] if same else None
    try:
        files = sorted(checkpoint.glob(f"*{PARAMFILE_EXT}"))
    except OSError:  # no path that a checkpoint could have
        return None
    if any(damage_of(path) for path in files):
        return note["lineage"]
    last = note.get("last")
    if last is not None and last not in [path.stem for path in files]:
        return note["lineage"]
    whole = any(points_to(path, note["lineage"]) for path in files)
    return None if whole else note["lineage"]


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
        pointer = pointer_record(read_json(path, limit=1 << 20), str(path))
    except RecordError:
        return False
    return pointer["lineage"] == lineage


def _end_of_process(run, process):
    # A forked child ends as well, and must not take its parent's note
    if os.getpid() != process:
        return
    try:
        note = first_save_record(read_json(run / NOTE), str(run / NOTE))
    except (RecordError, OSError):
        return
    # A save that failed, on a full disk say, leaves a part of a checkpoint
    if not Path(note["checkpoint"]).is_dir() or killed_in_it(run) is None:
        end(run)
