"""The trials of a study's searches: sweeps of a coefficient, and layers.

A search over one coefficient is a line of a picture and a row of a table; one
over layers and a ratio is a table of its own. Searches that select on the same
domains stand together. Beside them are pictures of how alike the layers of two
models are, and of coefficients that a training learned.

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

from speechbrain_merge.report import (
    plot_coefficient_sweep,
    plot_layer_distances,
    plot_learned_coefficients,
    sweep_of,
)
from speechbrain_merge.search import LayerDistances


def searches_of(results: Mapping, times: Mapping) -> dict:
    """The trials of each search of the first seed.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    dict
        Title of a merge to the trials of its search.
    """
    return {
        row["title"]: trials for row, trials in _merges_with(results, times)
    }


def sweeps_of(results: Mapping, times: Mapping) -> dict:
    """Searches over one coefficient with several values.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    dict
        (Coefficient, domains of selection) to title to trials. The domains
        are empty where a search selects on all.
    """
    sweeps = {}
    for row, trials in _merges_with(results, times):
        varied = _varied(trials)
        if len(varied) == 1 and len(trials) > 1 and _numbers(trials):
            key = (varied[0], ", ".join(row["select_on"]))
            sweeps.setdefault(key, {})[row["title"]] = trials
    return sweeps


def layered_of(results: Mapping, times: Mapping) -> dict:
    """Searches over layers and a ratio.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    dict
        Domains of selection to title to trials.
    """
    found = {}
    for row, trials in _merges_with(results, times):
        if _varied(trials) == ["layers", "ratio"]:
            on = ", ".join(row["select_on"])
            found.setdefault(on, {})[row["title"]] = trials
    return found


def selected_on(domains: str, metric: str) -> str:
    """The corner of a table of searches.

    Arguments
    ---------
    domains : str
        The domains of selection; empty for all.
    metric : str
        The name of the error rate.

    Returns
    -------
    str

    Example
    -------
    >>> selected_on("digits", "WER"), selected_on("", "WER")
    ('selection set of digits, WER %', 'selection sets, WER %')
    """
    of = f"selection set of {domains}" if domains else "selection sets"
    return f"{of}, {metric} %"


def layer_rows(searches: Mapping, domains: str, metric: str) -> tuple:
    """Header and cells of error rates on the selection sets, by layers and λ.

    Arguments
    ---------
    searches : dict
        Title of a merge to the trials of its search over layers and a ratio.
    domains : str
        The domains of selection; empty for all.
    metric : str
        The name of the error rate.

    Returns
    -------
    header : list of str
    rows : list of list of str
        The lowest of each search in bold.

    Example
    -------
    >>> trials = [
    ...     {
    ...         "parameters": {"layers": layers, "ratio": 0.1},
    ...         "value": value,
    ...         "complete": True,
    ...     }
    ...     for layers, value in [("0-1", 9.0), ([2], 8.5)]
    ... ]
    >>> header, rows = layer_rows({"blocks": trials}, "digits", "WER")
    >>> header
    ['selection set of digits, WER %', 'ratio 0.1']
    >>> rows
    [['blocks, layers 0-1', '9.00'], ['blocks, layers 2', '**8.50**']]
    """
    rates, ratios = {}, []
    for title, trials in searches.items():
        for trial in trials:
            layers = trial["parameters"]["layers"]
            if not isinstance(layers, str):
                layers = ", ".join(map(str, sorted(layers)))
            ratio = trial["parameters"]["ratio"]
            ratios.append(ratio)
            row = rates.setdefault((title, layers), {})
            # what racing stopped has a floor only, no error rate
            row[ratio] = trial["value"] if trial["complete"] else None
    ratios = sorted(set(ratios))
    rows = []
    for (title, layers), row in rates.items():
        least = min(
            value
            for (other, _), values in rates.items()
            for value in values.values()
            if other == title and value is not None
        )
        cells = []
        for ratio in ratios:
            rate = row.get(ratio)
            text = "" if rate is None else f"{rate:.2f}"
            cells.append(f"**{text}**" if rate == least else text)
        rows.append([f"{title}, layers {layers}", *cells])
    header = [selected_on(domains, metric), *(f"{r:g}" for r in ratios)]
    header[1] = f"ratio {header[1]}"
    return header, rows


def draw_searches(folder: Path, results: Mapping, times: Mapping) -> None:
    """Draws sweeps, likeness of layers, and learned coefficients.

    Arguments
    ---------
    folder : Path
        Gets ``sweep_COEFFICIENT.png``, with the domains of selection where
        there are some, ``layers_NAME.png`` and ``learned_NAME.png``.
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.
    """
    for (coefficient, domains), sweeps in sweeps_of(results, times).items():
        name = "_".join(filter(None, ["sweep", coefficient, domains]))
        name = re.sub(r"[^\w.-]+", "_", name)
        plot_coefficient_sweep(
            {title: sweep_of(t, coefficient) for title, t in sweeps.items()},
            folder / f"{name}.png",
            coefficient,
            title=domains or None,
            metric=results["metric"],
        )
    for model in [*results["rows"], *results["models"].values()]:
        # of several seeds the first
        about = next(iter(model["about"].values()))
        if "distances" in about:
            plot_layer_distances(
                [
                    LayerDistances(each["distance"], tuple(each["values"]))
                    for each in about["distances"]
                ],
                folder / f"layers_{model['name']}.png",
                title=model["title"],
            )
        if "learned" in about:
            plot_learned_coefficients(
                about["learned"],
                folder / f"learned_{model['name']}.png",
                title=model["title"],
                unit="epoch",
            )


def _merges_with(results, times):
    """Merges with the trials of their search, of the first seed."""
    for row in [*results["rows"], *results["models"].values()]:
        if row["kind"] != "merge":
            continue
        seed = next(iter(row["about"]))
        trials = times.get(row["name"], {}).get(seed, {}).get("trials")
        if trials:
            yield row, trials


def _numbers(trials):
    """Whether a search tried numbers alone, which can be drawn in a line."""
    return all(
        isinstance(value, Real)
        for trial in trials
        for value in trial["parameters"].values()
    )


def _varied(trials):
    """The coefficients that a search has tried."""
    if not all("parameters" in trial for trial in trials):
        return []
    return sorted({name for trial in trials for name in trial["parameters"]})
