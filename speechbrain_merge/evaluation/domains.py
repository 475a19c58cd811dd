"""From rates per domain to the few numbers that a merge is judged by.

Domains count the same however large their test sets are: the average of the
papers is the unweighted mean of the rates (a macro average). Beside it stand the
domain that suffers most, and how much of each expert's gain the merge kept.

Example
-------
>>> base = {"read": 10.0, "phone": 40.0, "child": 50.0}
>>> experts = {"read": 8.0, "phone": 20.0, "child": 30.0}
>>> merged = {"read": 9.0, "phone": 25.0, "child": 45.0}
>>> summary = summarize_domains(merged, base, experts)
>>> round(summary["mean"], 2), summary["worst_domain"], summary["improved"]
(26.33, 'child', 3)
>>> summary["normalised_gain"]
{'read': 0.5, 'phone': 0.75, 'child': 0.25}

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Mapping
from typing import Optional

from speechbrain_merge.evaluation.counts import rate_of


def macro_average(
    measured: Mapping, names: Optional[Iterable[str]] = None
) -> Optional[float]:
    """Unweighted mean of the rates of several sets, in %.

    Arguments
    ---------
    measured : dict
        Set to what was measured on it (see ``counts_of``).
    names : iterable of str
        The sets to average; by default all of them.

    Returns
    -------
    float
        None where there are no sets, or where one has no rate: a mean over
        fewer sets would be compared with means over all.

    Example
    -------
    >>> macro_average({"read": (1, 10), "phone": (30, 100), "child": 50.0})
    30.0
    >>> macro_average({"read": 10.0, "phone": 30.0}, names=["phone"])
    30.0
    """
    names = list(measured) if names is None else list(names)
    missing = [name for name in names if name not in measured]
    if missing:
        raise KeyError(f"no rates for {missing}: there are {list(measured)}")
    rates = [rate_of(measured[name]) for name in names]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return sum(known) / len(known)


def normalised_gain(base, expert, merged) -> Optional[float]:
    """The share of an expert's gain on its own domain that a merge keeps.

    Arguments
    ---------
    base : ErrorCounts, (errors, words), dict or float
        The domain measured with the base model (see ``counts_of``).
    expert : ErrorCounts, (errors, words), dict or float
        With the expert of that domain.
    merged : ErrorCounts, (errors, words), dict or float
        With the merged model.

    Returns
    -------
    float
        (base - merged) / (base - expert): 1 is as good as the expert, 0 as
        bad as the base, below 0 worse. None where the expert gains nothing.

    Example
    -------
    >>> normalised_gain(base=20.0, expert=10.0, merged=12.0)
    0.8
    >>> print(normalised_gain(base=20.0, expert=21.0, merged=12.0))
    None
    """
    base, expert, merged = rate_of(base), rate_of(expert), rate_of(merged)
    if None in (base, expert, merged) or expert >= base:
        return None
    return (base - merged) / (base - expert)


def worst_domain(measured: Mapping) -> Optional[str]:
    """The set with the highest rate; the first of several.

    Arguments
    ---------
    measured : dict
        Set to what was measured on it (see ``counts_of``).

    Returns
    -------
    str
        None where no set has a rate.

    Example
    -------
    >>> worst_domain({"read": 5.0, "phone": (3, 10), "silence": (3, 0)})
    'phone'
    """
    rates = {name: rate_of(value) for name, value in measured.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return max(known, key=lambda name: known[name]) if known else None


def summarize_domains(
    merged: Mapping,
    base: Optional[Mapping] = None,
    experts: Optional[Mapping] = None,
) -> dict:
    """The numbers that a merge is judged by, over all its domains.

    Arguments
    ---------
    merged : dict
        Set to what was measured on it with the merged model (see
        ``counts_of``).
    base : dict
        The same sets with the base model.
    experts : dict
        Each set with the expert of that domain; sets without expert left out.

    Returns
    -------
    dict
        "rates" (per set), "mean" (macro average), "worst_domain",
        "worst_rate"; with a base also "improved" (number of sets below the
        base) and "relative_change" (per set, in %); with experts too
        "normalised_gain" (per set with an expert).

    Example
    -------
    >>> summarize_domains({"read": 9.0}, base={"read": 12.0})
    {'rates': {'read': 9.0}, 'mean': 9.0, 'worst_domain': 'read', \
'worst_rate': 9.0, 'improved': 1, 'relative_change': {'read': -25.0}}
    """
    rates = {name: rate_of(value) for name, value in merged.items()}
    worst = worst_domain(merged)
    summary = {
        "rates": rates,
        "mean": macro_average(merged),
        "worst_domain": worst,
        "worst_rate": None if worst is None else rates[worst],
    }
    if base is None:
        return summary
    both = {
        name: (after, before)
        for name, after in rates.items()
        if after is not None and (before := rate_of(base[name])) is not None
    }
    summary["improved"] = sum(after < before for after, before in both.values())
    summary["relative_change"] = {
        name: 100 * (after / before - 1)
        for name, (after, before) in both.items()
        if before
    }
    if experts is not None:
        summary["normalised_gain"] = {
            name: normalised_gain(base[name], expert, merged[name])
            for name, expert in experts.items()
        }
    return summary
