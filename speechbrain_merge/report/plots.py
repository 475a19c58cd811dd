"""Pictures of results: by domain, and by duration.

Results are those of ``report/results.py``.

Authors
 * The speechbrain_merge authors 2026
"""

from math import ceil, floor, log2

from speechbrain_merge.report.figure import (
    COLOURS,
    GREY,
    add_legend,
    new_figure,
    save_figure,
)
from speechbrain_merge.report.results import (
    domains_in_order,
    metric_of,
    summarize_results,
)
from speechbrain_merge.report.tables import pooled_buckets

# A rate of zero would otherwise be infinitely better
DOUBLINGS = 6


def plot_domains(results, path):
    """Heat map of error rates: models down, test sets across.

    The colour is the change against the generalist (the first row, where there
    is none): blue where a model makes fewer errors, red where it makes more.
    The largest change of each colour is the darkest, so that all that lies
    between is told apart. In bold is the best of a set where it is
    significantly better than the next best, if the results say so
    (``significant``), else the lowest rate.

    Arguments
    ---------
    results : dict
        See ``report/results.py``; ``significant`` may give, for each set, the
        name of the best model or None.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path
    """
    inside, outside, _ = domains_in_order(results)
    domains = inside + outside
    summaries = summarize_results(results)
    reference = _reference(summaries)["rates"]
    figure, axes = new_figure(
        width=2.4 + max(0.9 * len(domains), 3),
        height=1.2 + 0.4 * len(summaries),
        grid="",
    )
    changes = [
        [_doublings(row["rates"][d], reference[d]) for d in domains]
        for row in summaries
    ]
    scale = _scale(changes)
    image = axes.imshow(changes, cmap="RdBu_r", aspect="auto", norm=scale)
    for x, domain in enumerate(domains):
        rates = [row["rates"][domain] for row in summaries]
        texts = ["–" if rate is None else f"{rate:.1f}" for rate in rates]
        bold = _bold(results, domain, summaries, rates)
        for y, text in enumerate(texts):
            axes.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                # dark cells need light words
                color="white"
                if abs(scale(changes[y][x]) - 0.5) > 0.3
                else "black",
                weight="bold" if y in bold else "normal",
            )
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(summaries)), [row["name"] for row in summaries])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if inside and outside:
        axes.axvline(len(inside) - 0.5, color="white", linewidth=5)
        _name_sides(axes, inside, outside)
    ticks = range(ceil(scale.vmin), floor(scale.vmax) + 1)
    bar = figure.colorbar(image, ticks=ticks, shrink=0.9, aspect=16)
    bar.ax.set_yticklabels(
        [
            "same"
            if not tick
            else f"{2**tick} x"
            if tick > 0
            else f"1/{2**-tick}"
            for tick in ticks
        ]
    )
    bar.set_label(f"against {_reference(summaries)['name']}", fontsize=9)
    bar.outline.set_visible(False)
    axes.set_title(
        f"{metric_of(results)} (%)",
        fontsize=10,
        pad=20 if inside and outside else 6,
    )
    _turn_where_crowded(figure, axes.get_xticklabels())
    return save_figure(figure, path)


def _scale(changes):
    """Colours of changes: the largest of each side is the darkest there.

    Each side goes to a doubling at least, so that what is nearly the same
    looks so.
    """
    from matplotlib.colors import TwoSlopeNorm

    values = [value for row in changes for value in row]
    return TwoSlopeNorm(0, min(-1, *values), max(1, *values))


def _bold(results, domain, summaries, rates):
    """The rows of a set that are in bold."""
    if "significant" in results:
        best = results["significant"].get(domain)
        return [y for y, row in enumerate(summaries) if row["name"] == best]
    known = [f"{rate:.1f}" for rate in rates if rate is not None]
    best = min(known, key=float, default=None)
    return [y for y, rate in enumerate(rates) if f"{rate or 0:.1f}" == best]


def _turn_where_crowded(figure, labels):
    """Turns the words below an axis if they would run into each other."""
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    gap = labels[0].get_fontsize()
    if any(one.x1 + gap > other.x0 for one, other in zip(boxes, boxes[1:])):
        for label in labels:
            label.set(rotation=25, ha="right")


def plot_buckets(results, path, names=None):
    """Bars of error rates by the duration of the utterances, sets together.

    Arguments
    ---------
    results : dict
        See ``report/results.py``, with ``buckets``.
    path : str or Path
        The picture to write.
    names : list of str, optional
        Models to show, by default all.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        Where results have no buckets, or no model of a name.
    """
    pooled = pooled_buckets(results)
    unknown = [name for name in names or () if name not in pooled]
    if unknown:
        raise ValueError(f"no models {unknown}: there are {list(pooled)}")
    names = list(pooled) if names is None else list(names)
    labels = [
        label for label, counts in pooled[names[0]].items() if counts.utterances
    ]
    figure, axes = new_figure()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        rates = [pooled[name][label].rate or 0 for label in labels]
        places = [
            place + (number - (len(names) - 1) / 2) * width
            for place in range(len(labels))
        ]
        bars = axes.bar(
            places,
            rates,
            width * 0.92,
            label=name,
            color=GREY if number == 0 else COLOURS[(number - 1) % 6],
            # beyond the colours, and in print, the hatch tells them apart
            hatch="//" if number > 6 else None,
            edgecolor="white",
        )
        if len(names) * len(labels) <= 24:
            size = 8 if len(names) <= 5 else 6.5
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=size)
    counts = pooled[names[0]]
    axes.set_xticks(
        range(len(labels)),
        [f"{label} s\nn = {counts[label].utterances}" for label in labels],
    )
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"{metric_of(results)} (%)")
    axes.set_xlabel("duration of the utterance")
    add_legend(figure, axes, columns=4)
    return save_figure(figure, path)


def _reference(summaries):
    """The generalist, or else the first row."""
    generalists = [row for row in summaries if row["group"] == "generalist"]
    return (generalists or summaries)[0]


def _doublings(rate, reference):
    """How often the error rate doubled, at most ``DOUBLINGS`` either way."""
    if rate is None or rate == reference:
        return 0
    if not rate or not reference:
        # nothing to relate to, or nothing left to improve
        return DOUBLINGS if rate else -DOUBLINGS
    return max(-DOUBLINGS, min(DOUBLINGS, log2(rate / reference)))


def _name_sides(axes, inside, outside):
    """Write above the columns which sets are in and out of domain."""
    for name, start, count in (
        ("in domain", 0, len(inside)),
        ("out of domain", len(inside), len(outside)),
    ):
        axes.annotate(
            name,
            (start + (count - 1) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=GREY,
        )
