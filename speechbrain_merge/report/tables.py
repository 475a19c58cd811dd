"""Tables of results, as Markdown and for a terminal.

The main table of a study has a row for each model (the generalist, each
expert, each merge) and a column for each test set, then the means over the
domains that there are experts for and over those that there are none for, and
how much was forgotten there.

Results are plain data, as they lie in ``results.json``::

    {"in_domain": ["digits", …],
     "test_domains": ["digits", "read", …],
     "rows": [{"name": "generalist", "group": "generalist",
               "sets": {"digits": {"errors": 9, "words": 100,
                                   "utterances": 40, "buckets": {…}}, …}}, …]}

Example
-------
>>> print(markdown_table(["model", "WER"], [["generalist", "9.0"]]))
| model | WER |
|---|---:|
| generalist | 9.0 |

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.evaluation import ErrorCounts, forgetting


def markdown_table(header, rows):
    """A Markdown table; all columns but the first are aligned to the right.

    Arguments
    ---------
    header : list of str
        Titles of the columns.
    rows : list of list of str
        The cells.

    Returns
    -------
    table : str
    """
    lines = [
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 1),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def text_table(header, rows):
    """The same for a terminal: columns of equal width, nothing bold.

    Arguments
    ---------
    header : list of str
        Titles of the columns.
    rows : list of list of str
        The cells; Markdown's stars are taken out.

    Returns
    -------
    table : str

    Example
    -------
    >>> print(text_table(["model", "WER"], [["generalist", "**9.0**"]]))
    model       WER
    generalist  9.0
    """
    plain = [[cell.replace("**", "") for cell in row] for row in rows]
    widths = [
        max(len(row[column]) for row in [header, *plain])
        for column in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        ).rstrip()
        for row in [header, *plain]
    )


def results_rows(results):
    """Header and cells of the main table.

    A mean is the unweighted mean of the sets' error rates. Forgetting is over
    the out-of-domain sets together, against the generalist.

    Arguments
    ---------
    results : dict
        As above.

    Returns
    -------
    header : list of str
    rows : list of list of str
        The best of each column in bold.
    """
    inside = [d for d in results["test_domains"] if d in results["in_domain"]]
    outside = [d for d in results["test_domains"] if d not in inside]
    domains = inside + outside
    first = results["rows"][0]["sets"]
    header = ["WER %"] + [
        f"{domain} ({int(first[domain]['words'])} words)" for domain in domains
    ]
    header += ["in-domain mean"]
    if outside:
        header += ["out-of-domain mean", "forgetting %"]
    header += ["mean"]
    before = _counts(first, outside)
    table = []
    for row in results["rows"]:
        rates = {domain: _rate(row["sets"][domain]) for domain in domains}
        values = [rates[domain] for domain in domains]
        values.append(_mean(rates, inside))
        if outside:
            values.append(_mean(rates, outside))
            values.append(forgetting(before, _counts(row["sets"], outside)))
        values.append(_mean(rates, domains))
        table.append(values)
    best = [
        min(value for value in column if value is not None)
        for column in zip(*table)
    ]
    rows = []
    for row, values in zip(results["rows"], table):
        cells = [_cell(value, least) for value, least in zip(values, best)]
        rows.append([row["name"]] + cells)
    return header, rows


def bucket_rows(results):
    """Header and cells of the table by duration, over all sets together.

    Arguments
    ---------
    results : dict
        As above.

    Returns
    -------
    header : list of str
        Each range of durations in seconds, with its number of utterances.
    rows : list of list of str
        A range without utterances is left empty.
    """
    labels = list(next(iter(results["rows"][0]["sets"].values()))["buckets"])
    table = []
    for row in results["rows"]:
        table.append(
            [
                sum(
                    (
                        _plain_counts(rates["buckets"][label])
                        for rates in row["sets"].values()
                    ),
                    ErrorCounts(),
                )
                for label in labels
            ]
        )
    header = ["WER % by duration in s"] + [
        f"{label} (n = {counts.utterances})"
        for label, counts in zip(labels, table[0])
    ]
    rows = [
        [row["name"]]
        + ["" if c.rate is None else f"{c.rate:.1f}" for c in counts]
        for row, counts in zip(results["rows"], table)
    ]
    return header, rows


def _cell(value, least):
    """A number with one decimal, bold if it is the column's least."""
    if value is None:
        return ""
    return f"**{value:.1f}**" if value == least else f"{value:.1f}"


def _plain_counts(stored):
    """Counts as ``ErrorCounts.to_dict`` stored them."""
    return ErrorCounts(**{k: v for k, v in stored.items() if k != "errors"})


def _rate(counts):
    return 100 * counts["errors"] / counts["words"]


def _mean(rates, domains):
    return sum(rates[domain] for domain in domains) / len(domains)


def _counts(sets, domains):
    return {d: (sets[d]["errors"], sets[d]["words"]) for d in domains}
