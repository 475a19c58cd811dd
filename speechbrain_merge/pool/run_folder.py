"""One run of a pool on the disk: its manifest, its base, its candidates.

Whatever is written here is written so that a kill between any two steps leaves
a folder that reads well: weights first and then the line that names them; the
line that takes them back first, and then they are deleted.

Example
-------
>>> import torch
>>> run, _ = RunFolder.claim(getfixture("tmp_path"), "seed-1")
>>> _ = run.store_base({"model.weight": torch.zeros(2)})
>>> name = run.new_name("epoch-0001", run.read())
>>> record = {"name": name, "epoch": 1, "meta": {"WER": 9.5}}
>>> run.store(record, {"model.weight": torch.ones(2)})
>>> candidate = run.candidates()[0]
>>> candidate.name, candidate.score, candidate.base.name
('seed-1/epoch-0001', 9.5, 'base.safetensors')

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool import first_save
from speechbrain_merge.pool.candidate import Candidate, rank
from speechbrain_merge.pool.manifest import (
    Contents,
    Manifest,
    hold,
    is_held,
    release,
)
from speechbrain_merge.pool.recovery import (
    BASE_FILE,
    METADATA,
    clear_up,
    is_own,
    own_record,
    put_aside,
    strays_of,
)
from speechbrain_merge.weights import digest, open_weights, write_weights

logger = get_logger(__name__)


def run_folders(pool) -> list["RunFolder"]:
    """The runs of a pool, in the order of their names.

    Arguments
    ---------
    pool : str or Path
        Folder of a pool. It need not exist yet.

    Returns
    -------
    list of RunFolder
    """
    return [
        RunFolder(path.parent)
        for path in sorted(Path(pool).glob(f"*/{Manifest.FILE}"))
    ]


def candidate_of(record: dict, path: Path, run: str, **start: Any) -> Candidate:
    """The candidate that a record describes.

    Arguments
    ---------
    record : dict
        A line of a manifest.
    path : Path
        Where the weights are.
    run : str
        Name of the run.
    **start
        Its base, and the digest of that.

    Returns
    -------
    Candidate
    """
    return Candidate(
        name=f"{run}/{record['name']}",
        path=path,
        run=run,
        epoch=record.get("epoch"),
        step=record.get("step"),
        meta=record["meta"],
        metric=record.get("metric", "WER"),
        hyperparameters=record.get("hyperparameters", {}),
        time=record.get("time"),
        tags=tuple(record.get("tags", ())),
        known_digest=record["digest"],
        **start,
    )


def slot_of(epoch: Optional[int], step: Optional[int], saves: int) -> str:
    """The end of a candidate's name: its epoch and step, or its number.

    Arguments
    ---------
    epoch : int, optional
        Epochs trained. One below zero does not tell them.
    step : int, optional
        Optimizer steps trained.
    saves : int
        Checkpoints seen: the last resort.

    Returns
    -------
    str

    Example
    -------
    >>> slot_of(3, 120, 9), slot_of(3, None, 9), slot_of(None, None, 9)
    ('epoch-0003-step-000120', 'epoch-0003', 'save-0009')
    """
    slot = f"save-{saves:04d}"
    if epoch is not None and epoch >= 0:  # a counter may begin below
        slot = f"epoch-{int(epoch):04d}"
    return slot if step is None else f"{slot}-step-{int(step):06d}"


def names_to_keep(
    records: list,
    last: Optional[int],
    best: Optional[int],
    metric: str,
    mode: str,
) -> tuple:
    """Which candidates a bounded run keeps.

    Arguments
    ---------
    records : list of dict
        Candidates as the manifest has them, in the order as collected.
        The later of two with one slot, or one number of saves in one
        training, was trained again.
    last : int, optional
        Keep so many of the newest.
    best : int, optional
        Keep so many of the best. Given neither, all are kept.
    metric : str
        Entry of their metas that tells the best.
    mode : str
        "min" where lower is better, else "max".

    Returns
    -------
    kept : set of str
        Names.
    replaced : set of str
        Names of those that were trained again, later in the list.
    """
    newest = {
        key: record["name"] for record in records for key in _places(record)
    }
    current = [
        record
        for record in records
        if all(newest[key] == record["name"] for key in _places(record))
    ]
    kept = {record["name"] for record in current}
    replaced = {record["name"] for record in records} - kept
    if last is not None or best is not None:
        candidates = [
            Candidate(record["name"], Path(), "", meta=record["meta"])
            for record in current
        ]
        ranked = rank(candidates, metric, mode)[: best or 0]
        latest = candidates[-last:] if last else []
        kept = {candidate.name for candidate in [*ranked, *latest]}
    return kept, replaced


def _places(record):
    """What tells that a candidate was trained again: its epoch and step, and
    which save of its training it was. With other batches, steps are others."""
    places = [record.get("slot", record["name"])]
    if record.get("lineage") and record.get("saves") is not None:
        places.append((record["lineage"], record["saves"]))
    return places


class RunFolder:
    """The folder of one run.

    Arguments
    ---------
    folder : str or Path
        `<pool>/<run>`. Created at the first writing.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.run = self.folder.name
        self.manifest = Manifest(self.folder)

    @classmethod
    def claim(
        cls,
        pool,
        run: str,
        own_run: Optional[str] = None,
        lineage: Optional[str] = None,
        begun: bool = True,
        saves_at: Optional[Path] = None,
        is_anothers: Callable[[Path], bool] = lambda folder: False,
    ) -> tuple:
        """The run that a training may write, alone.

        Arguments
        ---------
        pool : str or Path
            Folder of the pool.
        run : str
            The name that is asked for.
        own_run : str, optional
            The name that this training got earlier, if it is resumed.
        lineage : str, optional
            What tells this training from others, also over resumptions.
        begun : bool
            Whether a checkpoint has told the lineage. A training without one
            may be one that was killed in its first save.
        saves_at : Path, optional
            Where it saves its checkpoints, if there is none yet.
        is_anothers : callable
            Whether another pool of this process collects in a folder.

        Returns
        -------
        run : RunFolder
            Of the first free one of `own_run`, `<run>-2`, `<run>-3`, … Free is
            what no other process writes, and no other training has filled.
        lineage : str
            As given, or that of the training which this one was.
        """
        for name in itertools.chain([own_run or run], _numbered(run)):
            claimed = cls(Path(pool) / name)
            was_held = is_held(claimed.folder)
            if claimed.folder.is_symlink():
                why = "is a link, through which nothing is written"
            elif is_anothers(claimed.folder):
                why = "is of another pool of this training"
            elif not hold(claimed.folder):
                why = "is being written by another process"
            else:
                others = claimed.lineages() - {lineage}
                if others and not begun:
                    killed = first_save.killed_in_it(claimed.folder, saves_at)
                    if killed is not None and others == {killed}:
                        lineage, others = killed, set()
                if not others:
                    break
                why = "holds a training that this one does not continue"
                if not was_held:
                    release(claimed.folder)  # for that training
            logger.warning(
                f"Pool {pool}: run '{name}' {why}, so this training is "
                "collected under another name. Give each training its own "
                "run=, or delete the folder of the run if it is of no use."
            )
        clear_up(claimed)
        return claimed, lineage

    def read(self) -> Contents:
        """The content of the manifest, all records taken together."""
        return self.manifest.read()

    def candidates(self) -> list[Candidate]:
        """The candidates, as collected.

        Returns
        -------
        list of Candidate
        """
        contents = self.read()
        base = contents.base
        start = {}
        if base is not None:
            start["base"] = self.folder / base["file"]
            start["base_digest"] = base["digest"]
        return [
            candidate_of(
                record, self.folder / record["file"], self.run, **start
            )
            for record in contents.candidates.values()
        ]

    def lineages(self) -> set:
        """The trainings that candidates here came from.

        Returns
        -------
        set of str
            Also of candidates that the manifest does not name, because it was
            lost: they carry their own record.
        """
        strays = [own_record(path, self.run) for path in strays_of(self)]
        return self.read().lineages | {
            record.get("lineage")
            for record in strays
            if record is not None and record["event"] == "candidate"
        }

    def new_name(self, slot: str, contents: Contents) -> str:
        """A name that this run never gave before.

        Arguments
        ---------
        slot : str
            E.g. `epoch-0003-step-000120`.
        contents : Contents
            What the manifest holds now.

        Returns
        -------
        str
            The slot, with a number behind it where it was taken before.
        """
        names = itertools.chain([slot], _numbered(slot))
        return next(
            name
            for name in names
            if name not in contents.names
            and not os.path.lexists(self.folder / f"{name}.safetensors")
        )

    def store(self, record: dict, tensors: dict, more=None):
        """Stores a candidate.

        Arguments
        ---------
        record : dict
            At least its name and its meta, as plain values.
        tensors : dict
            Its weights.
        more : dict, optional
            More text entries for the metadata of its file.
        """
        record = {
            "event": "candidate",
            "file": f"{record['name']}.safetensors",
            "digest": record.get("digest") or digest(tensors),
            **record,
        }
        # A lone file explains itself, wherever it is moved to
        metadata = {
            "format": "pt",
            METADATA: json.dumps({"run": self.run, **record}),
            **(more or {}),
        }
        write_weights(self.folder / record["file"], tensors, metadata)
        self.manifest.append(record)

    def pass_over(self, record: dict):
        """Records weights that are not stored.

        Arguments
        ---------
        record : dict
            As for `store`. Its name stays free.
        """
        kept = {key: each for key, each in record.items() if key != "name"}
        self.manifest.append({"event": "passed", **kept})

    def remove(self, record: dict, why: str):
        """Removes a candidate.

        Arguments
        ---------
        record : dict
            As the manifest has it.
        why : str
            For the manifest.
        """
        self.manifest.append(
            {"event": "removed", "name": record["name"], "why": why}
        )
        others = self.read().candidates.values()
        path = self.folder / record["file"]
        if record["file"] in {each["file"] for each in others}:
            return
        if is_own(path, record["digest"]):
            path.unlink()
        elif os.path.lexists(path):
            logger.warning(
                f"{path}: not deleted, because it is not the candidate that "
                f"{self.manifest.path} has on record"
            )

    def take_back_base(self):
        """Removes the base, which is not what the run started from."""
        known = self.read().base
        if known is None:
            return
        path = self.folder / known["file"]
        self.manifest.append({"event": "base removed"})
        if is_own(path, known["digest"]):
            path.unlink()

    def store_base(self, tensors: dict) -> Optional[str]:
        """Stores what the run starts from, unless it is there already.

        The same weights in a run beside are linked, which takes no space.
        Others, of an earlier attempt that stored no candidate, are replaced.

        Arguments
        ---------
        tensors : dict
            The weights before training.

        Returns
        -------
        str or None
            Their digest, where they were stored.
        """
        content = digest(tensors)
        known = self.read().base
        if known is not None and known["digest"] == content:
            return None
        path = self.folder / BASE_FILE
        if known is not None:
            self.manifest.append({"event": "base removed"})
        if is_own(path, known["digest"] if known else content):
            path.unlink()
        elif os.path.lexists(path):
            put_aside(
                path, "it is not the base that the manifest has on record"
            )
        if not self._link_base(path, content):
            write_weights(path, tensors, {"format": "pt", "digest": content})
        self.manifest.append(
            {
                "event": "base",
                "file": BASE_FILE,
                "digest": content,
                "time": time.time(),
            }
        )
        return content

    def share_base(self, other: "RunFolder"):
        """Takes the base of a run that this one goes on from, if it has one.

        Arguments
        ---------
        other : RunFolder
            The run. A base that is not as it is on record there is not taken.
        """
        known = other.read().base
        if known is None or self.read().base is not None:
            return
        path = other.folder / known["file"]
        if _holds(path, known["digest"]):
            with open_weights(path) as weights:
                self.store_base(dict(weights))

    def _link_base(self, path, content):
        """Links the same base of a run beside, if there is one."""
        for beside in run_folders(self.folder.parent):
            known = beside.read().base
            source = beside.folder / BASE_FILE
            if known and known["digest"] == content and source.is_file():
                if not _holds(source, content):
                    continue  # its manifest says so, and no more than that
                try:
                    os.link(source, path)
                except OSError as error:
                    logger.info(f"{path}: stored, not linked ({error})")
                    return False
                return True
        return False


def _holds(path, code):
    """Whether the weights in a file are those of a digest."""
    try:
        with open_weights(path) as weights:
            return not path.is_symlink() and digest(weights) == code
    except (ValueError, OSError):
        return False


def _numbered(name):
    return (f"{name}-{number}" for number in itertools.count(2))
