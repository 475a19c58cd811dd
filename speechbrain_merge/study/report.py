"""Tables and pictures of a study, drawn from its results alone.

Writes ``results.json``, the tables as Markdown (``results.md``), CSV and LaTeX,
the pictures that the results have something for, and all of it as one page
(``report.html``, see ``study/page.py``).

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.evaluation import (
    changed_utterance_rows,
    error_change_rows,
)
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.own_outputs import outputs_of
from speechbrain_merge.report import (
    bucket_rows,
    markdown_table,
    plot_domains,
    plot_forgetting,
    plot_merge_curve,
    plot_pareto,
    summarize_results,
    text_table,
)
from speechbrain_merge.report.tables import inert
from speechbrain_merge.study.continual import continual_rows
from speechbrain_merge.study.loggers import log_results
from speechbrain_merge.study.measures import measure_rows
from speechbrain_merge.study.page import write_page
from speechbrain_merge.study.results import flat, read_times, results_text
from speechbrain_merge.study.searches import (
    draw_searches,
    layer_rows,
    layered_of,
    searches_of,
    selected_on,
    sweeps_of,
)
from speechbrain_merge.study.tables import (
    comparison_rows,
    cost_rows,
    main_rows,
    sequence_rows,
    sweep_rows,
    training_rows,
)
from speechbrain_merge.study.testing import scores_of
from speechbrain_merge.study.written_tables import csv_text, latex_table


def write_report(study, results: Mapping) -> None:
    """Writes the results of a study, their tables and their pictures.

    Arguments
    ---------
    study : Study
        The study.
    results : dict
        See ``study/results.py``.
    """
    folder = study.folder
    times = read_times(folder)
    lines, csv, latex = [], [], []
    for mode in results["modes"]:
        if not results["rows"]:
            continue
        header, rows = main_rows(results, mode, times)
        title = "" if len(results["modes"]) == 1 else f"Tested {mode}:"
        lines += [title, "", markdown_table(header, rows), ""]
        csv.append(csv_text(header, rows, mode))
        latex.append(latex_table(header, rows))
        print(f"\n{title}\n{text_table(header, rows)}")
        for name in study.measures:
            header, rows = measure_rows(results, mode, name)
            lines += [markdown_table(header, rows), ""]
            csv.append(csv_text(header, rows, mode))
            print(f"\n{text_table(header, rows)}")
    lines += [line for part in _parts(study, results, times) for line in part]
    lines += [_note(results), ""]
    texts = {
        "results.json": results_text(results),
        "results.md": "\n".join(lines).strip() + "\n",
        "results.csv": "\n".join(csv),
        "results.tex": "\n".join(latex),
    }
    with outputs_of(folder) as drawn:
        draw_pictures(drawn, results, times)
        for name, text in texts.items():
            write_whole(drawn / name, text)
    page = write_page(folder)
    if study.train_logger is not None:
        log_results(study.train_logger, folder, results, times)
    print(
        f"\n{_note(results)}\nTables and pictures are in {folder}, and together "
        f"in {page.name}."
    )


def draw_pictures(folder: Path, results: Mapping, times: Mapping) -> None:
    """Draws the pictures that there is something for.

    Arguments
    ---------
    folder : Path
        Gets ``domains.png`` (all models on all sets), ``experts.png`` (the
        start and the experts), ``forgetting.png``, ``pareto.png``,
        ``merge_curve.png`` and those of ``study/searches.py``.
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.
    """
    shown = flat(results)
    if len(shown["rows"]) > 1:
        plot_domains(shown, folder / "domains.png")
        experts = [
            row
            for row in shown["rows"]
            if row["group"] in ("generalist", "expert")
        ]
        if len(experts) > 1:
            plot_domains({**shown, "rows": experts}, folder / "experts.png")
        summaries = summarize_results(shown)
        if all(row["forgetting"] is not None for row in summaries):
            plot_forgetting(shown, folder / "forgetting.png")
        inside = shown["in_domain"]
        if inside and len(inside) < len(shown["test_domains"]):
            plot_pareto(shown, folder / "pareto.png")
    curves = {
        name: trials
        for name, trials in searches_of(results, times).items()
        if any("merged" in trial for trial in trials)
    }
    if curves:
        plot_merge_curve(
            curves, folder / "merge_curve.png", metric=results["metric"]
        )
    draw_searches(folder, results, times)


def _parts(study, results, times):
    """The lesser tables, each a list of lines."""
    if "continual" in results:
        header, rows = continual_rows(results)
        print(f"\n{text_table(header, rows)}")
        yield [markdown_table(header, rows), ""]
    if results["sequences"]:
        yield [markdown_table(*sequence_rows(results)), ""]
    pairs = results["comparisons"]["pairs"]
    if pairs:
        yield [markdown_table(*comparison_rows(results)), ""]
    shown = flat(results)
    if study.costs and shown["rows"]:
        yield [markdown_table(*cost_rows(results, times)), ""]
    if all(
        "buckets" in counts
        for row in shown["rows"]
        for counts in row["sets"].values()
    ) and len(shown["rows"]):
        yield [markdown_table(*bucket_rows(shown)), ""]
    header, trainings = training_rows(results, times)
    if trainings:
        yield [markdown_table(header, trainings), ""]
    metric = results["metric"]
    for (_, domains), sweeps in sweeps_of(results, times).items():
        header, rows = sweep_rows(sweeps, metric)
        header[0] = selected_on(domains, metric)
        yield [markdown_table(header, rows), ""]
    for domains, searches in layered_of(results, times).items():
        table = layer_rows(searches, domains, metric)
        yield [markdown_table(*table), ""]
    merged = [_merge_line(row, times) for row in _merges(results)]
    if merged:
        yield [*merged, ""]
    pairs = dict.fromkeys((each.first, each.second) for each in study.compare)
    for first, second in pairs:
        yield from _changes(study, results, first, second)
    for name, seeds in results.get("barriers", {}).items():
        yield [
            f"- Barriers of {name}, seed {seed}, {line}: "
            + ", ".join(
                f"{measure} "
                + ("infinite" if height is None else f"{height:.2f}")
                for measure, height in heights.items()
            )
            for seed, lines in seeds.items()
            for line, heights in lines.items()
        ] + [""]


def _note(results):
    """The note below the tables."""
    seeds = ", ".join(map(str, results["seeds"]))
    note = (
        f"Seed {seeds}."
        if len(results["seeds"]) == 1
        else (f"Means over the seeds {seeds}, ± their standard deviation.")
    )
    return (
        f"{note} Bold: significantly better than the next best of its column "
        "(MAPSSWE, p < 0.05, corrected by Holm for all columns)."
    )


def _changes(study, results, first, second):
    """Changes between two models, by kind of error and by utterance."""
    rows = {row["name"]: row for row in results["rows"]}
    if not {first, second} <= set(rows):
        return
    seed, mode = str(results["seeds"][0]), results["modes"][0]
    for name in results["tests"]:
        counts = [
            rows[each]["sets"][seed][mode].get(name) for each in (first, second)
        ]
        if None in counts:
            continue
        before, after = (scores_of(study.folder, each) for each in counts)
        title = inert(f"From {first} to {second} on {name}, seed {seed}")
        yield [
            f"{title}: kinds of errors",
            "",
            markdown_table(*error_change_rows(before, after)),
            "",
            f"{title}: utterances",
            "",
            markdown_table(*changed_utterance_rows(before, after)),
            "",
        ]


def _merges(results):
    """All nodes that are merges, rows or not."""
    everything = [*results["rows"], *results["models"].values()]
    return [row for row in everything if row["kind"] == "merge"]


def _merge_line(row, times):
    """The members of a merge, and the outcome of its search."""
    seed, about = next(iter(row["about"].items()))
    words = (
        f"- **{inert(row['title'])}**: {len(about['selected'])} of "
        f"{len(about['candidates'])} candidates"
    )
    if about["value"] is not None:
        words += f", {about['value']:.1f} % on the selection sets"
    if about.get("chosen"):
        words += ", " + ", ".join(
            f"{key} {value}" for key, value in about["chosen"].items()
        )
    saved = times.get(row["name"], {}).get(seed, {}).get("savings") or {}
    if saved.get("skipped_utterances"):
        words += (
            f"; racing saved {100 * saved['fraction']:.0f} % of the decoding"
        )
    return words + "."
