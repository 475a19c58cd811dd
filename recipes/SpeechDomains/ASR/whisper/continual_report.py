"""Tables and pictures of a study of continual learning.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.evaluation import backward_transfer, forward_transfer
from speechbrain_merge.report import (
    bucket_rows,
    markdown_table,
    plot_domains,
    plot_forgetting,
    results_rows,
    save_results,
    summarize_results,
    text_table,
)


def report_continual(results, folder):
    """Writes the results, their tables and their pictures.

    Arguments
    ---------
    results : dict
        Everything that was found out.
    folder : Path
        Gets ``results.json``, ``results.md``, ``experts.png`` (which expert
        knows which domain), ``domains.png`` (all models) and
        ``forgetting.png`` (against the average).
    """
    save_results(folder / "results.json", results)
    tables = [model_rows(results)]
    if results["sequences"]:
        tables.append(transfer_rows(results))
    tables.append(bucket_rows(results))
    lines = []
    for table in tables:
        lines += [markdown_table(*table), ""]
    lines += [note, ""] if (note := describe_tests(results)) else []
    lines.append(f"Seed {results['seed']}.")
    text = "\n".join(lines) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    plot_domains(results, folder / "domains.png")
    experts = [
        row
        for row in results["rows"]
        if row["group"] in ("generalist", "expert")
    ]
    plot_domains({**results, "rows": experts}, folder / "experts.png")
    forgotten = [row["forgetting"] for row in summarize_results(results)]
    # None where the original has no errors that could grow
    if None not in forgotten:
        plot_forgetting(results, folder / "forgetting.png")
    for table in tables:
        print(f"\n{text_table(*table)}")
    print(f"\n{note}\nTables and pictures are in {folder}.")


def model_rows(results):
    """The main table, with what the training of each model takes.

    Arguments
    ---------
    results : dict
        With ``training_seconds`` in each row: of all the trainings that it
        comes of, one after the other.

    Returns
    -------
    header : list of str
    rows : list of list of str
    """
    header, rows = results_rows(results)
    header = [*header, "trainings", "training\nminutes"]
    cells = []
    for row, cell in zip(results["rows"], rows):
        minutes = "–"
        if row["trainings"]:
            minutes = f"{row['training_seconds'] / 60:.1f}"
        if not row["timed_whole"]:
            # what came before an interruption is not counted
            minutes = f"> {minutes}"
        cells.append([*cell, str(len(row["trainings"])), minutes])
    return header, cells


def transfer_rows(results):
    """What the domains of a sequence do to one another.

    Arguments
    ---------
    results : dict
        With ``sequences``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Backward and forward transfer in points of WER: below 0 is forgetting,
        above 0 the earlier domains have helped.
    """
    header = ["sequence", "domains", "backward transfer", "forward transfer"]
    rows = []
    for name, sequence in results["sequences"].items():
        order = sequence["domains"]
        matrix = [[rates[d] for d in order] for rates in sequence["rates"]]
        rows.append(
            [
                name,
                ", ".join(order),
                f"{backward_transfer(matrix):+.1f}",
                f"{forward_transfer(matrix):+.1f}",
            ]
        )
    return header, rows


def describe_tests(results):
    """Says that tests were made on a part of the test sets, if they were."""
    fraction = results["test_fraction"]
    if fraction == 1:
        return ""
    return (
        f"Tested on {100 * fraction:.0f} % of each test set, drawn by duration "
        f"with seed {results['seed']}."
    )
