"""The tables and pictures of a study.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report import (
    benchmark_rows,
    bucket_rows,
    markdown_table,
    plot_domains,
    plot_merge_curve,
    plot_pareto,
    results_rows,
    save_results,
    text_table,
)


def report(results, folder):
    """Writes the results, their table and their pictures.

    Arguments
    ---------
    results : dict
        Everything that was found out.
    folder : Path
        Gets ``results.json``, ``results.md`` and the pictures.
    """
    save_results(folder / "results.json", results)
    tables = [results_rows(results), bucket_rows(results)]
    if "reference" in results:
        tables.insert(0, benchmark_rows(results))
    lines = []
    for table in tables:
        lines += [markdown_table(*table), ""]
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
        if any("merged" in trial for trial in merged["trials"])
    }
    if searches:
        plot_merge_curve(searches, folder / "merge_curve.png")
    plot_domains(results, folder / "domains.png")
    if len(results["in_domain"]) < len(results["test_domains"]):
        plot_pareto(results, folder / "pareto.png")
    for table in tables:
        print(f"\n{text_table(*table)}")
    print()
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
