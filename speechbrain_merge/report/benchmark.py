"""The table that compares merge methods: what each gains, loses and costs.

Besides error rates it shows what a user who chooses a method asks for: which
coefficient was chosen on the development sets, how sure the difference to a
reference is, how much of the experts' gains is kept, how long the merge takes,
how much memory it needs, and what the search for its coefficient cost. Rows of
``results.json`` (see ``report/results.py``) hold these beside their counts::

    {"name": "ties", "group": "merge", "sets": {…},
     "chosen": {"scale": 0.6},                   found on the selection sets
     "difference": {"difference": -0.4, "low": -0.9, "high": 0.1},
     "cost": {"merge_seconds": 2.1, "peak_megabytes": 350,
              "trials": 6, "decoded_seconds": 1800, "search_seconds": 64}}

and experts name their ``domains``. What a row does not have is left empty.

Example
-------
>>> counts = {"digits": {"errors": 40, "words": 100}}
>>> results = {
...     "in_domain": ["digits"],
...     "test_domains": ["digits"],
...     "rows": [{"name": "generalist", "group": "generalist", "sets": counts}],
... }
>>> header, rows = benchmark_rows(results)
>>> rows[0][:3]
['generalist', '–', '**40.0**']

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.evaluation import normalised_gain
from speechbrain_merge.report.results import metric_of, summarize_results
from speechbrain_merge.report.tables import NOTHING, mark_best


def benchmark_rows(results: dict) -> tuple:
    """Header and cells of the table of a benchmark of merge methods.

    Arguments
    ---------
    results : dict
        See the module and ``report/results.py``; ``reference`` names the row
        that differences are to.

    Returns
    -------
    header : list of str
    rows : list of list of str
        The best of each mean in bold, several where they look the same.
    """
    summaries = summarize_results(results)
    reference = results.get("reference")
    compared = f"difference to\n{reference} [95 %]" if reference else None
    header = ["model", "chosen"]
    means = ("in-domain", "out-of-domain", "mean")
    header += [f"{mean}\n{metric_of(results)} %" for mean in means]
    header += [compared] if compared else []
    header += ["forgetting\n%", "gain kept\n%"]
    header += ["merge\ns", "peak\nMB", "trials", "decoded\nmin"]
    learned = [row["group"] != "generalist" for row in summaries]
    columns = [
        mark_best([row[key] for row in summaries], [True] * len(summaries))
        for key in ("in_domain", "out_of_domain", "mean")
    ]
    if compared:
        columns.append(
            [_difference(row.get("difference")) for row in results["rows"]]
        )
    columns.append(mark_best([r["forgetting"] for r in summaries], learned))
    columns.append([_percent(gain) for gain in kept_gains(results)])
    for key, scale in (
        ("merge_seconds", 1),
        ("peak_megabytes", 1),
        ("trials", 1),
        ("decoded_seconds", 60),
    ):
        columns.append([_cost(row, key, scale) for row in results["rows"]])
    rows = [
        [row["name"], _chosen(row.get("chosen")), *cells]
        for row, *cells in zip(results["rows"], *columns)
    ]
    return header, rows


def kept_gains(results: dict) -> list:
    """How much of the experts' gains each row keeps, over its domains.

    Arguments
    ---------
    results : dict
        See the module; the expert of a domain is the row of the group "expert"
        whose ``domains`` are this one alone.

    Returns
    -------
    list of float
        For each row the mean of ``normalised_gain`` over the domains that have
        an expert which gained; None where there is none, and for the
        generalist.

    Example
    -------
    >>> def row(name, group, errors, **more):
    ...     sets = {"digits": {"errors": errors, "words": 100}}
    ...     return {"name": name, "group": group, "sets": sets, **more}
    >>> results = {
    ...     "in_domain": ["digits"],
    ...     "test_domains": ["digits"],
    ...     "rows": [
    ...         row("generalist", "generalist", 20),
    ...         row("expert", "expert", 10, domains=["digits"]),
    ...         row("average", "merge", 12),
    ...     ],
    ... }
    >>> kept_gains(results)
    [None, 1.0, 0.8]
    """
    bases = [r for r in results["rows"] if r.get("group") == "generalist"]
    experts = {
        row["domains"][0]: row
        for row in results["rows"]
        if row.get("group") == "expert" and len(row.get("domains", ())) == 1
    }
    gains = []
    for row in results["rows"]:
        if not bases or row is bases[0]:
            gains.append(None)
            continue
        kept = []
        for domain, expert in experts.items():
            models = (bases[0], expert, row)
            gain = normalised_gain(*(one["sets"][domain] for one in models))
            if gain is not None:
                kept.append(gain)
        gains.append(sum(kept) / len(kept) if kept else None)
    return gains


def _chosen(parameters):
    """Coefficients in a few characters."""
    if not parameters:
        return NOTHING
    return ", ".join(
        f"{name} {value:.3g}" for name, value in parameters.items()
    )


def _difference(found):
    """A difference in points and its interval."""
    if found is None:
        return NOTHING
    low, high = found["low"], found["high"]
    return f"{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share):
    """A share in percent, without decimals."""
    return NOTHING if share is None else f"{100 * share:.0f}"


def _cost(row, key, scale):
    """One of the costs of a row."""
    value = row.get("cost", {}).get(key)
    if value is None:
        return NOTHING
    value /= scale
    return f"{value:.1f}" if value < 10 and value % 1 else f"{value:.0f}"
