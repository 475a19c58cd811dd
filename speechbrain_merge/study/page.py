"""``report.html``: the results of a study as one page that can be passed on.

Made of ``results.json`` alone; pictures, transcripts (``scores/``) and times
(``times.json``) are shown where they are beside it.

Authors
 * The speechbrain_merge authors 2026
"""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.own_outputs import write_outputs
from speechbrain_merge.report.page import data_address, render_page
from speechbrain_merge.study.results import read_results, read_times
from speechbrain_merge.study.tables import comparison_rows, main_rows
from speechbrain_merge.study.testing import scores_of, scores_path

logger = get_logger(__name__)

# Utterances of a set that are kept, and transcripts of the whole page: some
# 200 bytes each. A page that takes minutes to open helps nobody.
UTTERANCES = 200
TRANSCRIPTS = 40_000

PICTURES = {
    "domains": "Error rates of all models on all sets",
    "experts": "Error rates of the experts on all sets",
    "forgetting": "Forgetting against the mean error rate",
    "pareto": "Error rates inside and outside the domains",
    "merge_curve": "Error rate on the selection sets, trial by trial",
}


def write_page(folder, title: Optional[str] = None) -> Path:
    """Writes ``report.html`` beside the results of a study.

    Arguments
    ---------
    folder : str or Path
        The folder of a study, with its ``results.json``.
    title : str, optional
        The title of the page; by default the name of the folder.

    Returns
    -------
    path : Path
        The page.

    Raises
    ------
    ValueError
        When there are no results of this version.
    """
    folder = Path(folder)
    results = read_results(folder)
    data = page_data(folder, results)
    text = render_page(title or folder.resolve().name, data)
    write_outputs(folder, {"report.html": text})
    return folder / "report.html"


def page_data(folder: Path, results: Mapping) -> dict:
    """What the page shows, as plain data.

    Arguments
    ---------
    folder : Path
        The folder of a study.
    results : dict
        See ``study/results.py``.

    Returns
    -------
    data : dict
        ``tables`` by mode and seed (``all`` for the mean), ``compared``,
        ``pictures``, ``utterances`` by mode, seed and set, ``tree``.
    """
    times = read_times(folder)
    seeds, rows = results["seeds"], results["rows"]
    tested = ", ".join(results["tests"])
    plural = "seeds" if len(seeds) > 1 else "seed"
    pairs = results["comparisons"]["pairs"]
    names = [row["name"] for row in rows]
    pair = list(pairs[0]["names"]) if pairs else [*names[:1], *names[-1:]]
    return {
        "summary": (
            f"{results['metric']} of {len(rows)} models on {tested}; {plural} "
            f"{', '.join(map(str, seeds))}."
        ),
        "modes": results["modes"],
        "seeds": seeds,
        "sets": results["tests"],
        "titles": {row["name"]: row["title"] for row in rows},
        "pair": pair,
        "tables": {
            mode: {
                str(seed): _table(
                    main_rows({**results, "seeds": wanted}, mode, times),
                    marks=seed == "all",
                )
                for seed, wanted in _choices(seeds)
            }
            for mode in results["modes"]
        },
        "compared": _table(comparison_rows(results)),
        "pictures": [
            {
                "title": PICTURES.get(path.stem, path.stem.replace("_", " ")),
                "source": data_address(path),
            }
            for path in sorted(folder.glob("*.png"))
            # a link may lead to anything, and a pipe never ends
            if path.is_file() and not path.is_symlink()
        ],
        "utterances": _utterances(folder, results),
        "tree": family_tree(results, times),
    }


def _choices(seeds) -> Iterator[tuple]:
    """What the page offers: all seeds together, and each."""
    yield "all", seeds
    if len(seeds) > 1:
        for seed in seeds:
            yield seed, [seed]


def _table(table, marks=True) -> dict:
    """A table as the page wants it: bold cells are the best of a column."""
    header, rows = table
    shown = []
    for row in rows:
        cells: list = []
        for title, cell in zip(header, row):
            entry = {"text": cell.strip("*")}
            if marks and cell.startswith("**"):
                entry["best"] = True
            if title == "told apart" and cell == "yes":
                entry["told"] = True
            cells.append(entry)
        shown.append(cells)
    return {"header": list(header), "rows": shown}


def _utterances(folder, results) -> dict:
    """Transcripts by mode, seed and set, of what the models differ on most."""
    rows = results["rows"]
    places = [
        (mode, str(seed), name)
        for mode in results["modes"]
        for seed in results["seeds"]
        for name in results["tests"]
    ]
    limit = TRANSCRIPTS // max(1, len(places) * len(rows))
    limit = max(1, min(UTTERANCES, limit))
    shown: dict = {}
    for mode, seed, name in places:
        scores = {}
        for row in rows:
            counts = row["sets"].get(seed, {}).get(mode, {}).get(name)
            path = None if counts is None else scores_path(folder, counts)
            if path is not None and not path.is_file():
                logger.warning(
                    f"{path} is gone, so the page shows no transcripts of "
                    f"'{row['title']}' on {name}."
                )
            elif path is not None:
                scores[row["name"]] = {
                    one.id: one for one in scores_of(folder, counts)
                }
        if scores:
            shown.setdefault(mode, {}).setdefault(seed, {})[name] = _differing(
                scores, limit
            )
    return shown


