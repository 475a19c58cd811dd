"""The tables of a study: mean and spread over seeds, significance, sweeps.

Authors
 * The speechbrain_merge authors 2026
"""

import statistics
from collections.abc import Mapping, Sequence

from speechbrain_merge.evaluation import macro_average
from speechbrain_merge.report import summarize_results
from speechbrain_merge.report.benchmark import benchmark_rows
from speechbrain_merge.report.tables import NOTHING
from speechbrain_merge.study.results import flat


def main_rows(results: Mapping, mode: str, times: Mapping) -> tuple:
    """Header and cells of the main table of one mode.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    mode : str
        One of its modes.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Means over the seeds, with the standard deviation where there are
        several. A rate is in bold where it is significantly better than the
        next best of its column.
    """
    by_seed = {
        seed: {
            row["name"]: row
            for row in summarize_results(flat(results, mode, [seed]))
        }
        for seed in results["seeds"]
        if flat(results, mode, [seed])["rows"]
    }
    best = results["comparisons"]["best"].get(mode, {})
    inside = [n for n in results["tests"] if n in results["domains"]]
    outside = [n for n in results["tests"] if n not in results["domains"]]
    names = inside + outside
    means = [("in_domain", "in-domain\nmean", inside)]
    means += [("out_of_domain", "out-of-domain\nmean", outside)]
    summaries = [row for seed in by_seed.values() for row in seed.values()]
    if results.get("means"):
        means = [(k, f"{k}\nmean", v) for k, v in results["means"].items()]
        for row in summaries:
            for key, _, sets in means:
                row[key] = macro_average(row["rates"], sets)
    means += [("forgetting", "forgetting\n%", names)]
    means += [("mean", "mean", names)]
    shown = [
        (key, title)
        for key, title, wanted in means
        if wanted and any(row[key] is not None for row in summaries)
    ]
    header = [f"{results['metric']} %"]
    header += [_sized(results, mode, name) for name in names]
    header += [title for _, title in shown] + ["trainings", "training\nminutes"]
    rows = []
    for row in results["rows"]:
        cells = []
        for name in names:
            rates = _rates(results, row, mode, name)
            cell = spread(rates)
            found = best.get(name, {})
            if found.get("name") == row["name"] and found.get("significant"):
                cell = f"**{cell}**"
            cells.append(cell)
        of_seeds = [seed.get(row["title"]) for seed in by_seed.values()]
        for key, _ in shown:
            values = [one[key] for one in of_seeds if one is not None]
            cells.append(spread(values if len(values) == len(of_seeds) else []))
        cells.append(str(len(row["trainings"])))
        cells.append(_training_minutes(row, times))
        rows.append([row["title"], *cells])
    return header, rows


def spread(values: Sequence) -> str:
    """The mean of some numbers, and their standard deviation.

    Arguments
    ---------
    values : list of float
        One a seed; None where a number does not exist.

    Returns
    -------
    str

    Example
    -------
    >>> spread([10.0, 12.0]), spread([9.96]), spread([])
    ('11.0 ± 1.4', '10.0', '–')
    """
    if not values or None in values:
        return NOTHING
    mean = f"{round(statistics.fmean(values), 1) + 0:.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.1f}"


def comparison_rows(results: Mapping) -> tuple:
    """Header and cells of the table of compared pairs.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        The difference of the mean error rates with the interval of the block
        bootstrap, and the p-values of MAPSSWE.
    """
    several = len(results["modes"]) > 1
    header = [
        "compared",
        f"difference\nof mean {results['metric']}",
        "95 % interval",
    ]
    header += ["blocks", "MAPSSWE p", "after Holm", "told apart"]
    rows = []
    for pair in results["comparisons"]["pairs"]:
        first, second = pair["titles"]
        name = f"{second} against {first}"
        if "on" in pair:
            name += f", on {' and '.join(pair['on'])}"
        rows.append(
            [
                f"{name}, {pair['mode']}" if several else name,
                f"{pair['difference']:+.2f}",
                f"[{pair['low']:+.2f}, {pair['high']:+.2f}]",
                str(pair["blocks"]),
                f"{pair['p']:.2g}",
                f"{pair['holm']:.2g}",
                "yes" if pair["holm"] < 0.05 else "no",
            ]
        )
    return header, rows


def sequence_rows(results: Mapping) -> tuple:
    """Header and cells of the transfer between the domains of sequences.

    Arguments
    ---------
    results : dict
        With ``sequences``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Backward and forward transfer in points of the error rate. Below 0 is forgetting;
        above 0, earlier domains have helped.
    """
    header = ["sequence", "domains", "backward transfer", "forward transfer"]
    grouped = {}
    for one in results["sequences"]:
        grouped.setdefault(one["name"], []).append(one)
    rows = []
    for name, found in grouped.items():
        cells = []
        for key in ("backward", "forward"):
            mean = statistics.fmean(one[key] for one in found)
            cells.append(f"{mean:+.1f}")
        rows.append([name, ", ".join(found[0]["domains"]), *cells])
    return header, rows


