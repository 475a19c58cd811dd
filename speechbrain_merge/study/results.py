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
from speechbrain_merge.records.written_check import read_written, with_check
from speechbrain_merge.study.counted import amount, counted, measured
from speechbrain_merge.study.nodes import ORIGINAL

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
    },
    {"on": listed(text())},
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


def results_text(results: Mapping) -> str:
    """The content of ``results.json``.

    Arguments
    ---------
    results : dict
        See the module.

    Returns
    -------
    str
    """
    text = json.dumps(with_check(results), indent=1, ensure_ascii=False)
    return text + "\n"


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
        When it is no results file of this version, or was changed since it was
        written, naming it.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = read_written(path)
    except RecordError as error:
        raise RecordError(
            f"{error}. Run the study again to write it anew."
        ) from None
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
    if not path.is_file():
        return {}
    return _times(read_written(path), str(path))


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
    write_whole(path, json.dumps(with_check(known), indent=1) + "\n")


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
