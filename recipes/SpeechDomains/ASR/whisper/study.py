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
import hashlib
import json
import os
import time
from pathlib import Path

from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_merge.export import export_whisper
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.report import (
    bucket_rows,
    markdown_table,
    plot_domains,
    plot_merge_curve,
    results_rows,
    text_table,
)
from speechbrain_merge.weights import digest, open_weights

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
    runs = list(planned_runs(study))
    for number, run in enumerate(runs, start=1):
        logger.info(f"Run {number} of {len(runs)}: {run['run_name']}")
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
    merges = {
        result.name: result
        for result in merge_all(study, brain, runs, valid_sets)
    }
    rows = []
    for row in models(study, merges):
        # The generalist was never trained with less than 30 seconds, so that
        # less would not be its own error rate
        row["window"] = study["test_window"]
        if row["group"] == "generalist":
            row["window"] = 30
        sets = evaluate_once(brain, row, test_sets, folder)
        rows.append({**row, "sets": sets})
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
        "runs": runs,
        "seed": study["seed"],
    }
    run_on_main(report, args=[results, folder])
    exported = study.get("export")
    if exported and if_main_process():
        source = merges[exported].path
        export_once(source, brain.hparams.whisper, folder / "exported")
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


def train_run(study, run, run_opts, build):
    """Trains one expert, unless it is trained.

    Arguments
    ---------
    study : dict
        The study's YAML.
    run : dict
        What ``planned_runs`` gave.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        See ``run_study``.

    Raises
    ------
    ValueError
        When the run was trained before with other settings.
    """
    overrides = {**study["expert_overrides"], **run}
    done = Path(study["results_folder"]) / run["run_name"] / "finished.json"
    settings = {
        name: value
        for name, value in overrides.items()
        if name != "results_folder"
    }
    if done.is_file():
        before = json.loads(done.read_text(encoding="utf-8"))["settings"]
        if before == json.loads(json.dumps(settings)):
            logger.info(f"Run {run['run_name']} is finished.")
            return
        changed = sorted(
            name
            for name in {*before, *settings}
            if before.get(name) != settings.get(name)
        )
        raise ValueError(
            f"{done} says that this run was trained with other settings "
            f"({', '.join(changed)}): choose another results_folder, or "
            f"delete {done.parent} and its candidates in "
            f"{study['pool_folder']}/{run['run_name']}."
        )
    started = time.perf_counter()
    brain, fit, _, _ = build(study["expert_hparams"], overrides, run_opts)
    fit()
    record = {
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
        "steps": brain.optimizer_step,
    }
    run_on_main(write_json, args=[done, record])


def merge_all(study, brain, runs, valid_sets):
    """Runs the merge stages of a study.

    Arguments
    ---------
    study : dict
        With ``merge_stages``: name to stage. A stage by ``!name:`` is called
        once for each run, with its candidates and a name.
    brain : ASR
        Merges and scores.
    runs : list of dict
        The training runs.
    valid_sets : dict
        Domain to selection set.

    Yields
    ------
    result : MergeResult
    """
    for name, stage in study["merge_stages"].items():
        if isinstance(stage, functools.partial):
            stages = [
                stage(
                    candidates=[Path(study["pool_folder"]) / run["run_name"]],
                    name=f"{name}-{run['run_name']}",
                )
                for run in runs
            ]
        else:
            stages = [stage]
        for each in stages:
            yield brain.merge(
                each, valid_sets, brain.hparams.valid_loader_kwargs
            )


def models(study, merges):
    """All that is evaluated: the generalist, each expert, each merge.

    Arguments
    ---------
    study : dict
        With ``pool_folder``.
    merges : dict
        Name to MergeResult.

    Yields
    ------
    row : dict
        ``name``, ``group`` and ``source``.
    """
    best = select(read_pool(study["pool_folder"]), per_run="best")
    yield {
        "name": "generalist",
        "group": "generalist",
        "source": str(best[0].base),
    }
    for candidate in best:
        yield {
            "name": candidate.run,
            "group": "expert",
            "source": str(candidate.path),
        }
    for name, result in merges.items():
        yield {"name": name, "group": "merge", "source": str(result.path)}


