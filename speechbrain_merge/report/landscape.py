"""Pictures of loss and error rate between models, along a line and on a plane.

What they draw comes from ``speechbrain_merge.Landscape``, as it is or read from
its JSON files.

Authors
 * The speechbrain_merge authors 2026
"""

import math

from speechbrain_merge.evaluation.barrier import barrier
from speechbrain_merge.report.figure import (
    GREY,
    add_legend,
    as_drawn,
    draw_lines,
    new_figure,
    save_figure,
    style,
)

LABELS = {"loss": "loss", "wer": "WER (%)"}

LEVELS = 14


def plot_line(
    curves, path, measure="wer", ends=None, lines=None, title=None, log=False
):
    """Loss or error rate along lines between models.

    Arguments
    ---------
    curves : dict
        Title, such as "direct" and "aligned", to what ``Landscape.line`` gave.
    path : str or Path
        The picture to write.
    measure : str
        ``"wer"`` or ``"loss"``.
    ends : tuple of str, optional
        What to call t = 0 and t = 1. By default the models' titles, where all
        curves agree, and else "first" and "second model".
    lines : dict, optional
        Title to value of what is drawn as a level line (only error rates).
    title : str, optional
        Of the picture.
    log : bool
        Whether the axis of values is logarithmic.

    Returns
    -------
    path : Path

    Example
    -------
    >>> points = [(0.0, 5.0), (0.5, 60.0), (1.0, 6.0)]
    >>> line = {
    ...     "models": [{"name": "SL"}, {"name": "SSL"}],
    ...     "points": [{"t": t, "wer": wer} for t, wer in points],
    ... }
    >>> path = getfixture("tmp_path") / "line.png"
    >>> plot_line({"direct": line}, path).name
    'line.png'
    """
    _check(measure)
    figure, axes = new_figure()
    draw_lines(axes, lines)
    for number, (name, curve) in enumerate(curves.items()):
        colour, mark = style(number)
        points = sorted(curve["points"], key=lambda point: point["t"])
        axes.plot(
            [point["t"] for point in points],
            [_number(point[measure]) for point in points],
            marker=mark,
            markersize=5,
            color=colour,
            label=_legend(name, points, measure),
        )
    for t in (0, 1):
        axes.axvline(t, color=GREY, linewidth=0.8, linestyle=":")
    if log:
        axes.set_yscale("log")
    axes.set_ylabel(LABELS[measure])
    axes.set_xlabel("t, from the first model to the second")
    names = ends or _ends(curves)
    top = axes.secondary_xaxis("top")
    top.set_xticks([0, 1], labels=as_drawn(list(names)))
    top.tick_params(length=0)
    top.spines["top"].set_visible(False)
    if title:
        axes.set_title(title)
    add_legend(figure, axes)
    return save_figure(figure, path)


