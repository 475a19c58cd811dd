"""Several experts, their merges, and how all of them do on every domain.

``train.py`` trains one expert from one YAML. A study is a YAML that names that
one, says which experts to train from it and which stages merge them; from it
``train.py`` runs everything here, one after the other: training runs, merge
stages, evaluations, tables and figures. Each step leaves its result under the
results folder, and a step whose result is there is not run again. So a study
that was stopped goes on where it was, and one that is finished takes seconds.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
from pathlib import Path

from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from study_models import compare_rows, cost_once, export_once, transcribe_one
from study_report import report
from study_steps import evaluate_once, train_run

from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.pool import read_pool, select

logger = get_logger(__name__)


def run_study(study, run_opts, build):
    """Trains, merges, evaluates and reports.

    Arguments
    ---------
    study : dict
        The study's YAML: ``experts``, ``merge_stages`` and the rest.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        ``build(hparams_file, overrides, run_opts)`` prepares a run as
        ``train.py`` does, and gives its Brain, ``fit`` (which trains it) and
        the selection and test sets by domain.

    Returns
    -------
    results : dict
        The rows of the table, as in ``results.json``.
    """
    folder = Path(study["results_folder"])
    chosen_methods(study)  # a misspelt name is better found before training
    runs = list(planned_runs(study))
    everything = runs + list(joint_runs(study))
    for number, run in enumerate(everything, start=1):
        logger.info(f"Run {number} of {len(everything)}: {run['run_name']}")
        train_run(study, run, run_opts, build)

    domains = []
    for run in runs:
        domains += [d for d in run["domains"] if d not in domains]
    overrides = {
        **study["expert_overrides"],
        "run_name": "merge",
        "domains": domains,
        "seed": study["seed"],
    }
    brain, _, valid_sets, test_sets = build(
        study["expert_hparams"], overrides, run_opts
    )
    merges, costs = {}, {}
    for stage, result in merge_all(study, brain, runs, valid_sets):
        merges[result.name] = result
        if "methods" in study and if_main_process():
            costs[result.name] = cost_once(stage, result, folder)
    rows = []
    for row in models(study, merges, everything):
        # The generalist was never trained with less than 30 seconds, so that
        # less would not be its own error rate
        row["window"] = study["test_window"]
        if row["group"] == "generalist":
            row["window"] = 30
        row["sets"] = evaluate_once(brain, row, test_sets, folder)
        if row["name"] in costs:
            row["cost"] = costs[row["name"]]
        rows.append(row)
    results = {
        "in_domain": domains,
        "test_domains": list(study["test_domains"]),
        "rows": rows,
        "merges": {
            name: {
                "candidates": result.candidates,
                "selected": result.selected,
                "value": result.value,
                "trials": result.trials,
                "savings": result.savings,
                "seconds": round(result.seconds, 1),
            }
            for name, result in merges.items()
        },
        "runs": everything,
        "seed": study["seed"],
    }
    if study.get("reference"):
        results["reference"] = study["reference"]
        if if_main_process():
            compare_rows(rows, study["reference"], folder / "evaluated")
    run_on_main(report, args=[results, folder])
    exported = study.get("export")
    if exported and if_main_process():
        source = merges[exported].path
        export_once(source, brain.hparams.whisper, folder / "exported", results)
        transcribe_one(folder / "exported", test_sets)
    return results


def planned_runs(study):
    """The training runs of a study, as overrides of the expert's YAML.

    Arguments
    ---------
    study : dict
        With ``experts`` and perhaps a ``sampler``, whose every draw is a run
        of every expert.

    Yields
    ------
    run : dict
        ``run_name``, ``domains``, ``seed`` and what the sampler drew.
    """
    draws = list(study.get("sampler") or [{"seed": study["seed"]}])
    for domains in study["experts"]:
        domains = [domains] if isinstance(domains, str) else list(domains)
        for draw in draws:
            draw = dict(draw)
            names = ["+".join(domains), draw.pop("name", None)]
            name = "-".join(filter(None, names))
            yield {"run_name": name, "domains": domains, **draw}


def joint_runs(study):
    """Runs on several domains that merges are compared with, not merged.

    Arguments
    ---------
    study : dict
        Perhaps with ``joint``: overrides of the expert's YAML, with ``domains``.

    Yields
    ------
    run : dict
        As of ``planned_runs``.
    """
    if study.get("joint"):
        yield {"run_name": "joint", "seed": study["seed"], **study["joint"]}


def merge_all(study, brain, runs, valid_sets):
    """Runs the merge stages of a study.

    Arguments
    ---------
    study : dict
        With ``merge_stages``: name to stage. A stage by ``!name:`` is called
        once for each run, with its candidates and a name. Or with ``methods``:
        name to what ``method_stage`` is called with, besides that name and the
        candidates of all runs.
    brain : ASR
        Merges and scores.
    runs : list of dict
        The training runs.
    valid_sets : dict
        Domain to selection set.

    Yields
    ------
    stage : MergeStage
    result : MergeResult
    """
    stages = []
    for name, stage in study["merge_stages"].items():
        if not isinstance(stage, functools.partial):
            stages.append(stage)
            continue
        stages += [
            stage(
                candidates=[Path(study["pool_folder"]) / run["run_name"]],
                name=f"{name}-{run['run_name']}",
            )
            for run in runs
        ]
    experts = [Path(study["pool_folder"]) / run["run_name"] for run in runs]
    for name, settings in chosen_methods(study).items():
        stages.append(
            study["method_stage"](name=name, candidates=experts, **settings)
        )
    for number, stage in enumerate(stages, start=1):
        logger.info(f"Merge {number} of {len(stages)}: {stage.name}")
        if stage.needs_statistics:
            collect_statistics(
                brain,
                stage,
                {
                    run["run_name"]: valid_sets[run["domains"][0]]
                    for run in runs
                    if len(run["domains"]) == 1
                },
                brain.hparams.valid_loader_kwargs,
            )
        yield (
            stage,
            brain.merge(stage, valid_sets, brain.hparams.valid_loader_kwargs),
        )


def chosen_methods(study):
    """The methods that a study compares: all, or those that ``only`` names."""
    methods = study.get("methods", {})
    names = study.get("only") or list(methods)
    unknown = [name for name in names if name not in methods]
    if unknown:
        raise ValueError(
            f"`only` names {unknown}, and `methods` has {list(methods)}."
        )
    return {name: methods[name] for name in methods if name in names}


def models(study, merges, runs):
    """All that is evaluated: the generalist, each expert, each merge.

    Arguments
    ---------
    study : dict
        With ``pool_folder``.
    merges : dict
        Name to MergeResult.
    runs : list of dict
        The training runs.

    Yields
    ------
    row : dict
        ``name``, ``group``, ``source``; of an expert its ``domains``, of a
        merge what its search has ``chosen``.
    """
    best = {
        candidate.run: candidate
        for candidate in select(read_pool(study["pool_folder"]), per_run="best")
    }
    yield {
        "name": "generalist",
        "group": "generalist",
        "source": str(best[runs[0]["run_name"]].base),
    }
    for run in runs:
        name = run["run_name"]
        yield {
            "name": name,
            "group": "joint" if name == "joint" else "expert",
            "domains": run["domains"],
            "source": str(best[name].path),
        }
    for name, result in merges.items():
        yield {
            "name": name,
            "group": "merge",
            "source": str(result.path),
            "chosen": result.coefficients,
        }
