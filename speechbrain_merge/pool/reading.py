"""Candidates from wherever they lie: pools, past runs, files.

`read_pool` takes a pool, a SpeechBrain output or save folder of a past run
(no retraining), one checkpoint, a weights file, a Hugging Face folder, a glob,
or a list of these, and gives one list of candidates. It only reads.

Example
-------
>>> from speechbrain.utils.checkpoints import Checkpointer
>>> folder = getfixture("tmp_path")
>>> from torch.nn import Linear
>>> saver = Checkpointer(folder / "1986/save", {"model": Linear(2, 2)})
>>> _ = saver.save_checkpoint(meta={"WER": 9.5, "epoch": 1}, name="first")
>>> candidates = read_pool(folder / "1986")
>>> [(each.name, each.run, each.score) for each in candidates]
[('1986/CKPT+first', '1986', 9.5)]

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Optional

from speechbrain.utils.checkpoints import CKPT_PREFIX, METAFNAME
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.candidate import Candidate
from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.pool.meta import (
    finite_number,
    is_from_testing,
    is_intra_epoch,
    read_meta,
    read_progress,
)
from speechbrain_merge.pool.patterns import Patterns
from speechbrain_merge.pool.records import candidate_record
from speechbrain_merge.pool.recovery import (
    METADATA,
    tell_unnamed,
    what_is_unnamed,
)
from speechbrain_merge.pool.run_folder import (
    RunFolder,
    candidate_of,
    run_folders,
)
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import open_weights
from speechbrain_merge.weights.folders import HUGGING_FACE_FILES

logger = get_logger(__name__)

WEIGHTS_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")

EXPECTED = (
    f"a pool (<run>/{Manifest.FILE}), a SpeechBrain output or save folder "
    f"({CKPT_PREFIX}+…/{METAFNAME}), a checkpoint folder, a Hugging Face "
    f"folder, or a weights file ({', '.join(WEIGHTS_SUFFIXES)})"
)


def read_pool(
    source,
    metric: Optional[str] = None,
    intra_epoch: bool = False,
    skip_broken: bool = False,
) -> list[Candidate]:
    """All candidates of a source.

    Arguments
    ---------
    source : str, Path, CheckpointPool, Candidate, or a list of these
        What to read; strings may be globs. What is found twice is given once.
    metric : str, optional
        The entry of the metas that `score` gives. Default: what the pool was
        told, "WER" for checkpoints.
    intra_epoch : bool
        Whether checkpoints of save folders that SpeechBrain saved within an
        epoch count.
    skip_broken : bool
        Leaves out half-written checkpoints with a warning, instead of raising.

    Returns
    -------
    list of Candidate
        In the order of the sources. The runs of a pool come in the order of
        their names; within a run the order is that of saving.

    Raises
    ------
    ValueError
        Where nothing is found, or something found is broken; the message names
        the folders.
    """
    reading = _Reading(intra_epoch)
    reading.read(source)
    if reading.broken and not skip_broken:
        listing = "\n".join(f"  {path}: {why}" for path, why in reading.broken)
        raise ValueError(
            f"{len(reading.broken)} of the candidates cannot be used:\n"
            f"{listing}\nDelete them, or leave them out by skip_broken=True."
        )
    for path, why in reading.broken:
        logger.warning(f"{path}: left out: {why}")
    candidates = _name_apart(reading.found.values())
    if not candidates:
        notes = "".join(f" {note}." for note in reading.notes)
        raise ValueError(
            f"no candidate in {', '.join(reading.sought) or 'an empty list'}. "
            f"Expected {EXPECTED}.{notes}"
        )
    if metric is not None:
        candidates = [
            dataclasses.replace(each, metric=metric) for each in candidates
        ]
    return candidates


class _Reading:
    """Gathers candidates over several sources.

    A candidate is found with the folder of its run, since two runs may have
    the same name until `_name_apart` has seen all.
    """

    def __init__(self, intra_epoch):
        self.intra_epoch = intra_epoch
        self.found = {}  # path: (folder of the run or None, candidate)
        self.real = {}  # folder: where it is, behind all links
        self.broken = []  # (path, why)
        self.sought = []
        self.notes = []
        self.patterns = Patterns()

    def read(self, source):
        if isinstance(source, Candidate):
            self.sought.append(source.name)
            self.add(None, source)
        elif isinstance(source, (str, PathLike)):
            self.read_text(str(source))
        elif hasattr(source, "folder") and hasattr(source, "candidates"):
            self.read_text(str(source.folder))  # a CheckpointPool
        elif isinstance(source, Iterable) and not isinstance(source, dict):
            for each in source:
                self.read(each)
        else:
            raise TypeError(
                f"candidates cannot be read from a {type(source).__name__}. "
                f"Expected {EXPECTED}, a glob, or a list of these."
            )

    def read_text(self, text):
        self.sought.append(text)
        if not Path(text).exists() and glob.has_magic(text):
            for path in self.patterns.matching(text):
                self.read_path(Path(path))
        else:
            self.read_path(Path(text))

    def read_path(self, path):
        if path.is_file():
            self.read_file(path)
        elif (path / Manifest.FILE).is_file():
            self.read_run(RunFolder(path))
        elif run_folders(path):
            for run in run_folders(path):
                self.read_run(run)
            for folder in sorted(path.iterdir()):
                if not (folder / Manifest.FILE).is_file():
                    tell_unnamed(RunFolder(folder))
        elif (path / METAFNAME).is_file():
            self.read_checkpoint(path)
        elif _checkpoints(path):
            self.read_save_folder(path)
        elif _checkpoints(path / "save"):
            self.read_save_folder(path / "save")
        elif any((path / name).is_file() for name in HUGGING_FACE_FILES):
            self.add(path, Candidate("", path, ""))
        elif not path.exists():
            self.notes.append(f"{path} does not exist")
        elif path.is_dir():
            # A pool whose only manifest was lost
            runs = [path, *sorted(path.iterdir())]
            self.notes += filter(
                None, map(what_is_unnamed, map(RunFolder, runs))
            )

    def read_run(self, run):
        tell_unnamed(run)
        for candidate in run.candidates():
            if candidate.path.is_file():
                self.add(run.folder, candidate)
            else:
                self.broken.append(
                    (candidate.path, f"missing, but {run.manifest.path} has it")
                )

    def read_save_folder(self, folder):
        """All checkpoints of a past run that are whole, in order of time."""
        whole = []
        for path in _checkpoints(folder):
            try:
                whole.append((_from_checkpoint(path), _modules(path)))
            except (ValueError, OSError) as error:
                self.broken.append((path, f"half-written? {error}"))
        expected = set().union(*(modules for _, modules in whole))
        for candidate, modules in _in_order(whole):
            if expected - modules:
                missing = _lacks(expected - modules)
                self.broken.append((candidate.path, missing))
            elif is_from_testing(candidate.meta):
                self.notes.append(
                    f"{candidate.path} was saved in testing, with a made-up "
                    "metric; name it itself to use it"
                )
                logger.warning(f"Left out: {self.notes[-1]}")
            elif self.intra_epoch or not is_intra_epoch(candidate.meta):
                self.add(folder, candidate)

    def read_checkpoint(self, path):
        try:
            candidate = _from_checkpoint(path)
            missing = _modules_beside(path) - _modules(path)
        except (ValueError, OSError) as error:
            self.broken.append((path, f"half-written? {error}"))
        else:
            if missing:
                self.broken.append((path, _lacks(missing)))
            else:
                self.add(path.absolute().parent, candidate)

    def read_file(self, path):
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise ValueError(f"{path} is no weights file. Expected {EXPECTED}.")
        folder = path.absolute().parent
        if (folder / METAFNAME).is_file():
            # One recoverable of a checkpoint: all its metas hold for it
            whole = _from_checkpoint(folder)
            name = f"{whole.name}/{path.stem}"
            candidate = dataclasses.replace(whole, name=name, path=path)
            self.add(folder.parent, candidate)
        else:
            # a link to a candidate is that candidate, but in a pool, which says
            # what is in its place
            elsewhere = path.is_symlink() and not _is_in_a_run(path)
            real = Path(os.path.realpath(path)) if elsewhere else path
            candidate = _of_pool(real)
            if candidate is None:
                self.add(folder, _from_file(path))
            else:
                self.add(real.absolute().parent, candidate)

    def add(self, folder, candidate):
        path = Path(candidate.path)
        if path.is_symlink():
            key = os.path.realpath(path)
        else:  # the folder of thousands of candidates is resolved once
            key = os.path.join(self.real_folder(path.parent), path.name)
        self.found.setdefault(key, (folder, candidate))

    def real_folder(self, folder):
        """The folder behind all links."""
        if folder not in self.real:
            self.real[folder] = os.path.realpath(folder)
        return self.real[folder]


def _is_in_a_run(path):
    return (path.parent / Manifest.FILE).is_file()


def _of_pool(path):
    """A file of a pool with what its manifest knows, the base above all."""
    if not _is_in_a_run(path):
        return None
    for candidate in RunFolder(path.parent).candidates():
        if candidate.path.name == path.name:
            return candidate
    return None


def _checkpoints(folder):
    found = sorted(folder.glob(f"{CKPT_PREFIX}*"))
    return [path for path in found if path.is_dir()]


def _from_checkpoint(path):
    meta = read_meta(path)
    epoch, step = read_progress(path, meta)
    return Candidate(
        name=path.name,
        path=path,
        run="",
        epoch=epoch,
        step=step,
        meta=meta,
        time=finite_number(meta.get("unixtime")),
    )


def _from_file(path):
    """A lone file, with what a pool wrote into it."""
    with open_weights(path) as weights:
        metadata = weights.metadata
    if METADATA not in metadata:
        return Candidate(name=path.stem, path=path, run="")
    where = f"{path}, metadata '{METADATA}'"
    record = candidate_record(parse_json(metadata[METADATA], where), where)
    candidate = candidate_of(record, path, "")
    return dataclasses.replace(candidate, name=path.stem)


def _in_order(checkpoints):
    """Checkpoints of a training in the order in which they were saved.

    By epoch and step where every one tells, else by time: a clock may have
    been set back in between.
    """
    steps = [(each.epoch, each.step) for each, _ in checkpoints]
    epochs = [epoch for epoch, _ in steps]
    if None not in epochs and len(set(epochs)) == len(epochs):
        key = _epoch_of
    elif not any(None in each for each in steps):
        key = _step_of
    else:
        key = _time_of
    # sorted() keeps the order of the names among equals
    return sorted(checkpoints, key=lambda each: key(each[0]))


def _epoch_of(candidate):
    return candidate.epoch


def _step_of(candidate):
    return candidate.step, candidate.epoch


def _time_of(candidate):
    return candidate.time or 0.0


def _modules(path):
    """The recoverables of a checkpoint that are models. Reads headers only."""
    with open_weights(path) as weights:
        return {name.partition(".")[0] for name in weights.names()}


def _modules_beside(path):
    """Those that other checkpoints of the same training have."""
    found = set()
    for other in _checkpoints(path.absolute().parent):
        if other.name != path.name and (other / METAFNAME).is_file():
            try:
                found |= _modules(other)
            except (ValueError, OSError):
                continue  # not whole: it says nothing of this one
    return found


def _lacks(missing):
    names = ", ".join(sorted(missing))
    return f"half-written? The others have {names} as well"


def _name_apart(found):
    """Gives each candidate its run and a name that no other one has.

    A run is called by its folder; those that share this name, by as many
    folders above as tell them apart.
    """
    found = list(found)
    runs = _shortest_names({folder for folder, _ in found} - {None})
    candidates = []
    for folder, candidate in found:
        if folder is None:
            candidates.append(candidate)
            continue
        run, own = runs[folder], candidate.name
        if candidate.run:  # as its own pool calls it
            own = own.partition("/")[2]
        name = f"{run}/{own}" if own else run
        candidates.append(dataclasses.replace(candidate, name=name, run=run))
    paths = {}
    for candidate in candidates:
        other = paths.setdefault(candidate.name, candidate.path)
        if other != candidate.path:
            raise ValueError(
                f"two candidates are called '{candidate.name}': {other} and "
                f"{candidate.path}. Rename one of them."
            )
    return candidates


def _parts(folder):
    parts = folder.absolute().parts
    return parts[:-1] if parts[-1] == "save" else parts


def _shortest_names(folders):
    """Folder to as many of its last parts as tell it from the others."""
    labels = {folder: _parts(folder) for folder in folders}
    names, depth = {}, 1
    while len(names) < len(labels):
        ends = Counter(parts[-depth:] for parts in set(labels.values()))
        for folder, parts in labels.items():
            last = depth >= len(parts) - 1
            if folder not in names and (ends[parts[-depth:]] == 1 or last):
                names[folder] = "/".join(parts[-depth:])
        depth += 1
    return names
