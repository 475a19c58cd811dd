"""The picture of continual learning: forgetting against the average.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report.figure import (
    GREY,
    add_legend,
    group_styles,
    new_figure,
    save_figure,
)
from speechbrain_merge.report.pareto import label_points
from speechbrain_merge.report.results import (
    domains_in_order,
    metric_of,
    summarize_results,
)

# From here on a linear axis would press most models into a corner
WIDE = 4


def plot_forgetting(results, path):
    """Draws forgetting against the mean error rate of each model.

    A dot for each model: its mean error rate over all test sets, and by how
    much the errors on the retention sets have grown. The lower left is best,
    and the original lies on the line of 0 %.

    Arguments
    ---------
    results : dict
        See ``report/results.py``, with a row of the group "generalist" and
        sets that models may forget.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        Where there is no forgetting: no generalist, no retention sets, or no
        errors there that could grow.
    """
    points = [
        (row["mean"], row["forgetting"], row["name"], row["group"])
        for row in summarize_results(results)
    ]
    if any(None in point for point in points):
        retention = domains_in_order(results)[2]
        raise ValueError(
            "the picture of forgetting needs a row of the group 'generalist' "
            "that makes errors on the retention sets; groups are "
            f"{sorted({p[3] for p in points})}, retention sets {retention}"
        )
    figure, axes = new_figure(width=8.4, height=6.0, grid="both")
    means = [point[0] for point in points]
    if min(means) > 0 and max(means) > WIDE * min(means):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8)
    axes.axhline(0, color=GREY, linewidth=1.2, zorder=1)
    groups = list(dict.fromkeys(point[3] for point in points))
    styles = group_styles(groups)
    for group in groups:
        colour, mark = styles[group]
        axes.scatter(
            [point[0] for point in points if point[3] == group],
            [point[1] for point in points if point[3] == group],
            s=56,
            color=colour,
            marker=mark,
            zorder=3,
            label=group or "model",
        )
    axes.margins(0.12)
    axes.set_xlabel(f"mean {metric_of(results)} over all test sets (%)")
    axes.set_ylabel("forgetting (%)")
    add_legend(figure, axes, columns=6)
    # names are put where there is room, once all else has its place
    figure.draw_without_rendering()
    label_points(axes, [point[:3] for point in points], size=7.5)
    return save_figure(figure, path)
