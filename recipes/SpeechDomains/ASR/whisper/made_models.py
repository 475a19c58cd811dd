"""Making one model of a study: keeping the original, training, merging.

Each leaves its weights under the results folder, and is not done again when
they are there and come of the same.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import gc
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Optional

from model_graph import ORIGINAL
from records import write_record
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from study_steps import train_run

from speechbrain_merge.engine import merge
from speechbrain_merge.pool import Candidate, read_pool, select
from speechbrain_merge.pool.candidate import BASE
from speechbrain_merge.pool.merges import (
    Member,
    MergeRecord,
    read_merges,
    remember,
)
from speechbrain_merge.weights import digest, open_weights, write_weights

logger = get_logger(__name__)


@dataclasses.dataclass
class Made:
    """A model that is there.

    Arguments
    ---------
    path : Path
        Its weights.
    digest : str
        Of their content, whatever file holds them.
    seconds : float
        What making it took, its parents not counted.
    whole : bool
        Whether `seconds` is all of it: a training that was stopped and went on
        took longer.
    candidate : Candidate, optional
        Of a training: what the pool knows.
    """

    path: Path
    digest: str
    seconds: float = 0.0
    whole: bool = True
    candidate: Optional[Candidate] = None


def keep_original(brain, folder):
    """Writes the weights that every model comes of, by the pool's names.

    Arguments
    ---------
    brain : ASR
        Just built, so that its modules hold them.
    folder : Path
        The results folder.

    Returns
    -------
    Made
    """
    path = folder / f"{ORIGINAL}.safetensors"
    tensors = {
        f"{name}.{key}": tensor
        for name, module in brain.hparams.pool.modules.items()
        for key, tensor in module.state_dict().items()
    }
    content = digest(tensors)
    if path.is_file():
        with open_weights(path) as weights:
            known = digest(weights)
        if known != content:
            raise ValueError(
                f"{path} holds other weights than this study starts from: "
                "choose another results_folder."
            )
    else:
        run_on_main(write_weights, args=[path, tensors, {"format": "pt"}])
    return Made(path, content)


def train_once(model, made, study, run_opts, build):
    """Trains a model, unless it is trained.

    Arguments
    ---------
    model : Model
        Of kind "train".
    made : dict
        Name to Made of all models before it.
    study : dict
        The study's YAML.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        As for ``study.run_study``.

    Returns
    -------
    Made

    Raises
    ------
    ValueError
        When it was trained from other weights, or with other settings.
    """
    run = {
        "run_name": model.name,
        "domains": list(model.domains),
        "test_domains": [],  # a training need not know them
        "seed": study["seed"],
        **model.settings,
    }
    if model.start != ORIGINAL:
        run["start_from"] = str(made[model.start].path)
    home = Path(study["results_folder"]) / model.name
    finished, resumed = home / "finished.json", home / "resumed"
    if not finished.is_file() and any(home.glob("save/CKPT*")):
        resumed.touch()
    record = train_run(study, run, run_opts, build)
    # A Brain and what it holds refer to one another, so it would stay a while
    gc.collect()
    if not study["keep_checkpoints"]:
        # Of several gigabytes with the optimizer's; the weights are in the pool
        run_on_main(shutil.rmtree, args=[home / "save", True])
    pool = Path(study["pool_folder"]) / model.name
    [candidate] = select(read_pool(pool), per_run=study["checkpoint"])
    if candidate.base_digest != made[model.start].digest:
        raise ValueError(
            f"Model '{model.name}' was trained from other weights than "
            f"'{model.start}' has now: choose another results_folder, or "
            f"delete {home} and {pool} to train it again."
        )
    return Made(
        candidate.path,
        candidate.digest,
        record["seconds"],
        not resumed.exists(),
        candidate,
    )


def merge_once(model, by_name, made, folder):
    """Merges a model, unless it is merged of the same.

    Arguments
    ---------
    model : Model
        Of kind "merge".
    by_name : dict
        Name to Model.
    made : dict
        Name to Made of all models before it.
    folder : Path
        The results folder.

    Returns
    -------
    Made
    """
    starts = [by_name[name].start for name in model.members]
    start = next((name for name in starts if name), ORIGINAL)
    base = start if model.method.needs_base else None
    content = {
        "method": model.method.name,
        "parameters": model.method.configuration(),
        "members": {name: made[name].digest for name in model.members},
        "base": base and made[base].digest,
    }
    text = json.dumps(content, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    path = folder / "merged" / f"{model.name}.safetensors"
    mark = path.with_suffix(".json")
    if mark.is_file() and path.is_file():
        known = json.loads(mark.read_text(encoding="utf-8"))
        if known["key"] == key:
            logger.info(f"Merge {model.name} is finished.")
            # Only where a kill came between: by now the pool may remember
            # another merge of this name
            run_on_main(
                remember_members, args=[model, by_name, made, path, True]
            )
            return Made(path, known["digest"], known["seconds"])
    started = time.perf_counter()
    run_on_main(
        merge,
        args=[model.method, [made[name].path for name in model.members]],
        kwargs={
            "base": base and made[base].path,
            "output": path,
            "labels": list(model.members),
        },
    )
    with open_weights(path) as weights:
        own = digest(weights)
    seconds = round(time.perf_counter() - started, 1)
    record = {"key": key, "digest": own, "seconds": seconds, **content}
    record = json.loads(json.dumps(record, default=str))
    run_on_main(write_record, args=[mark, record])
    run_on_main(remember_members, args=[model, by_name, made, path])
    return Made(path, own, seconds)


def remember_members(model, by_name, made, path, once=False):
    """Has the pool remember a merge, so that a domain can be added later.

    Arguments
    ---------
    model : Model
        Of kind "merge". Only that of trainings, and perhaps of the original,
        can be formed again from the pool.
    by_name : dict
        Name to Model.
    made : dict
        Name to Made.
    path : Path
        The merged weights.
    once : bool
        Whether to leave it where the pool remembers a merge of this name.
    """
    members, starts = [], set()
    for name in model.members:
        known = made[name].candidate
        if known is not None:
            members.append(Member(known.name, known.run, known.digest))
            starts.add(by_name[name].start)
        elif name == ORIGINAL:
            members.append(Member(BASE, BASE, made[name].digest))
        else:
            return
    if len(starts) != 1:
        return
    method = {"name": model.method.name, **model.method.configuration()}
    weights = method.get("weights")
    if model.method.name == "average":
        shares = weights or [1] * len(members)
        total = sum(shares)
        members = [
            dataclasses.replace(member, weight=share / total)
            for member, share in zip(members, shares)
        ]
    if weights is not None:
        weights = {m.name: weight for m, weight in zip(members, weights)}
        method["weights"] = {"experts": weights}
    beside = next(made[n].candidate for n in model.members if n != ORIGINAL)
    pool = beside.path.parent.parent
    if once and any(known.name == model.name for known in read_merges(pool)):
        return
    remember(
        pool,
        MergeRecord(
            model.name,
            method,
            tuple(members),
            weights,
            ORIGINAL in model.members,
            # of a later round, the pool's base is the average before it
            base=str(made[ORIGINAL].path.absolute())
            if ORIGINAL in model.members and starts != {ORIGINAL}
            else None,
            path=str(path.absolute()),
            digest=digest(path),
        ),
    )
