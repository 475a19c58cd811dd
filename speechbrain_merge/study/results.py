"""The results of a study as plain data, from which everything is drawn.

``results.json`` holds counts, and nothing that differs between two runs of the
same study; times are in ``times.json`` beside it::

    {"schema": 2, "metric": "WER",
     "domains": [...], "tests": [...], "retention": [...], "means": {...},
     "modes": ["usual"], "seeds": [1986],
     "rows": [
         {"name": "aode", "title": "AoDE", "group": "merge", "kind": "merge",
          "domains": [], "parents": ["child_l2", "digits"],
          "trainings": ["child_l2", "digits"],
          "sets": {"1986": {"usual": {"digits": {
              "errors": 9, "words": 100, "utterances": 40, "buckets": {...},
              "scores": "scores/digits-0f3c….jsonl"}}}},
          "about": {"1986": {"steps": 40}}},        trials, method, chosen …
         …],
     "models": {...}            every node that is no row: kind and parents
     "sequences": [...], "comparisons": [...], "barriers": {...},
     "continual": {...}}                      with ``continual`` in the study

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.evaluation import backward_transfer, forward_transfer
from speechbrain_merge.records.checked import (
    anything,
    either,
    fields,
    listed,
    mapped,
    number,
    optional,
    some,
    text,
    truth,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.study.comparison import compare_models
from speechbrain_merge.study.continual import continual_results
from speechbrain_merge.study.counted import amount, counted, measured
from speechbrain_merge.study.graph import trainings_behind
from speechbrain_merge.study.nodes import ORIGINAL
from speechbrain_merge.study.sequences import sequence_of
from speechbrain_merge.study.testing import speakers
from speechbrain_merge.study.trainings import without_folder

logger = get_logger(__name__)

SCHEMA = 2

MOST_SEEDS = 10_000
"""Seeds of a study times its modes: each has a table of its own."""

_about = fields(
    {},
    {
        "candidates": optional(listed(anything())),
        "selected": optional(listed(anything())),
        "value": optional(measured),
        "chosen": optional(mapped(anything())),
        "trials": optional(listed(anything())),
        "steps": amount,
    },
)
_row = fields(
    {
        "name": text(),
        "title": text(),
        "group": text(),
        "kind": text(),
        "domains": listed(text()),
        "sets": mapped(mapped(mapped(counted))),
        "about": mapped(_about),
        "parents": listed(text()),
        "trainings": listed(text()),
    },
)
_model = fields(
    {
        "name": text(),
        "title": text(),
        "kind": text(),
        "parents": listed(text()),
        "about": mapped(_about),
    }
)
_pair = fields(
    {
        "names": listed(text()),
        "titles": listed(text()),
        "mode": text(),
        "difference": measured,
        "low": measured,
        "high": measured,
        "blocks": whole(0),
        "p": number(0),
        "holm": number(0),
    }
)
_comparisons = fields(
    {},
    {
        "pairs": listed(_pair),
        "best": mapped(mapped(fields({"name": text(), "significant": truth}))),
    },
)
_sequence = fields(
    {
        "name": text(),
        "domains": listed(text()),
        "backward": measured,
        "forward": measured,
    }
)
_results = fields(
    {
        "metric": text(),
        "domains": listed(text()),
        "tests": some(text()),
        "modes": some(text()),
        "seeds": some(whole(0)),
        "rows": listed(_row),
        "models": mapped(_model),
    },
    {
        "comparisons": _comparisons,
        "sequences": listed(_sequence),
        "retention": optional(listed(text())),
        "means": mapped(listed(text())),
    },
)
_times = mapped(
    mapped(
        fields(
            {},
            {
                "seconds": optional(amount),
                "interrupted": truth,
                # of a search, or their number in what a merge cost
                "trials": either(listed(mapped(anything())), whole(0)),
                "savings": mapped(anything()),
            },
        )
    )
)


def gather(study, makers: Mapping, found: Mapping) -> dict:
    """The results of a study as plain data.

    Arguments
    ---------
    study : Study
        The study.
    makers : dict
        Seed to Maker.
    found : dict
        (Name, seed) to the counts of a model, and ("sequence", name, seed) to
        those of a sequence.

    Returns
    -------
    dict
        See the module.
    """
    wanted = study.wanted()
    seeds = list(wanted)
    plan = _of_every_seed(wanted)
    by_name = {node.name: node for node in plan}
    rows, others, times = [], {}, {}
    for node in plan:
        made = {seed: makers[seed].made[node.name] for seed in seeds}
        times[node.name] = {
            str(seed): {
                "seconds": one.seconds,
                "interrupted": one.interrupted,
                **_seconds(one.about),
            }
            for seed, one in made.items()
        }
        described = {
            "name": node.name,
            "title": node.title,
            "group": node.group,
            "kind": node.kind,
            "domains": list(getattr(node, "domains", ())),
            "parents": list(node.parents),
            "trainings": trainings_behind(node.name, by_name),
            "select_on": list(getattr(node, "select_on", ())),
            # it looks at the transcripts
            "bound": getattr(node, "how", None) == "oracle",
            "about": {
                # a study may be moved
                str(seed): without_folder(
                    _without_seconds(one.about), study.folder
                )
                for seed, one in made.items()
            },
        }
        if not node.row or node.tests == ():
            others[node.name] = described
            continue
        described["sets"] = {
            str(seed): found[node.name, seed] for seed in seeds
        }
        rows.append(described)
    results = {
        "schema": SCHEMA,
        "metric": study.metric,
        "domains": list(study.domains),
        "tests": list(study.tests),
        "retention": study.retention,
        "means": study.means,
        "modes": list(study.modes),
        "seeds": seeds,
        "rows": rows,
        "models": others,
        "sequences": _sequences(plan, found, seeds, by_name),
    }
    if study.continual:
        results["continual"] = continual_results(
            study.continual, plan, found, seeds, results["modes"][0]
        )
    test_sets = makers[seeds[0]].run.test_sets
    results["comparisons"] = compare_models(results, study, speakers(test_sets))
    run_on_main(write_times, args=[study.folder, times])
    return json.loads(json.dumps(results, default=str))


def _of_every_seed(wanted):
    """The nodes that all seeds have; it says which only some have."""
    plans = list(wanted.values())
    common = set.intersection(*({node.name for node in p} for p in plans))
    others = {
        node.name: None for p in plans for node in p if node.name not in common
    }
    if others:
        logger.warning(
            f"{', '.join(others)}: made for some of the seeds "
            f"{', '.join(map(str, wanted))} only, and so not in the results."
        )
    return [node for node in plans[0] if node.name in common]


def write_results(folder, results: Mapping) -> None:
    """Writes ``results.json``, whole.

    Arguments
    ---------
    folder : str or Path
        The study's folder.
    results : dict
        See the module.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_whole(Path(folder) / "results.json", text)


