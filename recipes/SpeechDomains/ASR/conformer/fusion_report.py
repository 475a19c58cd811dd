"""Tables and pictures of a fusion study.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from pathlib import Path

from records import write_record

from speechbrain_merge.evaluation import paired_bootstrap, read_scores
from speechbrain_merge.report import (
    markdown_table,
    plot_domains,
    results_rows,
    text_table,
)


def report(results, folder):
    """Writes the results, their tables and their picture.

    Arguments
    ---------
    results : dict
        Everything that was found out: ``domains``, ``modes`` and ``seeds``.
    folder : Path
        Gets ``results.json``, ``results.md`` and ``models.png``.
    """
    folder = Path(folder)
    write_record(folder / "results.json", results)

    pooled = pooled_results(results)
    seeds = ", ".join(results["seeds"])
    lines = [f"All seeds together ({seeds}):", ""]
    lines += [markdown_table(*main_table(pooled)), ""]
    for seed in results["seeds"]:
        rows = main_table(pooled_results(results, [seed]))
        lines += [f"Seed {seed}:", "", markdown_table(*rows), ""]
    lines += comparisons(results, folder)
    for seed, found in results["seeds"].items():
        for name, heights in found.get("barriers", {}).items():
            words = [
                f"{measure} {'infinite' if height is None else f'{height:.2f}'}"
                for measure, height in heights.items()
            ]
            lines += ["", f"Barrier, seed {seed}, {name}: {', '.join(words)}."]
        steps = [
            f"{step['name']} {step['steps']} steps ({step['seconds']:.0f} s)"
            for step in found["steps"]
        ]
        lines += ["", f"Trainings, seed {seed}: {'; '.join(steps)}."]
    text = "\n".join(lines) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    plot_domains(pooled, folder / "models.png")
    print(f"\n{text_table(*main_table(pooled))}\n")
    print(f"Tables and pictures are in {folder}.")


def pooled_results(results, seeds=None):
    """Errors and words of each model over the seeds, as a table's results.

    Arguments
    ---------
    results : dict
        See ``report``.
    seeds : list of str, optional
        Only those.

    Returns
    -------
    dict
        See ``speechbrain_merge/report/results.py``. Each domain in each mode
        is a set.

    Example
    -------
    >>> counts = {"errors": 1, "words": 10, "utterances": 4}
    >>> row = {"name": "SL", "group": "", "rates": {"offline": {"a": counts}}}
    >>> seeds = {"1": {"rows": [row]}, "2": {"rows": [row]}}
    >>> pooled = pooled_results(
    ...     {"domains": ["a"], "modes": ["offline"], "seeds": seeds}
    ... )
    >>> pooled["rows"][0]["sets"]
    {'a, offline': {'errors': 2, 'words': 20, 'utterances': 8}}
    """
    seeds = list(results["seeds"]) if seeds is None else seeds
    sets = [
        (f"{domain}, {mode}", mode, domain)
        for mode in results["modes"]
        for domain in results["domains"]
    ]
    # Untuned models first, then each tuning: the halves of the paper's table
    by_seed = [
        {title(row): row for row in results["seeds"][seed]["rows"]}
        for seed in seeds
    ]
    order = sorted(
        by_seed[0].values(), key=lambda row: (row["group"] != "", row["group"])
    )
    rows = []
    for row in order:
        counts = {}
        for name, mode, domain in sets:
            found = [one[title(row)]["rates"][mode][domain] for one in by_seed]
            counts[name] = {
                key: sum(each[key] for each in found)
                for key in ("errors", "words", "utterances")
            }
        rows.append({"name": title(row), "group": row["group"], "sets": counts})
    names = [name for name, _, _ in sets]
    return {"in_domain": names, "test_domains": names, "rows": rows}


def main_table(pooled):
    """Header and cells, as in other studies but for two things.

    There is one mean, since all sets count alike; and the best in bold are the
    best systems, which the oracle is not.
    """
    cells = {}
    for bound in (False, True):
        rows = [
            row
            for row in pooled["rows"]
            if row["name"].startswith("oracle") == bound
        ]
        header, found = results_rows({**pooled, "rows": rows})
        for name, *values in found:
            cells[name] = [v.strip("*") if bound else v for v in values]
    return header[:-2] + header[-1:], [
        [row["name"], *cells[row["name"]][:-2], cells[row["name"]][-1]]
        for row in pooled["rows"]
    ]


def title(row):
    """What a row is called: its model and its fine-tuning."""
    return " + ".join(filter(None, [row["name"], row["group"]]))


def comparisons(results, folder):
    """Fused models against their parents, fine-tuned alike, in words.

    Arguments
    ---------
    results : dict
        See ``report``.
    folder : Path
        Holds ``seed-SEED/tested/MODEL/MODE_DOMAIN.jsonl``.

    Returns
    -------
    list of str
        A line of Markdown for each pair and mode, by paired bootstrap.
    """
    seeds = results["seeds"]
    merges = list(next(iter(seeds.values()))["merges"])
    parents = results["parents"]
    rows = next(iter(seeds.values()))["rows"]
    tunings = {}
    for row in rows:
        tunings.setdefault(row["group"], []).append(row["name"])
    lines = []
    for tuning, names in tunings.items():
        for merge in merges:
            for parent in parents:
                if tuning and {merge, parent} <= set(names):
                    lines += [
                        compare(
                            [f"{each}+{tuning}" for each in (parent, merge)],
                            mode,
                            results,
                            folder,
                        )
                        for mode in results["modes"]
                    ]
    if lines:
        lines = ["Differences in WER, all sets and seeds together:", "", *lines]
    return lines


def compare(names, mode, results, folder):
    """One line: how much better the second model is than the first."""
    scores = [
        [
            # The same utterance counts once for each seed
            dataclasses.replace(score, id=f"{score.id} {seed}")
            for seed in results["seeds"]
            for domain in results["domains"]
            for score in read_scores(
                folder / f"seed-{seed}/tested/{name}/{mode}_{domain}.jsonl"
            )
        ]
        for name in names
    ]
    found = paired_bootstrap(*scores)
    return (
        f"- {names[1]} against {names[0]}, {mode}: {found.difference:+.2f} "
        f"points [{found.low:+.2f}, {found.high:+.2f}]"
    )
