"""The picture of learned coefficients: over training, and layer by layer.

For learnable attention merging it shows the share of the source in each layer,
and for AdaMerging the share of each expert. On the left is the
course of training, a line for each layer, the darker the deeper; on the right
layer by layer how far it went, the dot being the end. There is one row for each
expert, or for each kind of attention.

A recipe writes λ down as it trains, and draws at the end::

    # in on_stage_end, after validation
    record_coefficients(path, epoch, learned_ratio(self.modules)["parts"])
    plot_learned_coefficients(path, "ratios.png", coefficient="λ")

What ``learn_coefficients`` returns is drawn as it is.

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.records.checked import (
    either,
    fields,
    mapped,
    number,
    plain_float,
)
from speechbrain_merge.records.log import Log
from speechbrain_merge.report.figure import (
    COLOURS,
    GREY,
    WIDTH,
    new_figure,
    save_figure,
)

ROW_HEIGHT = 2.7
MOST_LABELS = 12
LONGEST_LABEL = 24
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)(?=\.|$)")

_step = fields(
    {
        "step": number(),
        "coefficients": mapped(either(plain_float, mapped(plain_float))),
    }
)
"""A line of the file: λ may be infinite or NaN where a training diverged."""


def record_coefficients(path, step, coefficients):
    """Appends the coefficients of a step to a file of JSON lines.

    Arguments
    ---------
    path : str or Path
        The file. A resumed training appends to it; of a step that is there
        twice, the later line counts.
    step : int
        Or the epoch.
    coefficients : dict
        Place to λ, or expert to place to λ.

    Example
    -------
    >>> path = getfixture("tmp_path") / "ratios.jsonl"
    >>> record_coefficients(path, 1, {"encoder.layers.0.attention": 0.12})
    >>> read_coefficients(path)[0]["step"]
    1
    """
    Log(path).append({"step": step, "coefficients": coefficients})


def read_coefficients(path):
    """Reads what ``record_coefficients`` wrote: each step once, in order.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    history : list of dict
        With ``step`` and ``coefficients``.

    Raises
    ------
    ValueError
        When the file has no whole line, or a damaged one.
    """
    rows = {row["step"]: row for row in Log(path, _step).records()}
    if not rows:
        raise ValueError(f"{path} has no coefficients.")
    return [rows[step] for step in sorted(rows)]


def plot_learned_coefficients(
    history, path, coefficient="λ", title=None, unit="step", start=None
):
    """Coefficients over training, and by layer.

    Arguments
    ---------
    history : list of dict, str or Path
        From ``learn_coefficients``, or the file of ``record_coefficients``.
    path : str or Path
        The picture to write.
    coefficient : str
        Its name, for the axes.
    title : str, optional
        Of the picture.
    unit : str
        What is counted: "step" or "epoch".
    start : float, optional
        The coefficient before the first step, as a grey line on both sides.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        When there is nothing to draw.

    Example
    -------
    >>> history = [
    ...     {
    ...         "step": step,
    ...         "coefficients": {"layers.0": step / 9, "layers.1": 0.1},
    ...     }
    ...     for step in range(4)
    ... ]
    >>> path = getfixture("tmp_path") / "ratios.png"
    >>> plot_learned_coefficients(history, path).name
    'ratios.png'
    """
    if isinstance(history, (str, Path)):
        history = read_coefficients(history)
    if not history:
        raise ValueError("There is no step of which to draw coefficients.")
    panels = _panels([row["coefficients"] for row in history])
    steps = [row["step"] for row in history]
    figure, first = new_figure(WIDTH, 0.5 + ROW_HEIGHT * len(panels))
    first.remove()
    axes = figure.subplots(
        len(panels), 2, squeeze=False, width_ratios=(3, 2), sharey="row"
    )
    for (name, lines), (course, outcome) in zip(panels.items(), axes):
        shades = _shades(lines)
        _draw_course(course, steps, lines, shades)
        _draw_outcome(outcome, lines, shades)
        course.set_ylabel(f"{coefficient}, {name}" if name else coefficient)
        for each in (course, outcome):
            each.spines[["top", "right"]].set_visible(False)
            each.set_axisbelow(True)
            each.grid(axis="y", color="#E5E5E5", linewidth=0.8)
            if start is not None:
                each.axhline(start, color=GREY, linewidth=1, linestyle="--")
    axes[-1][0].set_xlabel(unit)
    axes[-1][1].set_xlabel("layer")
    axes[0][1].set_title(
        f"from {unit} {steps[0]} to {steps[-1]}", fontsize=9, color=GREY
    )
    if title:
        figure.suptitle(title)
    return save_figure(figure, path)


def _panels(rows):
    """Panel to label to values over time, panels and labels in model order."""
    panels = {}
    for place in _flat(rows[0]):
        panel, label = _split(place)
        values = [_flat(row).get(place) for row in rows]
        panels.setdefault(panel, {})[label] = values
    if not panels:
        raise ValueError("There is no coefficient to draw.")
    return panels


def _flat(coefficients):
    """(expert or None, place) to λ."""
    flat = {}
    for key, value in coefficients.items():
        if isinstance(value, Mapping):
            flat.update({(key, place): one for place, one in value.items()})
        else:
            flat[None, key] = value
    return flat


def _split(place):
    """The panel of a coefficient; its kind and layer there."""
    expert, name = place
    found = _LAYER.search(name)
    kind, layer = name, None
    if found is not None:
        kind = (name[: found.start()] + name[found.end() :]).strip(".")
        layer = int(found[1])
    kind = kind.replace("_", "-").replace(".", " ")
    if expert is None and layer is not None:
        return kind, ("", layer)
    return expert or "", (kind, layer)


def _shades(lines):
    """A colour for each line: a hue a kind, the deeper the layer, the darker."""
    from matplotlib.colors import to_rgb

    kinds = list(dict.fromkeys(kind for kind, _ in lines))
    shades = {}
    for kind, colour in zip(kinds, itertools.cycle(COLOURS)):
        colour = to_rgb(colour)
        inside = [label for label in lines if label[0] == kind]
        for place, label in enumerate(inside):
            if len(inside) == 1:
                shades[label] = colour
                continue
            depth = 0.25 + 0.75 * place / (len(inside) - 1)
            if depth < 0.75:
                shades[label] = [1 - (1 - c) * depth / 0.75 for c in colour]
            else:  # past the full colour it goes on towards black
                shades[label] = [c * (1 - 2 * (depth - 0.75)) for c in colour]
    return shades


def _draw_course(axes, steps, lines, shades):
    few = len(steps) <= MOST_LABELS
    for label, values in lines.items():
        axes.plot(
            steps,
            values,
            color=shades[label],
            linewidth=1.4,
            marker="o" if few else None,
            markersize=3,
        )
    if few:
        axes.set_xticks(steps)


def _draw_outcome(axes, lines, shades):
    """A stem a layer, from where it was to where it is."""
    ticks = {}
    every = -(-len(lines) // MOST_LABELS)
    layered = {kind for kind, layer in lines if layer is not None}
    for place, (label, values) in enumerate(lines.items()):
        kind, layer = label
        axes.plot(
            [place, place],
            [values[0], values[-1]],
            color=shades[label],
            linewidth=1.8,
        )
        axes.plot(place, values[-1], "o", color=shades[label], markersize=5)
        if layer is None:
            ticks[place] = f"{kind}, else" if kind in layered else kind
        elif layer % every == 0:
            ticks[place] = f"{kind} {layer}".strip()
    # a coefficient a tensor: name a few, by how their names end
    crowd = -(-len(ticks) // (2 * MOST_LABELS))
    ticks = dict(list(ticks.items())[::crowd])
    ticks = {place: text[-LONGEST_LABEL:] for place, text in ticks.items()}
    upright = any(len(text) > 3 for text in ticks.values())
    axes.set_xticks(
        list(ticks),
        list(ticks.values()),
        rotation=90 if upright else 0,
        fontsize=8 if upright else 9,
    )
    axes.margins(x=0.08)
    axes.tick_params(labelleft=False)
