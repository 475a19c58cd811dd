"""A study of continual learning: a graph of models, trained, merged, compared.

``model_graph.py`` says which models there may be and how they come of one
another; this makes them, one after the other, evaluates them on every domain,
and writes the tables and pictures. Each step leaves its result under the
results folder, and a step whose result is there is not done again: a study that
was stopped goes on where it was, and models that are added to its YAML later
share what is there::

    <results_folder>/original.safetensors      what all come of
                     <model>/                  a training: log, finished.json
                     pool/<model>/             the weights that it left
                     merged/<model>.safetensors, and <model>.json: of what
                     evaluated/<model>/        alignments, errors, rates
                     results.{json,md}, *.png

Nothing stale is used: a training knows the weights that it started from, and a
merge what it was merged of.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Optional

from continual_report import report_continual
from model_graph import ORIGINAL, plan_models, trained_for, with_ancestors
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from study import train_run
from study_models import evaluate_once, write_json

from speechbrain_merge.engine import merge
from speechbrain_merge.pool import Candidate, read_pool, select
from speechbrain_merge.pool.candidate import BASE
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
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


def run_continual(study, run_opts, build):
    """Makes, evaluates and reports all models of a study.

    Arguments
    ---------
    study : dict
        The study's YAML: ``models``, ``domains`` and the rest.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        As for ``study.run_study``.

    Returns
    -------
    results : dict
        As in ``results.json``.
    """
    folder = Path(study["results_folder"])
    plan = plan_models(study["models"], list(study["domains"]))
    plan = with_ancestors(plan, study["only"])
    # Before all training, so that a domain that is missing is missed now
    brain, _, _, test_sets = build(
        study["expert_hparams"],
        {
            **study["expert_overrides"],
            "run_name": "evaluate",
            "domains": list(study["domains"]),
            "test_domains": list(study["test_domains"]),
            "test_fraction": study["test_fraction"],
            "seed": study["seed"],
        },
        run_opts,
    )
    made, by_name = {}, {model.name: model for model in plan}
    made[ORIGINAL] = keep_original(brain, folder)
    started = time.perf_counter()
    for number, model in enumerate(plan[1:], start=1):
        minutes = (time.perf_counter() - started) / 60
        logger.info(
            f"Model {number} of {len(plan) - 1}, after {minutes:.0f} minutes: "
            f"{model.name}"
        )
        if model.kind == "train":
            made[model.name] = train_once(model, made, study, run_opts, build)
        elif model.kind == "merge":
            made[model.name] = merge_once(model, by_name, made, folder)
    measured = {}
    wanted = sets_needed(plan, study["domains"], study["test_domains"])
    for number, (name, domains) in enumerate(wanted.items(), start=1):
        logger.info(f"Test {number} of {len(wanted)}: {name}")
        row = {
            "name": name,
            "source": str(made[name].path),
            # The original was never trained with less than 30 seconds
            "window": 30 if name == ORIGINAL else study["test_window"],
        }
        sets = {domain: test_sets[domain] for domain in domains}
        measured[name] = evaluate_once(brain, row, sets, folder)
    results = {
        "in_domain": list(study["domains"]),
        "test_domains": list(study["test_domains"]),
        "rows": [
            table_row(model, by_name, made, measured, study)
            for model in plan
            if model.row
        ],
        "sequences": {
            model.title: {
                "domains": [by_name[name].domains[0] for name in model.stages],
                "rates": [
                    {
                        domain: measured[name][domain]["wer"]
                        for domain in study["domains"]
                    }
                    for name in (by_name[model.stages[0]].start, *model.stages)
                ],
            }
            for model in plan
            if model.row and len(model.stages) > 1
        },
        "seed": study["seed"],
        "test_fraction": study["test_fraction"],
    }
    if study["retention"]:
        results["retention"] = list(study["retention"])
    run_on_main(report_continual, args=[results, folder])
    return results


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
        run["start"] = str(made[model.start].path)
    home = Path(study["results_folder"]) / model.name
    finished, resumed = home / "finished.json", home / "resumed"
    if not finished.is_file() and any(home.glob("save/CKPT*")):
        resumed.touch()
    train_run(study, run, run_opts, build)
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
    record = json.loads(finished.read_text(encoding="utf-8"))
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
    run_on_main(write_json, args=[mark, record])
    run_on_main(remember_members, args=[model, by_name, made, path])
    return Made(path, own, seconds)


def remember_members(model, by_name, made, path):
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
    pool = next(made[n].candidate for n in model.members if n != ORIGINAL)
    remember(
        pool.path.parent.parent,
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


def sets_needed(plan, domains, test_domains):
    """Which models have to be tested on what.

    Arguments
    ---------
    plan : list of Model
        All models.
    domains : list of str
        Those that there are experts for.
    test_domains : list of str
        All test sets.

    Returns
    -------
    dict
        Name to list of domains, in the order of the plan. What is only on the
        way to another model is not tested.
    """
    needed = {model.name: set() for model in plan}
    for model in plan:
        if not model.row:
            continue
        if model.kind != "oracle":
            needed[model.name].update(test_domains)
        for domain in test_domains if model.kind == "oracle" else []:
            needed[heard_by(model, domain)].add(domain)
        if len(model.stages) > 1:
            starts = [m.start for m in plan if m.name == model.stages[0]]
            for name in [*starts, *model.stages]:
                needed[name].update(domains)
    return {
        name: [domain for domain in test_domains if domain in sets]
        for name, sets in needed.items()
        if sets
    }


def heard_by(model, domain):
    """The expert of an oracle that hears a domain."""
    return model.experts.get(domain, model.experts[None])


def table_row(model, by_name, made, measured, study):
    """What the results say of a model.

    Arguments
    ---------
    model : Model
        To be shown.
    by_name : dict
        Name to Model.
    made : dict
        Name to Made.
    measured : dict
        Name to the rates on the sets that it was tested on.
    study : dict
        The study's YAML.

    Returns
    -------
    dict
        A row of ``results.json``.
    """
    trainings = trained_for(model.name, by_name)
    row = {
        "name": model.title,
        "model": model.name,
        "group": model.group,
        "window": 30 if model.name == ORIGINAL else study["test_window"],
        "trainings": trainings,
        "training_seconds": sum(made[name].seconds for name in trainings),
        "timed_whole": all(made[name].whole for name in trainings),
        "sets": {
            domain: measured[
                heard_by(model, domain)
                if model.kind == "oracle"
                else model.name
            ][domain]
            for domain in study["test_domains"]
        },
    }
    if model.kind == "merge":
        row["members"] = list(model.members)
        row["method"] = {
            "name": model.method.name,
            **json.loads(json.dumps(model.method.configuration(), default=str)),
        }
    return row
