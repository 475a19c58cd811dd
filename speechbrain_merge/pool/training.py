"""Who a training is to a pool: its identity, its run, and what it started from.

A training is known by its checkpoints. The newest one tells the identity (a
random number that all its candidates carry), the run that it collects in, how
often it has saved, and the hash of its base. One that has no checkpoint yet is
a new one, unless it was killed in its very first save. A run belongs to one
training: another one collects in ``<run>-2``.

Example
-------
>>> import torch
>>> folder = getfixture("tmp_path")
>>> first = Training(folder, "seed-1")
>>> run = first.claim()
>>> run.store(
...     {"name": "epoch-0001", "meta": {}, "lineage": first.lineage},
...     {"weight": torch.ones(2)},
... )
>>> second = Training(folder, "seed-1")
>>> second.claim().run
'seed-1-2'

Authors
 * The speechbrain_merge authors 2026
"""

import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool import first_save
from speechbrain_merge.pool.bases import has_base, provide_base
from speechbrain_merge.pool.copied_training import is_of_a_copy
from speechbrain_merge.pool.meta import check_saved_with
from speechbrain_merge.pool.records import pointer_record
from speechbrain_merge.pool.run_folder import RunFolder
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.written_check import read_written

logger = get_logger(__name__)


class Training:
    """One training, as a pool knows it.

    Arguments
    ---------
    folder : Path
        The pool.
    asked_run : str
        The run that it was given.
    checkpoints : Path, optional
        Where it saves its checkpoints, if that is known.
    """

    def __init__(
        self, folder: Path, asked_run: str, checkpoints: Optional[Path] = None
    ):
        self.folder, self.asked_run = folder, asked_run
        self.checkpoints = checkpoints
        self.whole: Optional[Collection[Path]] = None
        """The checkpoints that were whole when it began, if that is known."""
        self.run = asked_run
        """Where it collects, unless another training has that run."""
        self.lineage = uuid.uuid4().hex
        self.begun = False
        """Whether a checkpoint tells who it is."""
        self.saves = 0
        self.start: Optional[str] = None
        """The digest of its base."""
        self.weights: Optional[Mapping] = None
        """Those of its base, until it is known where it saves."""
        self.statistics: dict = {}
        """Of features, in the checkpoint that was loaded."""
        self.claimed: Optional[RunFolder] = None

    def go_on(self, pointer: Mapping, path) -> None:
        """Is the training of a checkpoint from now on, or that of a copy.

        Changes nothing on the disk.

        Arguments
        ---------
        pointer : dict
            What the checkpoint says of its candidate.
        path : str or Path
            Where it was read.
        """
        if self.begun:
            return  # it is known already
        run = RunFolder(self.folder / pointer["run"]).read()
        self.begun, self.weights = True, None
        self.start = pointer.get("base")
        own = [
            record
            for record in run.candidates.values()
            if record.get("lineage") == pointer["lineage"]
        ]
        if run.base is not None and any("base" not in each for each in own):
            # Earlier versions named no base; it was that of the run
            self.start = self.start or run.base["digest"]
        if is_of_a_copy(pointer, path, self.folder, run.candidates.values()):
            return  # it is collected as another training
        self.lineage, self.claimed = pointer["lineage"], None
        if pointer["asked_run"] == self.asked_run:
            self.run = pointer["run"]

    def has_base(self) -> bool:
        """Whether its run has the base that it started from."""
        run = RunFolder(self.folder / self.run)
        return self.start is not None and has_base(run, self.start)

    def is_known_later(self) -> bool:
        """Whether it may have been killed in its first save, or another was.

        Where it saves tells, which a plain Checkpointer says at the first save.
        """
        run = self.folder / self.run
        return self.checkpoints is None and first_save.has_note(run)

    def claim(
        self,
        is_anothers: Callable[[Path], bool] = lambda folder: False,
        based: bool = False,
        weights: Optional[Mapping] = None,
    ) -> RunFolder:
        """The run that it alone writes; claimed at first use.

        Arguments
        ---------
        is_anothers : callable
            Whether another pool of this process collects in a folder.
        based : bool
            Whether the run is to have the base.
        weights : dict, optional
            Those that it started from, if they are at hand.

        Returns
        -------
        RunFolder
            With its base, if it can be had; else a warning tells.
        """
        if self.claimed is not None:
            return self.claimed
        self.claimed, self.lineage = RunFolder.claim(
            self.folder,
            self.asked_run,
            self.run,
            self.lineage,
            begun=self.begun,
            killed=self._killed_in,
            is_anothers=is_anothers,
        )
        self.run = self.claimed.run
        weights, self.weights = weights or self.weights, None
        if based and self.start is not None:
            if not provide_base(self.claimed, self.start, weights):
                why = (
                    "its base is lost, and the modules start with other weights "
                    "now. Put its base.safetensors back"
                    if self.begun
                    else f"that of '{self.asked_run}' is another one, and the "
                    "weights of this start were not stored. Call "
                    "store_base(resuming=False) where a training begins"
                )
                logger.warning(
                    f"Pool {self.folder}: run '{self.run}' has no base: {why}, "
                    "or give `base` where it is merged."
                )
        return self.claimed

    def _killed_in(self, run):
        return first_save.killed_in_it(run, self.checkpoints, self.whole)


def read_pointer(path) -> dict:
    """What a checkpoint says of its candidate.

    Arguments
    ---------
    path : str or Path
        ``<checkpoint>/pool.ckpt``.

    Returns
    -------
    dict

    Raises
    ------
    RecordError
        Where it is damaged, or that of another checkpoint; with what to do.
    """
    try:
        known = read_written(path)
        pointer = pointer_record(known, str(path))
        check_saved_with(path, pointer.get("saved"))
        return pointer
    except RecordError as error:
        raise RecordError(
            f"{error}. Was this checkpoint not written to its end? Delete "
            f"the folder {Path(path).parent} to resume from the one before."
        ) from None
