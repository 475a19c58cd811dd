"""Training one model of a study.

A training is one step that is done once. It is known by the whole text of its
YAML, with references resolved, by the content of the weights that it starts
from, and by that of its data (``study/training_data.py``). One that was stopped
goes on from its last checkpoint, as the recipe does.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import gc
import shutil
from pathlib import Path

from speechbrain.utils.checkpoints import CKPT_PREFIX
from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.pool import read_pool
from speechbrain_merge.records.once import once
from speechbrain_merge.study.made import Made, relative_to
from speechbrain_merge.study.nodes import ORIGINAL, SCRATCH
from speechbrain_merge.study.training_data import keep_data
from speechbrain_merge.weights import digest, open_weights


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
        run = maker.prepare(training, overrides)
        keep_data(maker.study, home, training, overrides, run)
        plain = start is None or _start(maker, run, training, node, start)
        run.fit()
        pool, adapters = maker.pool_of(run), maker.adapters_of(run)
        folder = pool.folder / pool.run
        found = {}
        if adapters is not None:
            collected = adapters.folder / adapters.run
            found["adapters"] = str(relative_to(collected, maker.study.folder))
        return {
            **found,
            "steps": int(run.brain.optimizer_step),
            "pool": str(relative_to(folder, maker.study.folder)),
            "plain": plain,
            "checkpoints": str(
                relative_to(
                    run.brain.checkpointer.checkpoints_dir, maker.study.folder
                )
            ),
        }

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
    pool = maker.study.folder / record["outcome"]["pool"]
    candidates = read_pool(pool)
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
