"""The picture of a trade-off: in domain against out of domain.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report.figure import (
    GREY,
    WIDTH,
    add_legend,
    group_styles,
    new_figure,
    save_figure,
)
from speechbrain_merge.report.results import (
    domains_in_order,
    metric_of,
    summarize_results,
)

# so many points are drawn larger, and without those far out
MANY = 12


def plot_pareto(results, path):
    """Draws error rates in domain against those out of domain.

    A dot for each model; the line is the Pareto front, of models that no other
    beats on both sides. The lower left is best. Among many, a point that lies
    far out is drawn hollow at the edge, with its place beside its name.

    Arguments
    ---------
    results : dict
        See ``report/results.py``, with sets in and out of domain.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        Where there are no sets on one of the two sides.
    """
    points = [
        (row["in_domain"], row["out_of_domain"], row["name"], row["group"])
        for row in summarize_results(results)
    ]
    if any(None in point for point in points):
        raise ValueError(
            "the Pareto picture needs sets in domain and out of domain; there "
            f"are {domains_in_order(results)[:2]}"
        )
    crowded = len(points) > MANY
    size = {"width": 1.2 * WIDTH, "height": 7.0} if crowded else {"height": 5.0}
    figure, axes = new_figure(**size, grid="both")
    limits = [_limit([point[side] for point in points]) for side in (0, 1)]
    front = pareto_front([point[:2] for point in points])
    axes.plot(
        *zip(*(_placed(point, limits) for point in front)),
        drawstyle="steps-post",
        color=GREY,
        linestyle="--",
        linewidth=1.2,
        zorder=1,
        label="Pareto front",
    )
    styles = group_styles(point[3] for point in points)
    for group, (colour, mark) in styles.items():
        known_as = group or "model"
        axes.scatter([], [], s=64, c=colour, marker=mark, label=known_as)
    names = {}
    for x, y, name, group in points:
        colour, mark = styles[group]
        place = _placed((x, y), limits)
        if place != (x, y):
            name += f" ({x:.1f}, {y:.1f})"
        axes.scatter(
            *place,
            s=64,
            # hollow: it lies farther out, where its name says
            facecolors=colour if place == (x, y) else "white",
            edgecolors=colour,
            marker=mark,
            zorder=3,
        )
        names.setdefault(place, []).append(name)
    axes.margins(0.14)
    axes.set_xlabel(f"mean {metric_of(results)} in domain (%)")
    axes.set_ylabel(f"mean {metric_of(results)} out of domain (%)")
    add_legend(figure, axes, columns=5)
    # names are put where there is room, once all else has its place
    figure.draw_without_rendering()
    label_points(axes, [(*spot, ", ".join(n)) for spot, n in names.items()])
    return save_figure(figure, path)


def _limit(values):
    """What lies beyond is drawn there: it would squeeze all others together."""
    if len(values) <= MANY:
        return max(values)
    middle = sorted(values)[len(values) // 2]
    return max(v for v in values if v <= middle + 3 * (middle - min(values)))


def _placed(point, limits):
    """Where a point is drawn: in its place, or at the edge."""
    return tuple(min(pair) for pair in zip(point, limits))


def pareto_front(points):
    """The points that no other point beats or equals in both coordinates.

    Arguments
    ---------
    points : list of tuple
        Pairs; less is better in both.

    Returns
    -------
    list of tuple
        The front, from left to right.

    Example
    -------
    >>> pareto_front([(3, 1), (1, 3), (3, 3), (2, 2), (1, 4)])
    [(1, 3), (2, 2), (3, 1)]
    """
    front = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def label_points(axes, points, size=9):
    """Write names beside points, where they cover no other name or point.

    Where there is no room beside a point, its name stands farther off, with a
    thin line to it. To be called when the figure is drawn but for that.

    Arguments
    ---------
    axes : matplotlib.axes.Axes
        To draw on.
    points : list of tuple
        x, y and name.
    size : float
        Of the letters, in points.

    Example
    -------
    >>> figure, axes = new_figure()
    >>> _ = axes.scatter([1, 2], [1, 2])
    >>> figure.draw_without_rendering()
    >>> label_points(axes, [(1, 1, "one"), (2, 2, "two")])
    >>> [text.get_text() for text in axes.texts]
    ['one', 'two']
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent()
    spots = [axes.transData.transform(point[:2]) for point in points]
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in spots]
    places = [
        (7, 4, "left", "bottom"),
        (7, -4, "left", "top"),
        (-7, 4, "right", "bottom"),
        (-7, -4, "right", "top"),
        (0, 10, "center", "bottom"),
        (0, -10, "center", "top"),
    ]
    for far in (20, 34, 50, 70):
        for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            side = {1: "left", -1: "right", 0: "center"}[x]
            places.append((far * x, far * y, side, "center"))
    for x, y, name in points:
        for place in places:
            text = axes.annotate(
                name,
                (x, y),
                xytext=place[:2],
                textcoords="offset points",
                ha=place[2],
                va=place[3],
                fontsize=size,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5}
                if place[3] == "center"
                else None,
            )
            text.get_window_extent()  # which puts the letters in their place
            # of the letters alone, without the line to them
            box = Text.get_window_extent(text)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1
            inside = inside and frame.y0 < box.y0 and box.y1 < frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if place is not places[-1]:
                text.remove()
        taken.append(box)
