"""The pool that training fills: a checkpoint hook that keeps weights alone.

SpeechBrain's recipes keep one or two checkpoints, optimizer included, and
delete the others: afterwards there is nothing to merge. A `CheckpointPool` is
one more recoverable. Whenever the Checkpointer saves, it stores the weights of
the named modules, and nothing else, as a candidate in a folder of its own:

    <folder>/<run>/manifest.jsonl                      what is there
    <folder>/<run>/base.safetensors                    before training
    <folder>/<run>/epoch-0003-step-000120.safetensors  candidates

It never touches what the Checkpointer owns, and bounds itself on the disk
(`every`, `keep_last`, `keep_best`). In YAML:

    pool: !new:speechbrain_merge.pool.CheckpointPool
        folder: !ref <output_folder>/pool
        run: !ref seed-<seed>
        modules: {whisper: !ref <whisper>}
    checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
        checkpoints_dir: !ref <save_folder>
        recoverables: {whisper: !ref <whisper>, pool: !ref <pool>}

What happens when:

- **A kill, at any instant.** A candidate is in the manifest whole, or it is
  not there. Remains of a half-written one are removed at the next start; what
  a lost manifest does not name is recovered, see `pool/recovery.py`.
- **Resuming.** Candidates newer than the restored checkpoint stay. When
  training gets to the same epoch and step again, or saves as often as then,
  equal weights are not stored
  twice; different ones (nothing guarantees determinism) take the place of the
  abandoned ones. Those that were saved before, in the same epoch, stay.
  Restoring an older checkpoint to evaluate it removes nothing.
- **Checkpoints saved after testing** carry made-up metrics. They are passed
  over: their epoch is None, or their weights are in the pool already.
- **The same run name twice.** Another process that writes the run now, or an
  earlier training that this one does not continue, keeps it; this training
  collects as `<run>-2`, and a warning says so.
- **One pool object, several trainings**, as in a notebook. Each is known by the
  folder of its checkpoints, and collects in a run of its own.
- **DDP.** Only the main process writes.

Example
-------
>>> import torch
>>> from speechbrain.utils.checkpoints import Checkpointer
>>> folder = getfixture("tmp_path")
>>> model = torch.nn.Linear(2, 2)
>>> pool = CheckpointPool(folder / "pool", {"model": model}, keep_best=1)
>>> saver = Checkpointer(folder / "save", {"model": model, "pool": pool})
>>> for epoch, wer in enumerate([30.0, 20.0, 25.0], start=1):
...     with torch.no_grad():
...         _ = model.weight.mul_(0.9)  # stands for training
...     _ = saver.save_and_keep_only(meta={"WER": wer, "epoch": epoch})
>>> [(candidate.name, candidate.score) for candidate in pool.candidates()]
[('run/epoch-0002', 20.0)]

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import time
import weakref
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Optional

from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool import first_save, half_written
from speechbrain_merge.pool.arguments import check_arguments, check_average
from speechbrain_merge.pool.bases import provide_base
from speechbrain_merge.pool.bounds import Bounds
from speechbrain_merge.pool.candidate import Candidate
from speechbrain_merge.pool.copied_training import checkpoints_of, place_of
from speechbrain_merge.pool.coverage import check_pools
from speechbrain_merge.pool.feature_statistics import (
    check_statistics,
    statistics_of,
)
from speechbrain_merge.pool.manifest import hold
from speechbrain_merge.pool.meta import (
    finite_number,
    fresh_progress,
    is_from_testing,
    is_intra_epoch,
    plain,
    read_meta,
)
from speechbrain_merge.pool.recovery import clear_up
from speechbrain_merge.pool.run_folder import RunFolder, run_folders, slot_of
from speechbrain_merge.pool.training import Training, read_pointer
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.written_check import with_check
from speechbrain_merge.weights import digest, heads_metadata, plain_state
from speechbrain_merge.weights.low_rank import trained_adapter
from speechbrain_merge.weights.verification import with_scale

logger = get_logger(__name__)

_collecting: MutableMapping[str, "CheckpointPool"] = (
    weakref.WeakValueDictionary()
)
"""Folder of a run to the pool of this process that collects there."""


@register_checkpoint_hooks
class CheckpointPool:
    """Stores the weights of modules at each checkpoint, as candidates.

    Arguments
    ---------
    folder : str or Path
        The pool. Several runs may share it, also at the same time.
    modules : dict
        Name to torch.nn.Module, not wrapped by DDP, as among the recipe's
        recoverables. Tensors are called `<name>.<parameter>`. LoRA is folded
        into the weights that it adapts.
    run : str
        Name of this training run, unique in the pool, e.g. `seed-1`.
    every : int
        Stores every n-th checkpoint, where n is `every`.
    keep_last, keep_best : int, optional
        Keeps so many of the newest and of the best candidates. Given none,
        everything is kept.
    metric : str
        Entry of the checkpoint's meta that tells the best. A candidate where
        it is missing or not finite is never best.
    mode : str
        "min" where a lower metric is better, else "max".
    hyperparameters : dict, optional
        Of this run; they travel with each candidate.
    base : bool
        Whether `store_base` stores the weights before training.
    tags : list of str, optional
        They travel with each candidate.
    intra_epoch : bool
        Whether to store the checkpoints that SpeechBrain saves within an epoch
        (`ckpt_interval_steps`, `ckpt_interval_minutes`) as well.
    epoch_counter : EpochCounter, optional
        Tells the epoch where the recipe's meta does not.
    partial : bool
        Whether `modules` may leave out trained ones, see `pool.coverage`.
    average : MovingAverage, optional
        Collects its average of the modules in place of their weights.
    adapters : bool
        Stores the LoRA alone, of a few megabytes, and does not fold it: for
        `speechbrain_merge.merge_adapters`. A pool of the whole modules holds
        the base that it belongs to, so that this one stores none.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path") / "pool"
    >>> CheckpointPool(folder, {"model": torch.nn.Linear(2, 2)}).candidates()
    []
    """

    def __init__(
        self,
        folder,
        modules: Mapping,
        run: str = "run",
        every: int = 1,
        keep_last: Optional[int] = None,
        keep_best: Optional[int] = None,
        metric: str = "WER",
        mode: str = "min",
        hyperparameters: Optional[dict] = None,
        base: bool = True,
        tags: Optional[list[str]] = None,
        intra_epoch: bool = False,
        epoch_counter=None,
        partial: bool = False,
        average=None,
        adapters: bool = False,
    ):
        check_arguments(modules, run, every, keep_last, keep_best, mode)
        if average is not None:
            check_average(average, modules)
        # The working directory may change while the training runs
        self.folder = Path(folder).absolute()
        self.modules = dict(modules)
        self.run = str(run)
        self.every = int(every)
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.metric, self.mode = metric, mode
        self.hyperparameters = plain(hyperparameters or {})
        self.base, self.intra_epoch = base and not adapters, intra_epoch
        self.tags = [str(tag) for tag in tags or []]
        self.epoch_counter, self.partial = epoch_counter, partial
        self.average, self.adapters = average, adapters
        self.collecting = True  # False passes over checkpoints for a while
        self._brain = None
        self._last = None  # The recoverable that is saved last, once known
        self._trainings: dict[str, Training] = {}  # by their checkpoints
        self._training = Training(self.folder, self.run)

    def candidates(self) -> list[Candidate]:
        """All candidates of the pool, of this run and of others.

        Returns
        -------
        list of Candidate
            Runs in the order of their names, each run as collected.
        """
        return [
            candidate
            for run in run_folders(self.folder)
            for candidate in run.candidates()
        ]

    @property
    def collects_in(self) -> Path:
        """The folder of the run that this training is collected in.

        ``<folder>/<run>``, or another where that held another training. It is
        known when the first candidate or the base is stored, or a checkpoint
        is restored: under ``torchrun``, on the main process.
        """
        return self.folder / self._training.run

    def begin(self, brain):
        """Tells the pool that `fit` begins, before anything is restored.

        `MergeMixin` calls it. Attaches the pool, stores the base, and takes
        the optimizer steps from the Brain from now on.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain that is about to train.
        """
        self._brain, self.collecting = brain, True
        newest, name, training = None, "", self._training
        if brain.checkpointer is not None:
            name = self.attach(brain.checkpointer)
            check_pools(brain)
            half_written.pass_over_remains(brain.checkpointer)
            self._last = half_written.written_last(brain.checkpointer)
            training = self._of(brain.checkpointer.checkpoints_dir)
            whole = brain.checkpointer.list_checkpoints()
            newest = brain.checkpointer.find_checkpoint()
            training.whole = [each.path for each in whole]
        if newest is None:
            training = self._anew()
        elif name in newest.paramfiles:
            path = newest.paramfiles[name]
            pointer = read_pointer(path)
            if pointer["lineage"] != training.lineage:
                training = self._anew()
            training.go_on(pointer, path)
        elif self.base and not training.begun:
            logger.warning(
                f"Pool {self.folder}: {newest.path} was saved without this "
                "pool, so the base is what the modules hold now. It is right "
                "if they were loaded or drawn alike when the training began."
            )
        self._recover()
        self.store_base(resuming=training.begun)

    @main_process_only
    def _recover(self):
        """Takes up what the manifest of this training's run has lost.

        A training that has ended collects nothing more, and is known here.
        """
        run = RunFolder(self.collects_in)
        if run.folder.is_symlink() or not run.folder.is_dir():
            return
        if self._training.lineage in run.lineages() and hold(run.folder):
            clear_up(run)

    def _of(self, checkpoints):
        """The training that saves in a folder; from now on it is collected.

        A pool may serve several, one after the other, as in a notebook.
        """
        place = os.path.realpath(checkpoints)
        if place in self._trainings:
            self._training = self._trainings[place]
        elif self._training.checkpoints is not None:
            self._training = Training(self.folder, self.run)
        self._training.checkpoints = Path(os.path.abspath(checkpoints))
        self._trainings[place] = self._training
        return self._training

    def _anew(self):
        """A new training, in the place of one that has no checkpoint."""
        before = self._training
        training = Training(self.folder, self.run, before.checkpoints)
        training.whole = before.whole
        if before.checkpoints is not None:
            place = os.path.realpath(before.checkpoints)
            self._trainings[place] = training
        self._training = training
        return training

    def check_features(self, brain):
        """Refuses to train on with other statistics of features.

        `MergeMixin` calls it when `fit` has restored what there is.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain that is about to train.

        Raises
        ------
        ValueError
            Naming the normaliser.
        """
        title = f"The run '{self._training.run}' of the pool {self.folder}"
        now = statistics_of(getattr(brain, "modules", {}))
        check_statistics(self._training.statistics, now, title)

    def attach(self, checkpointer, name: str = "pool") -> str:
        """Makes the pool a recoverable that older checkpoints need not have.

        Arguments
        ---------
        checkpointer : speechbrain.utils.checkpoints.Checkpointer
            Of the run.
        name : str
            Name of the recoverable, unless it is one already.

        Returns
        -------
        str
            Its name.
        """
        for known, each in checkpointer.recoverables.items():
            if each is self:
                name = known
        # Older checkpoints of a training that has begun have no pool
        checkpointer.add_recoverable(name, self, optional_load=True)
        return name

    @main_process_only
    def store_base(self, resuming: bool = True):
        """Stores the weights as they are now as the base of the run.

        To be called before a checkpoint is restored, when the modules hold
        what the run starts from. A base with the same weights in a run beside
        is linked, which takes no space.

        Arguments
        ---------
        resuming : bool
            True leaves a base that is there. False, for a training that
            begins, replaces the base of an attempt that got nowhere.
        """
        if not self.base:
            return
        if self._brain is None and self._training.checkpoints is not None:
            # Of which one is known when a checkpoint is loaded or saved
            self._training = Training(self.folder, self.run)
        training = self._training
        if training.begun and training.start is None:
            logger.warning(
                f"Pool {self.folder}: run '{training.run}' has no base, since "
                "its training began without one. Give `base` where it is "
                "merged."
            )
            return
        if training.begun:
            if not training.has_base():
                weights = self._tensors()
                same = digest(weights) == training.start
                self._claim(weights if same else None)
            return
        if training.claimed is not None and training.claimed.candidates():
            logger.warning(
                f"Pool {self.folder}: run '{training.run}' has candidates, and "
                "no base is stored after them. Call store_base before training."
            )
            return
        weights = self._tensors()
        training.start = digest(weights)
        run = RunFolder(self.collects_in)
        if not resuming:
            training.claimed = None  # it may have another base, of an attempt
            if training.is_known_later():
                training.weights = {
                    name: tensor.detach().to("cpu", copy=True)
                    for name, tensor in weights.items()
                }
            else:
                self._claim(weights)
        elif not run.folder.is_symlink() and hold(run.folder):
            clear_up(run)  # a base that the manifest lost comes back
            contents = run.read()
            named = {each.get("base") for each in contents.candidates.values()}
            if contents.base is None and named <= {training.start}:
                provide_base(run, training.start, weights)

    @mark_as_saver
    def save(self, path):
        """Stores a candidate, and in the checkpoint which one it is.

        Arguments
        ---------
        path : str or Path
            `<checkpoint>/<name>.ckpt`, where SpeechBrain expects a file.
        """
        training = self._of(checkpoints_of(path))
        meta = read_meta(Path(path).parent)
        earlier = training.saves, training.begun
        try:
            name, note = self._collect(Path(path).parent, meta)
        except BaseException:
            training.saves, training.begun = earlier  # for who tries again
            raise
        logger.info(f"Pool {self.folder}: {note}")
        pointer = {
            "pool": str(self.folder),
            "asked_run": self.run,
            "run": training.run,
            "lineage": training.lineage,
            "saves": training.saves,
            "candidate": name,
            "note": note,
            "checkpoints": str(training.checkpoints),
            "saved": finite_number(meta.get("unixtime")),
        }
        if training.start is not None:
            pointer["base"] = training.start
        if self._brain is not None:
            pointer["statistics"] = statistics_of(
                getattr(self._brain, "modules", {})
            )
        write_whole(path, json.dumps(with_check(pointer)) + "\n")
        if training.claimed is not None:
            first_save.pool_saved(training.claimed.folder)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Loads the counters of a checkpoint. Changes nothing on the disk.

        Arguments
        ---------
        path : str or Path
            What `save` wrote.
        end_of_epoch : bool
            Unused.
        """
        del end_of_epoch  # Unused
        pointer = read_pointer(path)
        training = self._of(checkpoints_of(path))
        training.saves = pointer["saves"]
        training.statistics = pointer.get("statistics", {})
        training.go_on(pointer, path)

    def saved(self):
        """Tells the pool that a checkpoint is there whole. `MergeMixin` calls it.

        From now on the training is known by that checkpoint, and no other one
        takes its place where it ends before another save.
        """
        training = self._training
        if training.begun and training.claimed is not None:
            first_save.end(training.claimed.folder)

    def _collect(self, checkpoint, meta):
        """Name of the candidate that holds this checkpoint, and a note."""
        if not self.collecting:
            return None, "not collecting"
        if is_intra_epoch(meta) and not self.intra_epoch:
            return None, f"passed over {checkpoint.name}, saved within an epoch"
        if is_from_testing(meta):
            return None, f"passed over {checkpoint.name}, saved in testing"
        training, run = self._training, self._claim()
        if training.begun:
            first_save.end(run.folder)
        else:
            first_save.begin(
                run.folder, training.lineage, checkpoint, self._last
            )
        training.begun = True
        contents = run.read()
        tensors = self._tensors()
        metadata, plain = self._metadata(), digest(tensors)
        content = with_scale(plain, metadata)
        # earlier versions recorded the tensors alone
        known = contents.digests.get(content, contents.digests.get(plain))
        if known is not None and run.lacks(known):
            known = None  # its file was lost or damaged, so it is stored anew
        if known is not None and (
            contents.candidates.get(known.get("name")) is known
            or known.get("saves", 0) <= training.saves
        ):
            # Trained again after resuming, saved again after a test, or put
            # back from earlier, in a training that goes on. What is not there
            # any more counts anew where the training has gone back before it.
            saves = known.get("saves", training.saves)
            training.saves = (
                saves if saves >= training.saves else training.saves + 1
            )
            before = known.get("meta", {})
            # An interval within the epoch may end with it: then the same
            # weights are saved before they are validated, and after
            if is_intra_epoch(meta) or not is_intra_epoch(before):
                # A kill may have come between store and this
                self._bounds.enforce(run, training.checkpoints)
                name = known["name"] if known["event"] == "candidate" else None
                return name, f"knows the weights of {checkpoint.name}"
        else:
            training.saves += 1
        record = {
            **self._progress(checkpoint, meta),
            "time": finite_number(meta.get("unixtime")) or time.time(),
            "meta": meta,
            "digest": content,
            "saves": training.saves,
        }
        record["name"] = run.new_name(record["slot"], contents)
        if self._is_earlier(record, contents.candidates.values()):
            # Saved before in this epoch, where no step tells them apart
            record["slot"] += f"-save-{training.saves:04d}"
        known_there = run.those_there(contents.candidates.values())
        kept, _ = self._bounds.choose([*known_there, record])
        if training.saves % self.every != 0 or record["name"] not in kept:
            # What it takes the place of is abandoned, although it is not kept
            passed = {**record, "lineage": training.lineage}
            self._bounds.enforce(run, training.checkpoints, passed)
            # Remembered: saved again after a test it must not seem new
            run.pass_over(record)
            return None, f"passed over {checkpoint.name}, by every= or keep_…="
        record.update(
            metric=self.metric,
            hyperparameters=self.hyperparameters,
            tags=self.tags,
            lineage=training.lineage,
            checkpoint=checkpoint.name,
            place=place_of(checkpoint.parent),
            base=training.start,
        )
        run.store(record, tensors, metadata)
        self._bounds.enforce(run, training.checkpoints)
        return record["name"], f"stored {record['name']}"

    def _is_anothers(self, folder):
        """Whether a pool of other modules, in this process, collects there.

        One of the same modules may be this one, made again in a notebook.
        """
        other = _collecting.get(os.path.realpath(folder))
        return other is not None and other._collects() != self._collects()

    def _collects(self):
        """What is stored of the modules."""
        return sorted(self.modules), self.adapters, self.average is not None

    def _is_earlier(self, record, known):
        """Whether this training came by the place of a candidate before.

        One that was saved later than now was abandoned by resuming, and is
        trained again.
        """
        now = self._training
        return any(
            each.get("slot") == record["slot"]
            and each.get("lineage") == now.lineage
            and each.get("saves", now.saves) < now.saves
            for each in known
        )

    @property
    def _bounds(self):
        return Bounds(self.keep_last, self.keep_best, self.metric, self.mode)

    def _tensors(self):
        if self.average is None:
            return self._plain_tensors()
        with self.average.in_modules():
            # copies, since the modules get their own weights back
            return {
                name: tensor.clone()
                for name, tensor in self._plain_tensors().items()
            }

    def _metadata(self):
        if self.adapters:
            return trained_adapter(self.modules).metadata
        return heads_metadata(self.modules)

    def _plain_tensors(self):
        if self.adapters:
            return dict(trained_adapter(self.modules))
        return {
            f"{name}.{key}": tensor
            for name, module in self.modules.items()
            for key, tensor in plain_state(module).items()
        }

    def _progress(self, checkpoint, meta):
        """Epoch, step, and what makes a checkpoint the same one as another."""
        epoch, step = fresh_progress(checkpoint, meta)
        if epoch is None and self.epoch_counter is not None:
            epoch = self.epoch_counter.current
        if self._brain is not None:
            step = self._brain.optimizer_step
        slot = slot_of(epoch, step, self._training.saves)
        return {"slot": slot, "epoch": epoch, "step": step}

    def _claim(self, weights: Optional[Mapping] = None):
        """The run that this training alone writes, with its base."""
        run = self._training.claim(self._is_anothers, self.base, weights)
        _collecting[os.path.realpath(run.folder)] = self
        return run