def training_rows(results: Mapping, times: Mapping) -> tuple:
    """Header and cells of what each training of a study took.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Steps of the optimizer, and minutes, in the mean of the seeds.

    Example
    -------
    >>> model = {"name": "a", "title": "A", "kind": "train"}
    >>> model.update(parents=["b"], about={"7": {"steps": 40}})
    >>> times = {"a": {"7": {"seconds": 90, "interrupted": True}}}
    >>> training_rows({"rows": [model], "models": {}}, times)
    (['training', 'made from', 'steps', 'minutes'], [['A', 'b', '40', '> 1.5']])
    """
    rows = []
    for row in [*results["rows"], *results["models"].values()]:
        # a training, or a matching that was learned on transcribed speech
        steps = [a["steps"] for a in row["about"].values() if "steps" in a]
        if not steps:
            continue
        minutes = _training_minutes({**row, "trainings": [row["name"]]}, times)
        cells = [", ".join(row["parents"]) or NOTHING]
        cells += [f"{statistics.fmean(steps):g}", minutes]
        rows.append([row["title"], *cells])
    return ["training", "made from", "steps", "minutes"], rows


def cost_rows(results: Mapping, times: Mapping) -> tuple:
    """Header and cells of the cost of each merge, and of its error rates.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    times : dict
        The content of ``times.json``, with costs where the study has ``costs``.

    Returns
    -------
    header : list of str
    rows : list of list of str
        See ``report/benchmark.py``.
    """
    shown = flat(results)
    by_title = {row["title"]: row["name"] for row in results["rows"]}
    seed = str(results["seeds"][0])
    compared = [p for p in results["comparisons"]["pairs"] if "on" not in p]
    pairs = {pair["names"][1]: pair for pair in compared}
    references = {pair["names"][0] for pair in compared}
    rows = []
    for row in shown["rows"]:
        name = by_title[row["name"]]
        row = dict(row)
        cost = times.get(name, {}).get(f"{seed} cost")
        if cost:
            row["cost"] = cost
        if name in pairs:
            row["difference"] = pairs[name]
        rows.append(row)
    shown = {**shown, "rows": rows}
    if len(references) == 1:
        shown["reference"] = references.pop()
    return benchmark_rows(shown)


def sweep_rows(sweeps: Mapping, metric: str) -> tuple:
    """Header and cells of error rates on the selection sets by a coefficient.

    Arguments
    ---------
    sweeps : dict
        Name of a merge to the trials of its search over one coefficient.
    metric : str
        The name of the error rate.

    Returns
    -------
    header : list of str
    rows : list of list of str
        The lowest of each row in bold.

    Example
    -------
    >>> trials = [
    ...     {"parameters": {"ratio": ratio}, "value": value, "complete": True}
    ...     for ratio, value in [(0.0, 9.25), (0.1, 9.06)]
    ... ]
    >>> sweep_rows({"mam": trials}, "WER")
    (['selection sets, WER %', 'ratio 0', '0.1'], [['mam', '9.25', '**9.06**']])
    """
    coefficient = next(iter(next(iter(sweeps.values()))[0]["parameters"]))
    rates = {
        name: {
            _text(trial["parameters"][coefficient]): trial["value"]
            for trial in trials
            if trial.get("complete", True)
        }
        for name, trials in sweeps.items()
    }
    values = list(dict.fromkeys(v for row in rates.values() for v in row))
    rows = []
    for name, row in rates.items():
        least = min(row.values())
        cells = []
        for value in values:
            rate = row.get(value)
            text = "" if rate is None else f"{rate:.2f}"
            cells.append(f"**{text}**" if rate == least else text)
        rows.append([name, *cells])
    header = [f"selection sets, {metric} %", *values]
    header[1] = f"{coefficient} {values[0]}"
    return header, rows


def _sized(results, mode, name):
    """The title of a set, with its size beneath."""
    seed = str(results["seeds"][0])
    for row in results["rows"]:
        counts = row["sets"][seed][mode].get(name)
        if counts is not None:
            size = f"{counts['utterances']} utterances"
            if results["metric"] == "WER":
                size = f"{counts['words']:g} words\n{size}"
            return f"{name}\n{size}"
    return name


def _rates(results, row, mode, name):
    """The rate of a row on a set, for each seed; empty where untested."""
    counts = [
        row["sets"][str(seed)][mode].get(name) for seed in results["seeds"]
    ]
    if None in counts:
        return []
    return [
        100 * each["errors"] / each["words"] if each["words"] else None
        for each in counts
    ]


def _training_minutes(row, times):
    """How long all trainings of a row took, in the mean of the seeds."""
    if not row["trainings"]:
        return NOTHING
    seeds = list(row["about"])
    total, whole = 0.0, True
    for name in row["trainings"]:
        for seed in seeds:
            took = times.get(name, {}).get(seed, {})
            known = took.get("seconds")
            total += known or 0.0
            whole = whole and known is not None
            whole = whole and not took.get("interrupted", False)
    minutes = f"{total / len(seeds) / 60:.1f}"
    # what came before an interruption is not counted
    return minutes if whole else f"> {minutes}"


def _text(value):
    """A coefficient as text."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
