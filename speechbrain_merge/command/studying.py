"""``speechbrain-merge study``: a study's tables, or how far it has come.

A study is run by its recipe (``python train.py study.yaml``), since only that
knows its data. What it found is in its folder, and is shown here without it.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

from speechbrain_merge.command.tables import number_cell, print_table
from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.once import known_record
from speechbrain_merge.report import text_table
from speechbrain_merge.study.continual import continual_rows
from speechbrain_merge.study.measures import measure_rows
from speechbrain_merge.study.page import write_page
from speechbrain_merge.study.results import read_results, read_times
from speechbrain_merge.study.tables import (
    comparison_rows,
    cost_rows,
    main_rows,
    sequence_rows,
    training_rows,
)

RECORDS = {
    "train": "seed-*/models/*/finished.json",
    "merge": "seed-*/merge/*/result.json",
    "align": "seed-*/aligned/*.json",
    "repair": "seed-*/repaired/*.json",
}
"""Where the record of each kind of model is, once it is made."""

FILES = ("align", "repair")
"""Kinds that have one file each, and no folder of their own."""


def run(options) -> dict:
    """The tables of a study, and what is made so far of an unfinished one."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give that of a study.")
    made, tested = progress(folder)
    if (folder / "results.json").is_file():
        results, times = read_results(folder), read_times(folder)
        found = {"folder": str(folder), **tables(results, times)}
        found["unreported"] = [
            each for each in made if not _is_reported(each, results)
        ]
        if options.page:
            found["page"] = str(write_page(folder))
        return found
    if not made and not tested:
        raise ValueError(
            f"{folder} is no folder of a study: it has neither results.json "
            f"nor {RECORDS['train']}."
        )
    if options.page:
        raise ValueError(
            f"{folder} has no results.json yet, of which the page is made: "
            f"{len(made)} models and {tested} tests are done. Let the study "
            "come to its end, or run it with `--only` what is there."
        )
    return {"folder": str(folder), "made": made, "tested": tested}


def tables(results: dict, times: dict) -> dict:
    """The tables of a study as plain data.

    Arguments
    ---------
    results : dict
        What ``read_results`` gave.
    times : dict
        What ``read_times`` gave.

    Returns
    -------
    dict
        ``metric``, ``seeds`` and ``tables``: a list, each with ``title``,
        ``header`` and ``rows`` of text; in asterisks is what is significantly
        better than the next best.
    """
    shown = []
    for mode in results["modes"] if results["rows"] else ():
        tested = f", tested {mode}" if len(results["modes"]) > 1 else ""
        rows = main_rows(results, mode, times)
        shown.append((results["metric"] + tested, rows))
        for name in _measures(results, mode):
            shown.append((name + tested, measure_rows(results, mode, name)))
    if "continual" in results:
        shown.append(("Learnt one after another", continual_rows(results)))
    if results.get("sequences"):
        shown.append(("Trained in turn", sequence_rows(results)))
    if results.get("comparisons", {}).get("pairs"):
        shown.append(("Compared", comparison_rows(results)))
    measured = any(
        key.endswith(" cost") for each in times.values() for key in each
    )
    if measured and results["rows"]:
        shown.append(("What merging cost", cost_rows(results, times)))
    trainings = training_rows(results, times)
    if trainings[1]:
        shown.append(("What training took", trainings))
    return {
        "metric": results["metric"],
        "seeds": results["seeds"],
        "tables": [
            {
                "title": title,
                "header": list(header),
                "rows": [list(map(str, row)) for row in rows],
            }
            for title, (header, rows) in shown
        ],
    }


def progress(folder: Path) -> tuple:
    """What a study has made so far.

    Arguments
    ---------
    folder : Path
        Of the study.

    Returns
    -------
    made : list of dict
        ``model``, ``seed``, ``kind`` and ``state`` ("done" or "begun"), with
        the ``seconds`` that it took, or None.
    tested : int
        How many sets were decoded.
    """
    made = []
    for kind, pattern in RECORDS.items():
        done = sorted(folder.glob(pattern))
        for path in done:
            seed = path.relative_to(folder).parts[0].partition("-")[2]
            name = path.stem if kind in FILES else path.parent.name
            advice = f"Delete {path if kind in FILES else path.parent}."
            record = None if kind == "merge" else known_record(path, advice)
            seconds = None if record is None else record["seconds"]
            made.append(_model(name, seed, kind, "done", seconds))
        if kind in FILES:
            continue
        finished = {path.parent for path in done}
        for home in sorted(folder.glob(pattern.rpartition("/")[0])):
            if home.is_dir() and home not in finished:
                seed = home.relative_to(folder).parts[0].partition("-")[2]
                made.append(_model(home.name, seed, kind, "begun", None))
    return made, len(list((folder / "scores").glob("*.json")))


def show(found):
    """Prints the tables, or how far the study has come."""
    for table in found.get("tables", ()):
        header, *rows = [
            [printable(cell) for cell in row]
            for row in (table["header"], *table["rows"])
        ]
        print(f"{printable(table['title'])}:\n")
        print(f"{text_table(header, rows)}\n")
    models = found["made"] if "made" in found else found["unreported"]
    if models:
        if "made" not in found:
            print("Not in the results yet:\n")
        print_table(
            ["model", "seed", "kind", "state", "min"],
            [
                [
                    each["model"],
                    each["seed"],
                    each["kind"],
                    each["state"],
                    number_cell(_minutes(each["seconds"]), "{:.1f}"),
                ]
                for each in models
            ],
        )
        print()
    if "made" in found:
        done = sum(each["state"] == "done" for each in models)
        print(
            f"No results yet: {done} models are made, {len(models) - done} "
            f"are begun, {found['tested']} tests are done. What is left is "
            "shown by the recipe, `python train.py STUDY.yaml --plan True`."
        )
    elif "page" in found:
        print(found["page"])
    else:
        seeds = ", ".join(map(str, found["seeds"]))
        print(f"Seeds: {seeds}. From {found['folder']}/results.json.")


def _measures(results, mode):
    """The measures that all that was tested has."""
    sets = [
        counts
        for row in results["rows"]
        for modes in row["sets"].values()
        for counts in modes.get(mode, {}).values()
        if counts
    ]
    names = sets[0].get("measures", {}) if sets else {}
    return [
        name
        for name in names
        if all(name in counts.get("measures", {}) for counts in sets)
    ]


def _model(name, seed, kind, state, seconds):
    """One model of a study."""
    return {
        "model": name,
        "seed": seed,
        "kind": kind,
        "state": state,
        "seconds": seconds,
    }


def _minutes(seconds):
    """Seconds in minutes; None stays None."""
    return None if seconds is None else seconds / 60


def _is_reported(made, results):
    """Whether the results have a model."""
    known = {row["name"] for row in results["rows"]} | set(results["models"])
    seeds = set(map(str, results["seeds"]))
    return made["model"] in known and made["seed"] in seeds
