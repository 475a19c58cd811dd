"""Results of a study: plain data, and the few numbers that sum it up.

Tables and pictures are drawn from one dict, which lies on the disk as
``results.json``, so that they can be drawn again, or otherwise, without
decoding anything::

    {"schema": 1,
     "in_domain": ["digits", …],          sets that some expert was trained for
     "test_domains": ["digits", "read", …],      all sets, in the table's order
     "retention": ["read"],       optional: sets on which forgetting is measured
     "rows": [
         {"name": "generalist",
          "group": "generalist",        or "expert", "merge", or your own words
          "sets": {"digits": {"errors": 9, "words": 100, "utterances": 40,
                              "buckets": {"(0, 5]": {"errors": …}, …}}, …}},
         …],
     "metric": "error",              optional: what the rates are, "WER" if not
     "seed": 1, "command": "python …"}    optional, and any other keys

A set that is in ``test_domains`` and not in ``in_domain`` is out of domain, and
unless ``retention`` names others, forgetting is measured on those. It is
relative to the first row of the group "generalist". ``errors`` and ``words`` are
needed, ``utterances`` and ``buckets`` are shown where they are there, and an
``interval`` (``low`` and ``high`` in percent, and its ``level``) in a card.

Example
-------
>>> results = {
...     "in_domain": ["digits"],
...     "test_domains": ["digits", "read"],
...     "rows": [
...         {
...             "name": "generalist",
...             "group": "generalist",
...             "sets": {
...                 "digits": {"errors": 40, "words": 100},
...                 "read": {"errors": 10, "words": 100},
...             },
...         },
...         {
...             "name": "merged",
...             "group": "merge",
...             "sets": {
...                 "digits": {"errors": 10, "words": 100},
...                 "read": {"errors": 11, "words": 100},
...             },
...         },
...     ],
... }
>>> summary = summarize_results(results)[1]
>>> summary["in_domain"], summary["out_of_domain"], summary["mean"]
(10.0, 11.0, 10.5)
>>> round(summary["forgetting"], 6)
10.0

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.evaluation import forgetting, macro_average, rate_of
from speechbrain_merge.records.checked import (
    fields,
    listed,
    mapped,
    number,
    text,
)
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.records.written_check import (
    CHECK,
    with_check,
    without_check,
)

SCHEMA = 1


_interval = fields(
    {"low": number(0), "high": number(0)}, {"level": number(0, 1)}
)
_counts = fields(
    {}, {"errors": number(0), "words": number(0), "interval": _interval}
)
_row = fields({}, {"name": text(), "sets": mapped(_counts)})
_shape = fields(
    {},
    {
        "in_domain": listed(text()),
        "test_domains": listed(text()),
        "retention": listed(text()),
        "rows": listed(_row),
    },
)


def check_results(results: Mapping) -> None:
    """Raise where results are not as the module describes them.

    Arguments
    ---------
    results : dict
        Results of a study.

    Raises
    ------
    ValueError
        Naming the row, the set and the key at fault.

    Example
    -------
    >>> check_results({"in_domain": [], "test_domains": ["a"], "rows": []})
    Traceback (most recent call last):
    ...
    ValueError: results have no rows
    """
    schema = results.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise ValueError(
            f"results are of schema {schema}, and this version of "
            f"speechbrain_merge reads schema {SCHEMA}"
        )
    for key in ("in_domain", "test_domains", "rows"):
        if key not in results:
            raise ValueError(f"results have no `{key}`")
        if not results[key] and key != "in_domain":
            raise ValueError(f"results have no {key}")
    domains = results["test_domains"]
    strangers = set(results.get("retention", ())) - set(domains)
    if strangers:
        raise ValueError(
            f"`retention` names {sorted(strangers)}, which are not among the "
            f"test domains {domains}"
        )
    for row in results["rows"]:
        for key in ("name", "sets"):
            if key not in row:
                raise ValueError(f"row {row.get('name', row)!r} has no `{key}`")
        for domain in domains:
            counts = row["sets"].get(domain)
            if counts is None:
                raise ValueError(
                    f"row {row['name']!r} has no counts for {domain!r}: every "
                    "row needs every test domain, or means would not compare"
                )
            if not {"errors", "words"} <= counts.keys():
                raise ValueError(
                    f"row {row['name']!r}, set {domain!r}: counts need "
                    f'"errors" and "words", and have {sorted(counts)}'
                )


def save_results(path, results: dict) -> None:
    """Write results as JSON, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file; one that is there is replaced.
    results : dict
        Results of a study.

    Example
    -------
    >>> counts = {"digits": {"errors": 1, "words": 10}}
    >>> results = {
    ...     "in_domain": ["digits"],
    ...     "test_domains": ["digits"],
    ...     "rows": [{"name": "generalist", "sets": counts}],
    ... }
    >>> path = getfixture("tmp_path") / "results.json"
    >>> save_results(path, results)
    >>> load_results(path)["rows"] == results["rows"]
    True
    """
    check_results(results)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = with_check({"schema": SCHEMA, **results})
    content = json.dumps(checked, indent=2, ensure_ascii=False)
    write_whole(path, content + "\n")


def load_results(path) -> dict:
    """Read and check results.

    Arguments
    ---------
    path : str or Path
        A ``results.json``.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Where it is not JSON, or not results, or was changed since it was
        written.

    Example
    -------
    >>> path = getfixture("tmp_path") / "results.json"
    >>> _ = path.write_text('{"in_domain": []}')
    >>> load_results(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: ...results.json: results have no `test_domains`
    """
    known = read_json(path)
    try:
        known = without_check(known, str(path))
    except RecordError as error:
        raise RecordError(
            f"{error}. If you edited it on purpose, take out its entry "
            f"'{CHECK}'."
        ) from None
    results = _shape(known, str(path))
    try:
        check_results(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return results


def row_of(results: Mapping, name: str) -> Mapping:
    """The row of a name.

    Arguments
    ---------
    results : dict
        Results of a study.
    name : str
        Of the row.

    Returns
    -------
    row : dict

    Raises
    ------
    ValueError
        Where there is none; says which there are.

    Example
    -------
    >>> row_of({"rows": [{"name": "ties"}]}, "dare")
    Traceback (most recent call last):
    ...
    ValueError: the results have no row 'dare'. The rows are 'ties'
    """
    for row in results["rows"]:
        if row["name"] == name:
            return row
    names = ", ".join(repr(row["name"]) for row in results["rows"])
    raise ValueError(f"the results have no row {name!r}. The rows are {names}")


def metric_of(results: Mapping) -> str:
    """The name of the error rate, for titles and axes.

    Arguments
    ---------
    results : dict
        Results of a study.

    Returns
    -------
    str

    Example
    -------
    >>> metric_of({"metric": "error"}), metric_of({})
    ('error', 'WER')
    """
    return results.get("metric", "WER")


def domains_in_order(results: Mapping) -> tuple:
    """Sets in domain, out of domain, and those on which models may forget.

    Arguments
    ---------
    results : dict
        Results of a study.

    Returns
    -------
    inside : list of str
    outside : list of str
    retention : list of str

    Example
    -------
    >>> results = {"in_domain": ["b"], "test_domains": ["a", "b", "c"]}
    >>> domains_in_order(results)
    (['b'], ['a', 'c'], ['a', 'c'])
    """
    tested = results["test_domains"]
    inside = [domain for domain in tested if domain in results["in_domain"]]
    outside = [domain for domain in tested if domain not in inside]
    return inside, outside, list(results.get("retention", outside))


def summarize_results(results: Mapping) -> list[dict]:
    """The numbers of each row that tables and pictures show.

    Arguments
    ---------
    results : dict
        Results of a study.

    Returns
    -------
    list of dict
        For each row: ``name``, ``group``, ``rates`` (set to rate in %),
        ``in_domain``, ``out_of_domain`` and ``mean`` (unweighted means of the
        rates, over all sets for the last) and ``forgetting`` (in %). None for
        what does not exist, such as a mean over no sets.

    Example
    -------
    See the module.
    """
    check_results(results)
    inside, outside, retention = domains_in_order(results)
    generalists = [
        row for row in results["rows"] if row.get("group") == "generalist"
    ]
    summaries = []
    for row in results["rows"]:
        sets = row["sets"]
        forgotten = None
        if generalists and retention:
            forgotten = forgetting(
                {name: generalists[0]["sets"][name] for name in retention},
                {name: sets[name] for name in retention},
            )
        summaries.append(
            {
                "name": row["name"],
                "group": row.get("group", ""),
                "rates": {
                    name: rate_of(sets[name])
                    for name in results["test_domains"]
                },
                "in_domain": macro_average(sets, inside),
                "out_of_domain": macro_average(sets, outside),
                "mean": macro_average(sets, results["test_domains"]),
                "forgetting": forgotten,
            }
        )
    return summaries
