"""Training one model of a study.

A training is one step that is done once. It is known by the whole text of its
YAML, with references resolved, by the content of the weights that it starts
from, and by that of its data (``study/training_data.py``). One that was stopped
goes on from its last checkpoint, as the recipe does. One whose checkpoints were lost
begins anew: its pool collects it in a run of its own, beside that of the earlier
attempt, and the study reads that run alone.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import gc
import re
import shutil
from pathlib import Path

from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.run_folder import run_folders
from speechbrain_merge.records.once import once
from speechbrain_merge.study.made import Made, relative_to
from speechbrain_merge.study.nodes import ORIGINAL, SCRATCH
from speechbrain_merge.study.training_data import keep_data
from speechbrain_merge.training import forget_earlier_saves
from speechbrain_merge.weights import digest, open_weights

logger = get_logger(__name__)


def make_trained(maker, node):
    """Trains a model."""
    training = maker.study.trainings[node.training]
    home = maker.folder / "models" / node.name
    values = {
        "seed": maker.seed + node.seed_offset,
        "output_folder": str(home),
        "run": node.name,
        "domains": list(node.domains),
        "tests": [],  # a training need not know them
    }
    start = None if node.start == SCRATCH else maker.made[node.start]
    if start is not None and node.start != ORIGINAL:
        values["start_from"] = str(start.path)
    heard = {}
    if node.guide is not None:
        values["guide"] = str(maker.made[node.guide].path)
        heard["weights of its guide"] = maker.made[node.guide].digest
    if node.teachers:
        teachers = [maker.made[name] for name in node.teachers]
        values["teachers"] = [str(one.path) for one in teachers]
        heard["weights of its teachers"] = [one.digest for one in teachers]
    _check_heard(training, node, values)
    overrides = training.overrides(values, node.settings)
    decisive = training.decisive(
        {**overrides, **_without_paths(training, overrides)},
        maker.study.folder,
    )
    settings = {
        "training": training.hparams.name,
        "yaml": decisive,
        "weights of its start": None if start is None else start.digest,
        **heard,
    }

    def fit():
        for name in filter(None, (node.guide, *node.teachers)):
            maker.made[name].verified(name)
        if start is not None:
            start.verified(node.start)
        run = maker.prepare(training, overrides)
        keep_data(maker.study, home, training, overrides, run)
        plain = start is None or _start(maker, run, training, node, start)
        forget_earlier_saves()
        run.fit()
        pool, adapters = maker.pool_of(run), maker.adapters_of(run)
        folder = run_on_main(_collected, args=[pool])
        found = {}
        if adapters is not None:
            collected = run_on_main(_collected, args=[adapters])
            found["adapters"] = str(relative_to(collected, maker.study.folder))
        return {
            **found,
            "run": folder.name,
            "steps": int(run.brain.optimizer_step),
            "pool": str(relative_to(folder, maker.study.folder)),
            "plain": plain,
            "checkpoints": str(
                relative_to(
                    run.brain.checkpointer.checkpoints_dir, maker.study.folder
                )
            ),
        }

    run_on_main(_check_known, args=[home])
    record = once(
        home / "finished.json",
        settings,
        fit,
        advice=f"delete {home} to train it again.",
    )
    # A Brain and what it holds refer to one another
    gc.collect()
    if not maker.study.keep_checkpoints:
        saved = maker.study.folder / record["outcome"]["checkpoints"]
        _remove_checkpoints(saved, home)
    candidates = read_pool(
        run_on_main(_pool_of, args=[maker.study.folder, home, record])
    )
    [candidate] = maker.standing_for(candidates)
    # Learning with another model's attention begins from both models
    plain = record["outcome"]["plain"]
    if start is not None and plain and not _began_from(candidate, start):
        raise ValueError(
            f"Model '{node.name}' was trained from other weights than "
            f"'{node.start}' has now: choose another folder, or delete "
            f"{home} to train it again."
        )
    return Made(
        candidate.path,
        candidate.digest,
        candidates,
        candidate,
        {"steps": record["outcome"]["steps"], **_learned(candidates)},
        record["seconds"],
        record["interrupted"],
        candidate.base_digest,
        _adapter(maker, record["outcome"].get("adapters"), candidate),
    )


def _collected(pool):
    """The folder of the run that a training was collected in."""
    return pool.collects_in


def _check_known(home):
    """Raises where there are checkpoints, and no word of their settings.

    A training would go on from them with whatever settings there are now.
    """
    for name in ("finished.json", "finished.begun"):
        if (home / name).exists():
            return
    if home.is_dir() and any(home.rglob(f"{CKPT_PREFIX}+*")):
        raise ValueError(
            f"{home} holds checkpoints, and neither finished.json nor "
            "finished.begun, which say with what settings they were trained. "
            f"Put the file back, or delete {home} to train it again."
        )


def _pool_of(folder, home, record):
    """The folder of what a training collected.

    Earlier versions wrote the name of the run that was asked for. Where there
    was a run of an earlier attempt, the candidates are in one beside, of which
    the last one that was written is that of the training that finished.
    """
    outcome = record["outcome"]
    pool = folder / outcome["pool"]
    if "run" in outcome or home not in pool.parents:
        return pool
    name = re.compile(rf"{re.escape(pool.name)}(-\d+)?")
    runs = [one for one in run_folders(pool.parent) if name.fullmatch(one.run)]
    last = max(runs, key=_last_time, default=None)
    if last is None or last.run == pool.name:
        return pool
    logger.warning(
        f"{home}: the training is collected in the run '{last.run}' of its "
        f"pool. An earlier version took '{pool.name}' for it, which holds an "
        "earlier attempt: what was made from that is made again."
    )
    return last.folder


def _last_time(run):
    """When the last candidate of a run was saved."""
    return max((one.time or 0.0 for one in run.candidates()), default=0.0)


def _adapter(maker, folder, candidate):
    """The adapter of a candidate, where the training collected adapters."""
    if folder is None:
        return None
    adapters = {
        (each.epoch, each.step): each
        for each in read_pool(maker.study.folder / folder)
    }
    return adapters.get((candidate.epoch, candidate.step))


def _learned(candidates):
    """The coefficients that a training learned, as its checkpoints tell them.

    A Brain that learns with the attention of another model puts its λ, one a
    layer, into the meta of each checkpoint, under ``ratios``.
    """
    history = [
        {"step": candidate.epoch, "coefficients": candidate.meta["ratios"]}
        for candidate in candidates
        if "ratios" in candidate.meta
    ]
    return {"learned": history} if history else {}


def _start(maker, run, training, node, start):
    """Loads the weights that a run starts from, if they have its names.

    Returns whether its modules have the names of those weights. Modules
    with adapters or a learned attention have others, and are what `build`
    made of them.
    """
    modules = maker.pool_of(run).modules
    mine = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    with open_weights(start.path) as weights:
        same_names = set(weights.names()) == set(mine)
    # Where the YAML has a key for the start, the recipe has loaded it
    loaded = training.key("start_from") and node.start != ORIGINAL
    if same_names and not loaded and digest(mine) != start.digest:
        run.brain.load_weights(start.path)
    return same_names


def _without_paths(training, overrides):
    """Leaves out the paths of other models: their content is a setting."""
    keys = [training.key(word) for word in ("start_from", "guide", "teachers")]
    return {key: None for key in keys if key in overrides}


def _check_heard(training, node, values):
    """Raises where the YAML has no key for a guide or for teachers."""
    for word in ("guide", "teachers"):
        if word in values and training.key(word) is None:
            raise ValueError(
                f"Model '{node.name}': `{word}`: {training.hparams} has no key "
                f"`{training.words[word]}`. Name the key with `keys` of "
                f"training '{training.name}'."
            )


def _began_from(candidate, start):
    """Whether a training began from a model, as far as the model goes.

    A pretrained encoder has no output layer; that starts from scratch.
    """
    if candidate.base_digest in (None, start.digest):
        return True
    with open_weights(candidate.base) as base, open_weights(start.path) as one:
        names = list(one.names())
        if not set(names) < set(base.names()):
            return False
        return digest({name: base[name] for name in names}) == start.digest


def _remove_checkpoints(folder, home):
    """Removes the checkpoints of a finished training of this study.

    After its record is written: without one, it goes on from them. Whatever
    else lies beside them stays.
    """
    folder = Path(folder).resolve()
    if home.resolve() in folder.parents:
        # The main process looks: for another they may be gone by then
        run_on_main(_remove_folders, args=[folder])


def _remove_folders(folder):
    """Removes what a Checkpointer wrote, and the folder if that was all."""
    if not folder.is_dir():
        return
    for path in folder.glob(f"{CKPT_PREFIX}+*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless a person's files are in it
