"""The style of all pictures: legible in a README and to colour-blind readers.

Pictures are drawn without a screen and without touching matplotlib's global
state, and written whole or not at all, as PNG, SVG or PDF by their suffix.

Names of models, files and tensors are drawn as they are: the axes put escapes in
the place of control characters, and take no ``$`` for mathematics.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import io
from pathlib import Path
from typing import Any

from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.files import write_whole

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
GREY = "#5F5F5F"
# with more curves than colours, and in print, the marks tell them apart
MARKS = ("o", "s", "D", "P", "X", "h")

# what takes a title, a label or the names of ticks
_TAKE_TEXT = (
    "annotate",
    "axhline",
    "axvline",
    "bar",
    "barh",
    "plot",
    "scatter",
    "set_title",
    "set_xlabel",
    "set_xticks",
    "set_ylabel",
    "set_yticks",
    "text",
)

# inches; at 150 dots each, as wide as a README shows it
WIDTH, HEIGHT = 7.2, 4.4


def new_figure(width=WIDTH, height=HEIGHT, grid="y"):
    """An empty figure with one pair of axes.

    Arguments
    ---------
    width : float
        In inches.
    height : float
        In inches.
    grid : str
        Which thin lines to draw behind the data: "x", "y", "both" or "".

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : matplotlib.axes.Axes

    Raises
    ------
    ImportError
        Without matplotlib; says how to install it.

    Example
    -------
    >>> figure, axes = new_figure()
    >>> axes.get_axisbelow()
    True
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install 'speechbrain_merge[plots]'"
        ) from error
    figure = _taking_names(Figure)(
        figsize=(width, height), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
    return figure, axes


def as_drawn(value: Any) -> Any:
    r"""A text, or a list of texts, as matplotlib draws it letter by letter.

    The axes of `new_figure` do so with all that they are given.

    Arguments
    ---------
    value : object
        What is no text stays as it is.

    Returns
    -------
    object

    Example
    -------
    >>> as_drawn(["a\x1b[2J", 3])
    ('a\\x1b[2J', 3)
    >>> print(as_drawn("$x$"))
    \$x\$
    """
    if isinstance(value, str):
        return printable(value).replace("$", r"\$")
    if isinstance(value, (list, tuple)):
        return tuple(map(as_drawn, value))
    return value


@functools.cache
def _taking_names(kind):
    """A kind of Figure whose axes take all texts by `as_drawn`."""
    from matplotlib.axes import Axes

    def taking(name):
        method = getattr(Axes, name)

        @functools.wraps(method)
        def take(self, *args, **kwargs):
            kwargs = {key: as_drawn(value) for key, value in kwargs.items()}
            return method(self, *map(as_drawn, args), **kwargs)

        return take

    named = type(
        "NamedAxes", (Axes,), {name: taking(name) for name in _TAKE_TEXT}
    )

    class NamedFigure(kind):
        def add_subplot(self, *args, **kwargs):
            return super().add_subplot(*args, axes_class=named, **kwargs)

        def suptitle(self, t, **kwargs):
            return super().suptitle(as_drawn(t), **kwargs)

    return NamedFigure


def style(number):
    """Colour and mark of the curve of this number, counted from 0.

    Example
    -------
    >>> style(0) != style(1), style(0) != style(len(COLOURS))
    (True, True)
    """
    turn, place = divmod(number, len(COLOURS))
    return COLOURS[place], MARKS[(place + turn) % len(MARKS)]


def group_styles(groups):
    """Colours and marks of groups of models, the same in every picture.

    Arguments
    ---------
    groups : iterable of str
        In their order; may come more than once.

    Returns
    -------
    dict
        Group to colour and mark.

    Example
    -------
    >>> group_styles(["merge", "ensemble"])["merge"] == group_styles(["merge"])[
    ...     "merge"
    ... ]
    True
    """
    known = {
        "generalist": (GREY, "s"),
        "expert": (COLOURS[4], "^"),
        "merge": (COLOURS[0], "o"),
    }
    others = [group for group in dict.fromkeys(groups) if group not in known]
    free = [
        (COLOURS[place], mark)
        for mark in "DvPX"
        for place in (2, 1, 3, *range(5, len(COLOURS)))
    ]
    return known | {
        group: free[number % len(free)] for number, group in enumerate(others)
    }


def draw_lines(axes, lines):
    """Level lines, such as the generalist's error rate.

    Arguments
    ---------
    axes : matplotlib.axes.Axes
        To draw on.
    lines : dict or None
        Title to error rate in percent.

    Example
    -------
    >>> _, axes = new_figure()
    >>> draw_lines(axes, {"generalist": 20.0})
    >>> axes.get_legend_handles_labels()[1]
    ['generalist, 20.0 %']
    """
    strokes = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axhline(
            value,
            linestyle=strokes[number % len(strokes)],
            linewidth=1.4,
            color=GREY,
            label=f"{name}, {value:.1f} %",
            zorder=1.5,
        )


def add_legend(figure, axes, columns=3):
    """Name everything beneath the axes, where it hides no data.

    Example
    -------
    >>> figure, axes = new_figure()
    >>> _ = axes.plot([1, 2], label="a curve")
    >>> add_legend(figure, axes)
    >>> len(figure.legends)
    1
    """
    handles, labels = axes.get_legend_handles_labels()
    for count in range(min(columns, len(labels)), 0, -1):
        legend = figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=count,
            frameon=False,
            fontsize=9,
        )
        # long names get fewer columns, not cut off at the sides
        if count == 1 or legend.get_window_extent().width < figure.bbox.width:
            break
        legend.remove()


def save_figure(figure, path):
    """Write a picture, whole or not at all.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        What to write.
    path : str or Path
        Its suffix says as what.

    Returns
    -------
    path : Path

    Example
    -------
    >>> figure, _ = new_figure()
    >>> save_figure(figure, getfixture("tmp_path") / "empty.png").name
    'empty.png'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png")
    write_whole(path, drawn.getvalue())
    return path
