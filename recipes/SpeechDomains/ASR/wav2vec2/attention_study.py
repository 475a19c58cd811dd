"""Attention of another Transformer in a model of sound: with and without training.

The experiments of Sundar et al. (arXiv 2312.14378), on one or several domains.
A study is a YAML that names how one model is trained (``train.yaml``) and

* ``target``: the run that trains the model that is merged into,
* ``merge_stages``: what is merged into it without training. Each stage runs on
  each domain: its coefficients are chosen on the domain's development set,
* ``similarity``: what tells how alike two models are, layer by layer; ``similar_stage``
  then merges the ``similar_numbers`` most similar ones,
* ``fine_tuning``: runs on each domain, from the target or from a merge, with
  λ fixed or learned.

All of it is evaluated on the test set of its domain. Each step leaves its
result under the results folder, and what is there is not done again: a study
that was stopped goes on where it was. Studies that share a results folder share
the target and the merges.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from functools import partial
from pathlib import Path

from attention_report import report
from records import once
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.search import GridSearch
from speechbrain_merge.weights import digest

logger = get_logger(__name__)


def run_study(study, run_opts, build):
    """Trains, merges, fine-tunes, evaluates and reports.

    Arguments
    ---------
    study : dict
        The study's YAML.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        ``build(hparams_file, overrides, run_opts)`` prepares a run as
        ``train.py`` does, and gives its Brain, ``fit`` (which trains it) and
        its ``sets``.

    Returns
    -------
    results : dict
        As in ``results.json``.
    """
    folder = Path(study["results_folder"])
    metric = study.get("metric", "WER")
    target = train_run(study, study["target"], run_opts, build)
    overrides = {
        **study["model_overrides"],
        "run_name": "merge",
        "domains": list(study["domains"]),
    }
    brain, _, sets = build(study["model_hparams"], overrides, run_opts)
    merges, layers, rows = {}, {}, []
    for domain in study["domains"]:
        rows.append({"name": "target", "domain": domain, "source": target.path})
        merges[domain] = {}
        if "similarity" in study:
            brain.load_weights(target)
            layers[domain] = study["similarity"](
                brain.modules.encoder,
                study["source_folder"],
                sets["train"],
                domain,
                loader_kwargs=brain.hparams.valid_loader_kwargs,
            )
        for name, stage in stages(study, layers.get(domain, [])):
            result = brain.merge(
                stage(base=str(target.path), name=f"{name}-{domain}"),
                sets["valid_sets"][domain],
                brain.hparams.valid_loader_kwargs,
            )
            merges[domain][name] = result
            rows.append({"name": name, "domain": domain, "source": result.path})
    ratios = {}
    for run in tuning_runs(study, target, merges):
        tuned = train_run(study, run, run_opts, build)
        history = [
            {
                "step": candidate.epoch,
                "coefficients": candidate.meta["ratios"],
            }
            for candidate in read_pool(tuned.path.parent)
            if "ratios" in candidate.meta
        ]
        if history:
            # of several seeds the first
            ratios.setdefault(run["domains"][0], history)
        rows.append(
            {
                "name": run["run_name"].split("-")[0],
                "domain": run["domains"][0],
                "seed": run["seed"],
                "source": tuned.path,
            }
        )
    for row in rows:
        row.update(evaluate_once(brain, row, sets["test_sets"], folder))
        row["source"] = str(row["source"])
    results = {
        "domains": list(study["domains"]),
        "source": str(study["source_folder"]),
        "metric": metric,
        "layers": {
            domain: [distance.to_dict() for distance in distances]
            for domain, distances in layers.items()
        },
        "merges": {
            domain: {
                name: {
                    "chosen": result.coefficients,
                    "value": result.value,
                    "trials": result.trials,
                    "seconds": round(result.seconds, 1),
                }
                for name, result in stages.items()
            }
            for domain, stages in merges.items()
        },
        "ratios": ratios,
        "compare": study.get("compare", []),
        "rows": rows,
    }
    run_on_main(report, args=[results, folder])
    return results


def stages(study, distances):
    """The merge stages of one domain, which still lack their base and name.

    Arguments
    ---------
    study : dict
        With ``merge_stages``, and perhaps ``similar_stage``, which is called
        with a search over the most similar layers, and ``similar_numbers``.
    distances : list of LayerDistances
        What ``similar_layers`` found on this domain.

    Yields
    ------
    name : str
    stage : callable
    """
    yield from study["merge_stages"].items()
    for found in distances:
        layers = [found.closest(k) for k in study["similar_numbers"]]
        grid = {"layers": layers, "ratio": study["layer_ratios"]}
        yield (
            found.distance,
            partial(study["similar_stage"], search=GridSearch(grid=grid)),
        )


def tuning_runs(study, target, merges):
    """The runs that fine-tune, as overrides of the model's YAML.

    Arguments
    ---------
    study : dict
        Perhaps with ``fine_tuning``: name to what is special of its runs,
        ``start_from`` being ``target`` or the name of a merge stage.
    target : Candidate
        The model that was merged into.
    merges : dict
        Domain to name of a stage to its MergeResult.

    Yields
    ------
    run : dict
        ``run_name``, ``domains``, ``seed``, ``start_from`` and the rest.
    """
    for domain in study["domains"]:
        for name, settings in study.get("fine_tuning", {}).items():
            settings = dict(settings)
            start = settings.pop("start_from")
            known = {
                each: result.path for each, result in merges[domain].items()
            }
            known["target"] = target.path
            if start not in known:
                raise ValueError(
                    f"fine_tuning: {name} starts from '{start}', expected one "
                    f"of {sorted(known)}."
                )
            for seed in study["seeds"]:
                yield {
                    "run_name": f"{name}-{domain}-{seed}",
                    "domains": [domain],
                    "seed": seed,
                    "start_from": str(known[start]),
                    **study["fine_tuning_overrides"],
                    **settings,
                }


def train_run(study, run, run_opts, build):
    """Trains one model, unless it is trained.

    Arguments
    ---------
    study : dict
        The study's YAML.
    run : dict
        Overrides of the model's YAML, with ``run_name``.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        See ``run_study``.

    Returns
    -------
    Candidate
        The best of the run.

    Raises
    ------
    ValueError
        When the run was trained before with other settings.
    """
    overrides = {**study["model_overrides"], **run}
    pool = Path(study["pool_folder"]) / run["run_name"]
    settings = {
        name: value
        for name, value in overrides.items()
        if name not in ("results_folder", "start_from", "test_domains")
    }
    if run.get("start_from") is not None:
        settings["start_from"] = digest(run["start_from"])

    def fit():
        logger.info(f"Run {run['run_name']}")
        brain, fit, _ = build(study["model_hparams"], overrides, run_opts)
        fit()
        return {"steps": brain.optimizer_step}

    done = Path(study["results_folder"]) / run["run_name"] / "finished.json"
    once(done, settings, fit)
    metric = study.get("metric", "WER")
    return select(read_pool(pool), per_run="best", metric=metric)[0]


def evaluate_once(brain, row, test_sets, folder):
    """Evaluates a model on the test set of its domain, unless it was.

    Arguments
    ---------
    brain : ASR
        Evaluates.
    row : dict
        ``name``, ``domain``, ``source`` and perhaps ``seed``.
    test_sets : dict
        Domain to test set.
    folder : Path
        The results folder.

    Returns
    -------
    dict
        ``rates``, and ``scores``: the file with those of each utterance.
    """
    domain = row["domain"]
    tests = json.dumps(test_sets[domain].data, sort_keys=True, default=str)
    settings = {
        "weights": digest(row["source"]),
        "tests": hashlib.sha256(tests.encode()).hexdigest(),
    }
    label = "-".join(
        str(row[word]) for word in ("name", "domain", "seed") if word in row
    )
    target = folder / "evaluated" / label

    def evaluate():
        brain.use_weights(row["source"])
        rates = brain.evaluate_domains({domain: test_sets[domain]}, target)
        return {
            "rates": rates[domain],
            "scores": str(target / f"{domain}.jsonl"),
        }

    done = target / "finished.json"
    return once(done, settings, evaluate, again=True)["outcome"]
