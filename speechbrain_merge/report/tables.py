"""Tables of results, as Markdown and for a terminal.

The main table of a study has a row for each model (the generalist, each
expert, each merge) and a column for each test set, then the means over the
domains that there are experts for and over those that there are none for, and
how much was forgotten there. What results are is in ``report/results.py``.

Example
-------
>>> print(markdown_table(["model", "WER"], [["generalist", "9.0"]]))
| model | WER |
|---|---:|
| generalist | 9.0 |

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping, Sequence
from typing import Optional

from speechbrain_merge.evaluation import ErrorCounts
from speechbrain_merge.report.results import (
    domains_in_order,
    metric_of,
    summarize_results,
)

# stands where a number does not exist
NOTHING = "–"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right.

    Arguments
    ---------
    header : list of str
        Titles of the columns; a line break in one becomes ``<br>``.
    rows : list of list of str
        The cells.

    Returns
    -------
    table : str

    Example
    -------
    >>> print(markdown_table(["a|b", "two\\nlines"], [["x", "**1**"]]))
    | a\\|b | two<br>lines |
    |---|---:|
    | x | **1** |
    """
    lines = [
        "| " + " | ".join(map(_markdown_cell, cells)) + " |"
        for cells in [header, *rows]
    ]
    lines.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(lines)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: columns of equal width, a star for bold.

    Arguments
    ---------
    header : list of str
        Titles of the columns; those with line breaks take several lines.
    rows : list of list of str
        The cells; what Markdown has in bold gets a star behind it.

    Returns
    -------
    table : str

    Example
    -------
    >>> header = ["model", "digits\\n9 words"]
    >>> print(text_table(header, [["generalist", "**9.0**"], ["mast", "11.1"]]))
    model        digits
                9 words
    generalist     9.0*
    mast          11.1
    """
    bold = [
        any(row[column].startswith("**") for row in rows)
        for column in range(len(header))
    ]
    titles = [title.split("\n") for title in header]
    height = max(map(len, titles))
    titles = [title + [""] * (height - len(title)) for title in titles]
    plain = [list(line) for line in zip(*titles)]
    plain += [
        [_plain_cell(cell, marked) for cell, marked in zip(row, bold)]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*plain)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        ).rstrip()
        for row in plain
    )


def results_rows(results: Mapping) -> tuple:
    """Header and cells of the main table.

    A mean is the unweighted mean of the sets' error rates. Forgetting is over
    the retention sets together, against the generalist.

    Arguments
    ---------
    results : dict
        See ``report/results.py``.

    Returns
    -------
    header : list of str
        Each set with its numbers of words and utterances.
    rows : list of list of str
        The best of each column in bold, several where they look the same.
    """
    inside, outside, retention = domains_in_order(results)
    summaries = summarize_results(results)
    sizes = results["rows"][0]["sets"]
    header = [f"{metric_of(results)} %"]
    header += [_sized(name, sizes[name]) for name in inside + outside]
    means = [("in_domain", "in-domain\nmean", inside)]
    means.append(("out_of_domain", "out-of-domain\nmean", outside))
    means.append(("forgetting", "forgetting\n%", retention))
    means.append(("mean", "mean", results["test_domains"]))
    shown = [(key, title) for key, title, sets in means if sets]
    header += [title for _, title in shown]
    values = [
        [summary["rates"][name] for name in inside + outside]
        + [summary[key] for key, _ in shown]
        for summary in summaries
    ]
    # the generalist forgets nothing by definition: that is no merit
    learned = [summary["group"] != "generalist" for summary in summaries]
    keys = inside + outside + [key for key, _ in shown]
    columns = [
        mark_best(
            column, learned if key == "forgetting" else [True] * len(learned)
        )
        for key, column in zip(keys, zip(*values))
    ]
    names = [summary["name"] for summary in summaries]
    return header, [[name, *cells] for name, *cells in zip(names, *columns)]


def results_table(results: Mapping, form: str = "markdown") -> str:
    """The main table, with the settings that are needed to reproduce it.

    Arguments
    ---------
    results : dict
        See ``report/results.py``.
    form : str
        "markdown" or "text".

    Returns
    -------
    table : str
        The table; beneath it seed, command and date, where results have them.

    Example
    -------
    >>> counts = {"digits": {"errors": 1, "words": 10}}
    >>> results = {
    ...     "in_domain": ["digits"],
    ...     "test_domains": ["digits"],
    ...     "rows": [{"name": "generalist", "sets": counts}],
    ...     "seed": 7,
    ... }
    >>> print(results_table(results, form="text"))
    WER %         digits  in-domain   mean
                10 words       mean
    generalist     10.0*      10.0*  10.0*
    <BLANKLINE>
    Seed: 7
    """
    if form not in ("markdown", "text"):
        raise ValueError(f'form is "markdown" or "text", not {form!r}')
    table = markdown_table if form == "markdown" else text_table
    lines = [table(*results_rows(results))]
    code = "`" if form == "markdown" else ""
    notes = []
    for key, quote in (("seed", ""), ("command", code), ("created", "")):
        if results.get(key) is not None:
            notes.append(f"{key.capitalize()}: {quote}{results[key]}{quote}")
    if notes:
        lines += ["", ("  \n" if form == "markdown" else "\n").join(notes)]
    return "\n".join(lines)


def bucket_rows(results: dict) -> tuple:
    """Header and cells of the table by duration, over all sets together.

    Arguments
    ---------
    results : dict
        See ``report/results.py``, with ``buckets``.

    Returns
    -------
    header : list of str
        Each range of durations in seconds, with its number of utterances.
    rows : list of list of str
        A range without utterances is left empty.
    """
    table = pooled_buckets(results)
    header = [f"{metric_of(results)} % by duration in s"]
    header += [
        f"{label} (n = {counts.utterances})"
        for label, counts in next(iter(table.values())).items()
    ]
    rows = [
        [name]
        + ["" if c.rate is None else f"{c.rate:.1f}" for c in buckets.values()]
        for name, buckets in table.items()
    ]
    return header, rows


def pooled_buckets(results: dict) -> dict:
    """Counts by duration of each model, over all sets together.

    Arguments
    ---------
    results : dict
        See ``report/results.py``, with ``buckets``.

    Returns
    -------
    dict
        Name of the row to a dict from range to ErrorCounts.

    Raises
    ------
    ValueError
        Where a set has no buckets, or others than the first.
    """
    pooled, labels = {}, None
    for row in results["rows"]:
        pooled[row["name"]] = added = {}
        for name, counts in row["sets"].items():
            buckets = counts.get("buckets", {})
            labels = labels or list(buckets)
            if not buckets or list(buckets) != labels:
                raise ValueError(
                    f"row {row['name']!r}, set {name!r}: expected `buckets` "
                    f"{labels or 'by duration'}, got {list(buckets)}"
                )
            for label in labels:
                stored = buckets[label]
                added[label] = added.get(label, ErrorCounts()) + ErrorCounts(
                    **{k: v for k, v in stored.items() if k != "errors"}
                )
    return pooled


_ACTIVE = re.compile(
    r"(?P<code>(?<!`)(?P<fence>`+)(?!`).*?(?<!`)(?P=fence)(?!`))"
    r"|<|\](?=[(\[])|\\(?=\|)",
    re.DOTALL,
)


def inert(text: str) -> str:
    """Text in which Markdown finds no tag, no link and no image.

    Emphasis and code stay: they show something, and do nothing.

    Arguments
    ---------
    text : str
        Such as a title that somebody chose.

    Returns
    -------
    str

    Example
    -------
    >>> print(inert("**a<b>** [x](javascript:y) `<c>`"))
    **a&lt;b>** [x\\](javascript:y) `<c>`
    """
    return _ACTIVE.sub(
        lambda found: found[0]
        if found["code"]
        else "&lt;"
        if found[0] == "<"
        else f"\\{found[0]}",
        text,
    )


def _markdown_cell(text):
    """Text that neither ends a cell nor a row."""
    return inert(text).replace("|", "\\|").replace("\n", "<br>")


def _plain_cell(text, starred):
    """Text without Markdown's stars; in columns with stars, room for one."""
    if not starred:
        return text
    if text.startswith("**"):
        return text.strip("*") + "*"
    return text + " "


def _sized(name, counts):
    """Title of a set with its size beneath."""
    size = f"{counts['words']:g} words"
    if "utterances" in counts:
        size += f"\n{counts['utterances']} utterances"
    return f"{name}\n{size}"


def mark_best(values: Sequence[Optional[float]], competing) -> list:
    """Numbers with one decimal, those that look like the least in bold.

    Arguments
    ---------
    values : list of float
        A column; None where there is no number.
    competing : list of bool
        Which of them may be the best.

    Returns
    -------
    list of str

    Example
    -------
    >>> mark_best([3.04, None, 2.96, 0.0], [True, True, True, False])
    ['**3.0**', '–', '**3.0**', '0.0']
    """
    texts = [
        # a tiny negative number would else be written as -0.0
        NOTHING if value is None else f"{round(value, 1) + 0:.1f}"
        for value in values
    ]
    known = [
        value
        for value, competes in zip(values, competing)
        if competes and value is not None
    ]
    least = f"{round(min(known), 1) + 0:.1f}" if known else None
    return [
        f"**{text}**" if competes and text == least else text
        for text, competes in zip(texts, competing)
    ]