def plot_plane(plane, path, measure="wer", marks=None, title=None):
    """Contours of loss or error rate on the plane through three models.

    Arguments
    ---------
    plane : dict
        What ``Landscape.plane`` gave.
    path : str or Path
        The picture to write.
    measure : str
        ``"wer"`` or ``"loss"``. The colours of a loss are logarithmic;
        they end with the highest value between the models.
    marks : dict, optional
        Title to weights of the three models, such as ``{"average": [0.5, 0.5,
        0]}``: more places to mark.
    title : str, optional
        Of the picture.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        When no point has a finite value.

    Example
    -------
    >>> corners = {"A": (0, 0), "B": (1, 0), "C": (0, 1)}
    >>> plane = {
    ...     "models": [
    ...         {"name": name, "x": x, "y": y, "wer": 5.0}
    ...         for name, (x, y) in corners.items()
    ...     ],
    ...     "x": [0, 0.5, 1],
    ...     "y": [0, 1],
    ...     "points": [
    ...         {"x": x, "y": y, "wer": 9 * x, "weights": [1 - x - y, x, y]}
    ...         for y in (0, 1)
    ...         for x in (0, 0.5, 1)
    ...     ],
    ... }
    >>> plot_plane(plane, getfixture("tmp_path") / "plane.png").name
    'plane.png'
    """
    _check(measure)
    x, y = plane["x"], plane["y"]
    values = [_number(point[measure]) for point in plane["points"]]
    rows = [
        values[start : start + len(x)]
        for start in range(0, len(values), len(x))
    ]
    levels, log = _levels(plane, values, measure)
    # as high as it has to be, where a length is the same along both axes
    shape = (y[-1] - y[0]) / (x[-1] - x[0])
    height = min(max(5.4 * shape + 1.0, 2.6), 7.0)
    figure, axes = new_figure(height=height, grid="")
    drawn = _contours(axes, x, y, rows, levels, log)
    bar = figure.colorbar(drawn, ax=axes, label=LABELS[measure])
    shown = levels[:: max(1, len(levels) // 7)]
    bar.set_ticks(shown, labels=[f"{level:.3g}" for level in shown])
    bar.minorticks_off()
    _mark(axes, plane["models"], measure, marks)
    axes.set_aspect("equal")
    axes.set_xlabel("distance of weights")
    axes.set_ylabel("distance of weights")
    if title:
        axes.set_title(title)
    return save_figure(figure, path)


def _check(measure):
    """Raises where a measure is none."""
    if measure not in LABELS:
        raise ValueError(
            f"`measure` is one of {sorted(LABELS)}, not {measure!r}"
        )


def _number(value):
    """A value, or NaN, which is not drawn."""
    return math.nan if value is None else float(value)


def _legend(name, points, measure):
    """A curve's title with its barrier, where it has one."""
    if not {0, 1} <= {point["t"] for point in points}:
        return name
    height = barrier(points, measure)
    if not math.isfinite(height):
        return f"{name}, no finite barrier"
    unit = " points" if measure == "wer" else ""
    return f"{name}, barrier {height:.3g}{unit}"


def _ends(curves):
    """The names of the two ends."""
    titles = {
        tuple(model["name"] for model in curve["models"])
        for curve in curves.values()
    }
    names = []
    for place, default in enumerate(("first model", "second model")):
        same = {pair[place] for pair in titles}
        names.append(same.pop() if len(same) == 1 else default)
    return names


def _levels(plane, values, measure):
    """Bounds of the colours, and whether they are logarithmic."""
    models = [_number(model[measure]) for model in plane["models"]]
    known = [value for value in values + models if math.isfinite(value)]
    if not known:
        raise ValueError(f"no point of the plane has a finite {measure}")
    # Far outside of the models a loss explodes, and would leave one colour for
    # all the rest: the scale ends with what lies between them
    between = models + [
        value
        for point, value in zip(plane["points"], values)
        if min(point["weights"]) >= 0
    ]
    low = min(known)
    high = max((v for v in between if math.isfinite(v)), default=max(known))
    if high <= low:
        high = low + (abs(low) or 1.0)
    log = measure == "loss" and low > 0
    if log:
        ratio = high / low
        levels = [low * ratio ** (i / LEVELS) for i in range(LEVELS + 1)]
    else:
        levels = [low + (high - low) * i / LEVELS for i in range(LEVELS + 1)]
    return levels, log


def _contours(axes, x, y, rows, levels, log):
    """Filled contours, and thin lines between them."""
    import numpy
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if log else Normalize)(levels[0], levels[-1])
    values = numpy.ma.masked_invalid(numpy.array(rows))
    # what could not be measured is hatched, not taken for something
    axes.patch.set(hatch="xx", edgecolor="#D0D0D0")
    drawn = axes.contourf(
        x, y, values, levels=levels, norm=norm, cmap="viridis", extend="both"
    )
    axes.contour(
        x, y, values, levels=levels, colors="white", linewidths=0.4, alpha=0.6
    )
    return drawn


def _mark(axes, models, measure, marks):
    """The models, the triangle between them, and other places."""
    corners = [(model["x"], model["y"]) for model in models]
    axes.plot(*zip(*corners, corners[0]), color="white", linestyle="--", lw=1.2)
    places = []
    for model, corner in zip(models, corners):
        name, value = model["name"], model[measure]
        if value is not None:
            name += f", {value:.3g}" + (" %" if measure == "wer" else "")
        places.append((name, corner, "o"))
    for name, weights in (marks or {}).items():
        total = sum(weights)
        x, y = (
            sum(w * corner[axis] for w, corner in zip(weights, corners)) / total
            for axis in (0, 1)
        )
        places.append((name, (x, y), "*"))
    middle = sum(corner[1] for corner in corners) / len(corners)
    for name, (x, y), mark in places:
        axes.plot(
            x,
            y,
            marker=mark,
            markersize=15 if mark == "*" else 10,
            color="#D55E00",
            markeredgecolor="white",
            linestyle="",
            clip_on=False,
        )
        axes.annotate(
            name,
            (x, y),
            xytext=(0, 11 if y >= middle else -11),
            textcoords="offset points",
            ha="center",
            va="bottom" if y >= middle else "top",
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 1.5},
        )