def read_results(path) -> dict:
    """Reads and checks ``results.json``.

    Arguments
    ---------
    path : str or Path
        The file, or the folder of a study.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        When it is no results file of this version, naming it.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    results = read_json(path)
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} is of schema {shown(schema)}, and this version reads "
            f"schema {SCHEMA}: run the study again to write it anew."
        )
    results = _results(results, str(path))
    tables = len(results["seeds"]) * len(results["modes"])
    if tables > MOST_SEEDS:
        raise RecordError(
            f"{path}: {len(results['seeds'])} seeds in "
            f"{len(results['modes'])} modes are {tables} tables; expected "
            f"{MOST_SEEDS} at most"
        )
    results["comparisons"] = {
        "pairs": [],
        "best": {},
        **results.get("comparisons", {}),
    }
    for row in results["rows"]:
        for seed in map(str, results["seeds"]):
            for mode in results["modes"]:
                if seed not in row["about"] or mode not in row["sets"].get(
                    seed, {}
                ):
                    raise RecordError(
                        f"{path}: row {shown(row['name'])} has no seed {seed}, "
                        f"or not that in mode {shown(mode)}"
                    )
    return results


def read_times(folder) -> dict:
    """Reads ``times.json``.

    Arguments
    ---------
    folder : str or Path
        The study's folder.

    Returns
    -------
    dict
        Model to seed to what is known; empty where there is no file.
    """
    path = Path(folder) / "times.json"
    return _times(read_json(path), str(path)) if path.is_file() else {}


def write_times(folder, times: Mapping) -> None:
    """Adds how long steps took to ``times.json``.

    Arguments
    ---------
    folder : str or Path
        The study's folder.
    times : dict
        Model to seed to seconds.
    """
    path = Path(folder) / "times.json"
    known = read_times(folder)
    for name, seeds in times.items():
        known.setdefault(name, {}).update(seeds)
    write_whole(path, json.dumps(known, indent=1) + "\n")


def flat(
    results: Mapping,
    mode: Optional[str] = None,
    seeds: Optional[Sequence] = None,
) -> dict:
    """Results of one mode with the counts of the seeds added up.

    Tables and pictures of a single table (``report/results.py``) are drawn
    from it.

    Arguments
    ---------
    results : dict
        See the module.
    mode : str, optional
        The mode; None: all, as sets of their own.
    seeds : list, optional
        Only those seeds.

    Returns
    -------
    dict
        See ``report/results.py``. Rows that were not tested on all sets are
        left out.
    """
    modes = results["modes"] if mode is None else [mode]
    seeds = [str(s) for s in (results["seeds"] if seeds is None else seeds)]
    named = {
        (one, name): name if len(modes) == 1 else f"{name}, {one}"
        for one in modes
        for name in results["tests"]
    }
    rows = []
    for row in results["rows"]:
        sets = {
            title: _added([row["sets"][s][one].get(name) for s in seeds])
            for (one, name), title in named.items()
        }
        if None in sets.values():
            continue
        about = row["about"][seeds[0]]
        rows.append(
            {
                "name": row["title"],
                "group": "generalist"
                if row["name"] == ORIGINAL
                else row["group"],
                "domains": row["domains"],
                "sets": sets,
                "chosen": about.get("chosen"),
            }
        )
    inside = [
        title for (_, n), title in named.items() if n in results["domains"]
    ]
    made = {
        "metric": results["metric"],
        "in_domain": inside,
        "test_domains": list(named.values()),
        "rows": rows,
    }
    titles = {row["name"]: row["title"] for row in results["rows"]}
    best = results.get("comparisons", {}).get("best", {})
    if best and len(seeds) == len(results["seeds"]):
        # tested on all seeds together: a single one has no test of its own
        made["significant"] = {
            title: titles.get(found["name"]) if found["significant"] else None
            for (one, name), title in named.items()
            if (found := best.get(one, {}).get(name)) is not None
        }
    if results.get("retention") is not None:
        made["retention"] = [
            title
            for (_, n), title in named.items()
            if n in results["retention"]
        ]
    return made


def _added(counts):
    """Counts of several seeds added up; None where one is missing."""
    if None in counts:
        return None
    added = {
        key: sum(each[key] for each in counts)
        for key in ("errors", "words", "utterances")
    }
    buckets = [_labels(each.get("buckets")) for each in counts]
    if None not in buckets and all(each == buckets[0] for each in buckets):
        added["buckets"] = {
            label: {
                key: sum(each["buckets"][label][key] for each in counts)
                for key in counts[0]["buckets"][label]
            }
            for label in counts[0]["buckets"]
        }
    return added


def _labels(buckets):
    """What is counted in which buckets; None without buckets."""
    if buckets is None:
        return None
    return {label: set(counted) for label, counted in buckets.items()}


def _sequences(plan, found, seeds, by_name):
    """Rates after each domain of a sequence, and the transfer between them."""
    sequences = []
    for node in plan:
        if ("sequence", node.name, seeds[0]) not in found:
            continue
        order = sequence_of(node, by_name).domains
        for seed in seeds:
            stages = found["sequence", node.name, seed]
            matrix = [[stage[d]["wer"] for d in order] for stage in stages]
            sequences.append(
                {
                    "name": node.title,
                    "seed": seed,
                    "domains": list(order),
                    "rates": matrix,
                    "backward": backward_transfer(matrix),
                    "forward": forward_transfer(matrix),
                }
            )
    return sequences


def _seconds(about):
    """The parts of a search that an interruption may change."""
    return {key: about[key] for key in ("savings", "trials") if about.get(key)}


def _without_seconds(about):
    """The description of a model without what differs from run to run.

    How much of a rejected trial was decoded depends on the order of batches,
    which a search learns anew after an interruption.
    """
    kept = {key: value for key, value in about.items() if key != "savings"}
    if "trials" in kept:
        kept["trials"] = [_outcome(trial) for trial in kept["trials"]]
    return kept


def _outcome(trial):
    """A trial and whether it was accepted, without its costs."""
    names = ["kind", "candidate", "members", "merged", "parameters", "step"]
    names += ["accepted", "best", "kept"]
    if trial.get("accepted") is not False:
        names += ["errors", "total", "value"]
    return {name: trial[name] for name in names if name in trial}
