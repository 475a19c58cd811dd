"""A study of continual learning: a graph of models, trained, merged, compared.

``model_plan.py`` says which models there may be and how they come of one
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

import json
import time
from pathlib import Path

from continual_report import report_continual
from made_models import keep_original, merge_once, train_once
from model_graph import ORIGINAL, trained_for, with_ancestors
from model_plan import plan_models
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from study_steps import evaluate_once

logger = get_logger(__name__)


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
            **heard_with(name, study),
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
            if model.row
            and len(model.stages) > 1
            and set(study["domains"]) <= set(study["test_domains"])
        },
        "seed": study["seed"],
        "test_fraction": study["test_fraction"],
    }
    if study["retention"]:
        results["retention"] = list(study["retention"])
    run_on_main(report_continual, args=[results, folder])
    return results


def heard_with(name, study):
    """The window of a test, in seconds, where the study's models have one."""
    if "test_window" not in study:
        return {}
    # The original was never trained with less than 30 seconds
    return {"window": 30 if name == ORIGINAL else study["test_window"]}


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
        **heard_with(model.name, study),
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
