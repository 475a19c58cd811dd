"""Tables and pictures of an attention study.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from pathlib import Path

from speechbrain_merge.evaluation import (
    changed_utterance_rows,
    error_change_rows,
    read_scores,
)
from speechbrain_merge.report import (
    markdown_table,
    plot_coefficient_sweep,
    plot_layer_distances,
    plot_learned_coefficients,
    sweep_of,
)
from speechbrain_merge.search import LayerDistances


def report(results, folder):
    """Writes ``results.json``, ``results.md`` and the pictures.

    Arguments
    ---------
    results : dict
        What ``run_study`` gathers.
    folder : str or Path
        The results folder.
    """
    folder = Path(folder)
    parts = [model_table(results)]
    for domain in results["domains"]:
        sweeps = {
            name: merge
            for name, merge in results["merges"][domain].items()
            if varied(merge) == ["ratio"]
        }
        if sweeps:
            parts.append(ratio_table(sweeps, domain, results["metric"]))
            curves = {
                name: sweep_of(merge["trials"], "ratio")
                for name, merge in sweeps.items()
            }
            plot_coefficient_sweep(
                curves,
                folder / f"ratio_{domain}.png",
                "λ",
                title=domain,
                metric=results["metric"],
            )
        layered = {
            name: merge
            for name, merge in results["merges"][domain].items()
            if "layers" in varied(merge)
        }
        if layered:
            parts.append(layer_table(layered, domain, results["metric"]))
        if domain in results["layers"]:
            plot_layer_distances(
                [
                    LayerDistances(each["distance"], tuple(each["values"]))
                    for each in results["layers"][domain]
                ],
                folder / f"layers_{domain}.png",
                title=domain,
            )
        if domain in results["ratios"]:
            plot_learned_coefficients(
                results["ratios"][domain],
                folder / f"learned_{domain}.png",
                title=domain,
                unit="epoch",
            )
    parts += list(change_tables(results))
    text = json.dumps(results, indent=2, default=str, ensure_ascii=False)
    (folder / "results.json").write_text(text, encoding="utf-8")
    text = "\n\n".join(parts) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")


def varied(merge):
    """Names of the coefficients that a merge's search has tried."""
    return sorted({name for t in merge["trials"] for name in t["parameters"]})


def ratio_table(sweeps, domain, metric="WER"):
    """Error rates on the development set, by source and λ.

    Arguments
    ---------
    sweeps : dict
        Name of a stage to what it came to.
    domain, metric : str
        Their names, for the corner.

    Returns
    -------
    str
        A Markdown table; the lowest of each row in bold.

    Example
    -------
    >>> trials = [
    ...     {"parameters": {"ratio": ratio}, "value": value, "complete": True}
    ...     for ratio, value in [(0.0, 9.25), (0.1, 9.06)]
    ... ]
    >>> print(ratio_table({"mam": {"trials": trials}}, "LJ"))
    | LJ, dev WER % | λ = 0 | 0.1 |
    |---|---:|---:|
    | mam | 9.25 | **9.06** |
    """
    rates = {
        name: dict(sweep_of(merge["trials"], "ratio"))
        for name, merge in sweeps.items()
    }
    ratios = sorted({ratio for row in rates.values() for ratio in row})
    header = [f"{ratio:g}" for ratio in ratios]
    header[0] = f"λ = {header[0]}"
    rows = []
    for name, row in rates.items():
        best = min(row, key=row.get)
        rows.append(
            [name.replace("_", " ")]
            + ["" if r not in row else mark(row[r], r == best) for r in ratios]
        )
    return markdown_table([f"{domain}, dev {metric} %", *header], rows)


def layer_table(merges, domain, metric="WER"):
    """Error rates on the development set, by layers and λ.

    Arguments
    ---------
    merges : dict
        Name of a stage to what it came to.
    domain, metric : str
        Their names, for the corner.

    Returns
    -------
    str
        A Markdown table; the lowest of each stage in bold.

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
    >>> print(layer_table({"blocks": {"trials": trials}}, "LJ"))
    | LJ, dev WER % | λ = 0.1 |
    |---|---:|
    | blocks, layers 0-1 | 9.00 |
    | blocks, layers 2 | **8.50** |
    """
    rates, ratios = {}, set()
    for name, merge in merges.items():
        for trial in merge["trials"]:
            layers = trial["parameters"]["layers"]
            if not isinstance(layers, str):
                layers = ", ".join(map(str, sorted(layers)))
            ratio = trial["parameters"].get("ratio")
            ratios.add(ratio)
            rates.setdefault((name, layers), {})[ratio] = trial["value"]
    ratios = sorted(ratios)
    header = [f"{ratio:g}" for ratio in ratios]
    header[0] = f"λ = {header[0]}"
    rows = []
    for (name, layers), row in rates.items():
        best = min(
            value
            for (other, _), values in rates.items()
            if other == name
            for value in values.values()
        )
        rows.append(
            [f"{name.replace('_', ' ')}, layers {layers}"]
            + [
                "" if r not in row else mark(row[r], row[r] == best)
                for r in ratios
            ]
        )
    return markdown_table([f"{domain}, dev {metric} %", *header], rows)


def model_table(results):
    """Error rates on the test sets, by model; of several seeds their mean.

    Arguments
    ---------
    results : dict
        With ``domains`` and ``rows``.

    Returns
    -------
    str
        A Markdown table; the lowest of each domain in bold.
    """
    domains = results["domains"]
    rates = {}
    for row in results["rows"]:
        cell = rates.setdefault(row["name"], {}).setdefault(row["domain"], [])
        cell.append(row["rates"][results["metric"].lower()])
    means = {
        name: {domain: sum(each) / len(each) for domain, each in cells.items()}
        for name, cells in rates.items()
    }
    best = {
        domain: min(cells[domain] for cells in means.values())
        for domain in domains
    }
    rows = [
        [name.replace("_", " ")]
        + [mark(cells[d], cells[d] == best[d]) for d in domains]
        for name, cells in means.items()
    ]
    return markdown_table([f"test {results['metric']} %", *domains], rows)


def change_tables(results):
    """What changed between two models: kinds of errors, and utterances.

    Arguments
    ---------
    results : dict
        With ``rows``, and ``compare``: pairs of names of models.

    Yields
    ------
    str
        A title and its table.
    """
    for first, second in results["compare"]:
        for domain in results["domains"]:
            # of several seeds the first
            before, after = (
                read_scores(
                    next(
                        row["scores"]
                        for row in results["rows"]
                        if (row["name"], row["domain"]) == (name, domain)
                    )
                )
                for name in (first, second)
            )
            title = f"From {first} to {second} on {domain}".replace("_", " ")
            yield f"{title}: kinds of errors\n\n" + markdown_table(
                *error_change_rows(before, after)
            )
            yield f"{title}: utterances\n\n" + markdown_table(
                *changed_utterance_rows(before, after)
            )


def mark(rate, best):
    """A rate as a cell, in bold if it is the best."""
    return f"**{rate:.2f}**" if best else f"{rate:.2f}"
