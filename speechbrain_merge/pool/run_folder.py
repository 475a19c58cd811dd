"""One run of a pool on the disk: its manifest, its base, its candidates.

Whatever is written here is written so that a kill between any two steps leaves
a folder that reads well: weights first and then the line that names them; the
line that takes them back first, and then they are deleted.

Example
-------
>>> import torch
>>> run, _ = RunFolder.claim(getfixture("tmp_path"), "seed-1")
>>> name = run.new_name("epoch-0001", run.read())
>>> record = {"name": name, "epoch": 1, "meta": {"WER": 9.5}}
>>> run.store(record, {"model.weight": torch.ones(2)})
>>> candidate = run.candidates()[0]
>>> candidate.name, candidate.score
('seed-1/epoch-0001', 9.5)

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool import first_save
from speechbrain_merge.pool.candidate import Candidate
from speechbrain_merge.pool.manifest import (
    Contents,
    Manifest,
    hold,
    is_held,
    release,
)
from speechbrain_merge.pool.recovery import (
    METADATA,
    clear_up,
    delete,
    is_own,
    own_record,
    put_aside,
    strays_of,
)
from speechbrain_merge.records.written_check import with_check
from speechbrain_merge.weights import (
    digest,
    open_weights,
    verify,
    write_weights,
)

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
        killed: Callable[[Path], Optional[str]] = first_save.killed_in_it,
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
        killed : callable
            Gives the training that was killed in its first save into a folder.
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
                    itself = killed(claimed.folder)
                    if itself is not None and others == {itself}:
                        lineage, others = itself, set()
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
        return [
            candidate_of(
                record,
                self.folder / record["file"],
                self.run,
                **self._start_of(record, contents.base),
            )
            for record in contents.candidates.values()
        ]

    def _start_of(self, record, base):
        """The base of a candidate, and its digest, if the run has it.

        Candidates of earlier versions do not name theirs.
        """
        if base is None or record.get("base", base["digest"]) != base["digest"]:
            return {}
        return {
            "base": self.folder / base["file"],
            "base_digest": base["digest"],
        }

    def those_there(self, records: Iterable[dict]) -> list[dict]:
        """The candidates whose files are there: only these take a place.

        Arguments
        ---------
        records : iterable of dict
            As the manifest has them.

        Returns
        -------
        list of dict
        """
        return [
            record
            for record in records
            if os.path.lexists(self.folder / record["file"])
        ]

    def lacks(self, record: dict) -> bool:
        """Whether a candidate is on record, and its weights are not there.

        Arguments
        ---------
        record : dict
            As the manifest has it. One that was removed or passed over, of
            which no weights are kept, lacks none.

        Returns
        -------
        bool
        """
        if self.read().candidates.get(record.get("name")) != record:
            return False
        try:
            with open_weights(self.folder / record["file"]) as weights:
                verify(weights, record["digest"])
        except (ValueError, OSError):
            return True
        return False

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
        own = with_check({"run": self.run, **record})
        metadata = {
            "format": "pt",
            METADATA: json.dumps(own),
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
        if not delete(path, record["digest"]):
            logger.warning(
                f"{path}: not deleted, because it is not the candidate that "
                f"{self.manifest.path} has on record"
            )

    def set_aside(self, record: dict, why: str):
        """Takes a candidate out of the run, and keeps its file.

        Arguments
        ---------
        record : dict
            As the manifest has it.
        why : str
            For the manifest, and for a warning with the place of the file.
        """
        name = record["name"]
        # After a kill before the move, `clear_up` makes it
        self.manifest.append(
            {"event": "removed", "name": name, "why": why, "kept": True}
        )
        others = self.read().candidates.values()
        path = self.folder / record["file"]
        if record["file"] not in {each["file"] for each in others}:
            if is_own(path, record["digest"]):
                put_aside(path, f"'{name}' {why}")


def _numbered(name):
    return (f"{name}-{number}" for number in itertools.count(2))