def _differing(scores, limit) -> dict:
    """The utterances of a set on which models differ most."""
    everything = {name for of_model in scores.values() for name in of_model}

    def difference(name):
        """How far apart the models are, and then the order of names."""
        errors = [of[name].errors for of in scores.values() if name in of]
        return min(errors) - max(errors), str(name)

    chosen = sorted(everything, key=difference)[:limit]
    shown = []
    for name in chosen:
        of_models = {
            model: of[name] for model, of in scores.items() if name in of
        }
        reference = next(iter(of_models.values())).reference
        shown.append(
            {
                "id": str(name),
                "reference": list(reference),
                "models": {
                    model: {
                        "words": list(score.hypothesis),
                        "steps": score.operations,
                        "errors": score.errors,
                    }
                    for model, score in of_models.items()
                },
            }
        )
    return {"total": len(everything), "shown": shown}


def family_tree(results: Mapping, times: Mapping) -> dict:
    """Which model came of which, by what, and at what cost.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    tree : dict
        ``nodes``, each with its ``parents`` and what is known ``about`` it,
        and ``columns`` of names: a model stands to the right of all that it
        was made of.

    Example
    -------
    >>> def model(name, kind, *parents):
    ...     about = {"7": {"steps": 40}} if kind == "train" else {"7": {}}
    ...     return {
    ...         "name": name,
    ...         "title": name.upper(),
    ...         "kind": kind,
    ...         "parents": list(parents),
    ...         "about": about,
    ...     }
    >>> rows = [model("a", "train", "start"), model("m", "merge", "a", "start")]
    >>> results = {"rows": rows, "models": {"start": model("start", "given")}}
    >>> tree = family_tree(results, {"a": {"7": {"seconds": 90}}})
    >>> tree["columns"]
    [['start'], ['a'], ['m']]
    >>> tree["nodes"][0]["about"]
    [('kind', 'train'), ('made from', 'START'), ('steps', '40'), ('minutes', '1.5')]
    """
    models = {
        one["name"]: one
        for one in [*results["rows"], *results["models"].values()]
    }
    depths = _generations(models)
    columns: list = [[] for _ in range(1 + max(depths.values(), default=-1))]
    for name in models:
        columns[depths[name]].append(name)
    titles = {name: one["title"] for name, one in models.items()}
    nodes = []
    for name, one in models.items():
        about = list(_about(one, titles, times.get(name, {})))
        nodes.append(
            {
                "name": name,
                "title": one["title"],
                "kind": one["kind"],
                "how": _how(one),
                "parents": one["parents"],
                "about": about,
            }
        )
    return {"nodes": nodes, "columns": columns}


def _generations(models) -> dict:
    """The longest way to each model from one that was not made of others."""
    depths: dict = {}
    for name in models:
        waiting = [name]
        while waiting:
            here = waiting[-1]
            parents = [p for p in models[here]["parents"] if p in models]
            if here not in depths:
                depths[here] = 0  # also ends a circle, in a file made by hand
                waiting += [p for p in parents if p not in depths]
                continue
            waiting.pop()
            depths[here] = 1 + max((depths[p] for p in parents), default=-1)
    return depths


def _how(one) -> str:
    """In a word or two, how a model was made."""
    about = next(iter(one["about"].values()), {})
    if one["kind"] == "merge":
        method = (about.get("method") or {}).get("name", "merge")
        members = about.get("selected") or one["parents"]
        return f"{method} of {len(members)}"
    if one["kind"] == "train" and "steps" in about:
        return f"trained, {about['steps']} steps"
    return one["kind"]


def _about(one, titles, times) -> Iterator[tuple]:
    """What is known of a model: words for the left and for the right."""
    yield "kind", one["kind"]
    if one["parents"]:
        yield (
            "made from",
            ", ".join(titles.get(name, name) for name in one["parents"]),
        )
    about = next(iter(one["about"].values()), {})
    several = len(one["about"]) > 1
    method = about.get("method")
    if isinstance(method, Mapping):
        yield (
            "method",
            ", ".join(
                str(value) if key == "name" else f"{key} {value}"
                for key, value in method.items()
                if value is not None
            ),
        )
    if about.get("selected") and about.get("candidates"):
        for seed, of_seed in one["about"].items():
            yield (
                f"members, seed {seed}" if several else "members",
                f"{len(of_seed['selected'])} of {len(of_seed['candidates'])}: "
                + ", ".join(titles.get(n, str(n)) for n in of_seed["selected"]),
            )
    values = [a.get("value") for a in one["about"].values()]
    if None not in values and values:
        yield (
            "on the selection sets",
            f"{statistics.fmean(values):.2f} %",
        )
    if about.get("chosen"):
        yield (
            "chosen",
            ", ".join(
                f"{key} {value}" for key, value in about["chosen"].items()
            ),
        )
    if about.get("trials"):
        yield "trials", str(len(about["trials"]))
    if "steps" in about:
        yield "steps", f"{about['steps']}"
    seconds = [
        seed["seconds"]
        for seed in times.values()
        if isinstance(seed, Mapping) and seed.get("seconds") is not None
    ]
    if seconds:
        yield "minutes", f"{statistics.fmean(seconds) / 60:.1f}"