def evaluate_once(brain, row, test_sets, folder):
    """Evaluates a model on every domain, unless it was.

    Arguments
    ---------
    brain : ASR
        Evaluates.
    row : dict
        The model, from ``models``, and the ``window`` to hear it with.
    test_sets : dict
        Domain to test set.
    folder : Path
        The results folder.

    Returns
    -------
    dict
        Domain to its rates.
    """
    settings = {
        name: getattr(brain.hparams, name)
        for name in ("silence_step", "max_decode_ratio")
    }
    settings["window"] = row["window"]
    tests = {domain: data.data for domain, data in test_sets.items()}
    text = json.dumps([settings, tests], sort_keys=True, default=str)
    with open_weights(row["source"]) as weights:
        key = digest(weights) + hashlib.sha256(text.encode()).hexdigest()
    target = folder / "evaluated" / row["name"]
    # The same weights may have another name: two searches found the same
    for done in sorted(target.parent.glob("*/evaluated.json")):
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["key"] == key:
            return known["rates"]
    brain.use_weights(row["source"])
    brain.hparams.whisper.use_window(row["window"])
    rates = brain.evaluate_domains(test_sets, target)
    record = {"key": key, "rates": rates}
    run_on_main(write_json, args=[target / "evaluated.json", record])
    return rates


def report(results, folder):
    """Writes the results, their table and their pictures.

    Arguments
    ---------
    results : dict
        Everything that was found out.
    folder : Path
        Gets ``results.json``, ``results.md``, ``merge_curve.png`` and
        ``domains.png``.
    """
    write_json(folder / "results.json", results)
    table, buckets = results_rows(results), bucket_rows(results)
    lines = [markdown_table(*table), "", markdown_table(*buckets), ""]
    for name, merged in results["merges"].items():
        lines.append(
            f"- **{name}**: {len(merged['selected'])} of "
            f"{len(merged['candidates'])} candidates" + describe_search(merged)
        )
    lines += ["", f"Seed {results['seed']}; training runs:", ""]
    for run in results["runs"]:
        settings = ", ".join(f"{key} {value}" for key, value in run.items())
        lines.append(f"- {settings}")
    text = "\n".join(lines) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    searches = {
        name: merged["trials"]
        for name, merged in results["merges"].items()
        if merged["trials"]
    }
    if searches:
        plot_merge_curve(searches, folder / "merge_curve.png")
    plot_domains(results, folder / "domains.png")
    print(f"\n{text_table(*table)}\n\n{text_table(*buckets)}\n")
    for line in lines:
        if line.startswith("- **"):
            print(line.replace("**", ""))
    print(f"\nTables and pictures are in {folder}.")


def describe_search(merged):
    """What a search found and what racing saved, in words."""
    if merged["value"] is None:
        return ""
    saved = merged["savings"]
    words = f", {merged['value']:.1f} % WER on the selection sets"
    if saved.get("skipped_utterances"):
        words += (
            f"; racing saved {100 * saved['fraction']:.0f} % of the decoding"
        )
    return words


def export_once(source, whisper, folder):
    """Exports merged weights, unless these are exported."""
    mark, key = folder / "source.json", digest(source)
    if mark.is_file() and json.loads(mark.read_text())["digest"] == key:
        return
    export_whisper(source, whisper, folder)
    write_json(mark, {"source": str(source), "digest": key})


def transcribe_one(folder, test_sets):
    """Has SpeechBrain's own interface transcribe a recording, as a check."""
    from speechbrain.inference.ASR import WhisperASR

    domain, data = list(test_sets.items())[-1]
    row = data.data[data.data_ids[len(data.data_ids) // 2]]
    model = WhisperASR.from_hparams(source=str(folder), savedir=str(folder))
    segments = model.transcribe_file(row["wav"])
    words = " ".join(segment.words for segment in segments).strip()
    print(f"\nWhisperASR hears ({domain}): {words}")
    print(f"The speaker says ({domain}): {row['wrd']}")


def write_json(path, content):
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)
