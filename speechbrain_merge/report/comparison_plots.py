"""Pictures of models before they are merged: pairs, layers, spectra.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.report.comparison import GRID
from speechbrain_merge.report.figure import (
    GREY,
    add_legend,
    new_figure,
    save_figure,
    style,
)

# With more cells numbers cannot be read, with more curves colours
MOST_NUMBERS = 12
MOST_CURVES = 12
_LONGEST = 24

PAIRS = {
    "cosine": "cosine of the task vectors",
    "sign_conflicts": "sign conflicts",
    "overlap": "overlap of subspaces",
    "barrier_risk": "barrier risk",
}
LAYERS = {
    "norms": "norm of the task vector over the base's",
    "effective_rank": "effective rank, mean of the matrices",
    "rank_share": "effective rank over the full rank",
}


def plot_comparison(found: Mapping, folder) -> list[Path]:
    """Draws what ``compare_models`` found.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    folder : str or Path
        Where to write.

    Returns
    -------
    paths : list of Path
        A PNG for each measure that there is.
    """
    folder, paths = Path(folder), []
    for name in found["pairs"]:
        if found["pairs"][name].get("all"):
            paths.append(plot_pairs(found, name, folder / f"{name}.png"))
    for name in LAYERS:
        if any(
            value is not None
            for model in found["models"]
            for value in model[name]
        ):
            paths.append(plot_layers(found, name, folder / f"{name}.png"))
    if any(model["energy"] for model in found["models"]):
        paths.append(plot_spectra(found, folder / "spectra.png"))
    return paths


def plot_pairs(found: Mapping, measure: str, path) -> Path:
    """Heat map of a measure of all pairs, over the whole model.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    measure : str
        One of ``PAIRS``.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path
    """
    import numpy

    rows = found["pairs"][measure]["all"]
    labels = [_short(model["label"]) for model in found["models"]]
    count = len(labels)
    side = 1.8 + 0.55 * max(3, min(count, 20))
    figure, axes = new_figure(width=side + 1.4, height=side, grid="")
    values = numpy.array(
        [[float("nan") if v is None else v for v in row] for row in rows]
    )
    known = values[numpy.isfinite(values)]
    largest = float(abs(known).max()) if known.size else 1.0
    low, high, colours = {
        "cosine": (-1.0, 1.0, "RdBu"),
        "sign_conflicts": (0.0, 1.0, "Oranges"),
        "overlap": (0.0, 1.0, "Blues"),
    }.get(measure, (0.0, largest or 1.0, "Oranges"))
    axes.patch.set(hatch="xx", edgecolor="#D0D0D0")
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high)
    if count <= MOST_NUMBERS:
        precision = ".2g" if measure == "barrier_risk" else ".2f"
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                axes.text(
                    x,
                    y,
                    # a tiny negative number would else be written as -0.00
                    "–"
                    if value is None
                    else format(round(value, 12), precision).replace(
                        "-0.00", "0.00"
                    ),
                    ha="center",
                    va="center",
                    fontsize=8,
                    # dark cells need light words
                    color="white"
                    if value is not None and abs(value) > 0.65 * high
                    else "black",
                )
    axes.set_xticks(range(count), labels, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(count), labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = PAIRS[measure]
    if not found["base"]:
        title = title.replace("task vectors", "weights")
    if measure == "overlap" and found["chance"] is not None:
        title += f" (chance {found['chance']:.2f})"
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, shrink=0.85, aspect=16).outline.set_visible(False)
    return save_figure(figure, path)


def plot_layers(found: Mapping, measure: str, path) -> Path:
    """A measure of each model, part by part.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    measure : str
        One of ``LAYERS``.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path
    """
    places = [
        place
        for place in range(len(found["parts"]))
        if any(model[measure][place] is not None for model in found["models"])
    ]
    parts = [found["parts"][place] for place in places]
    figure, axes = new_figure(width=max(7.2, 1.5 + 0.28 * len(parts)))
    for number, model in enumerate(found["models"]):
        colour, mark = _curve(number, len(found["models"]))
        values = [model[measure][place] for place in places]
        axes.plot(
            range(len(parts)),
            [float("nan") if v is None else v for v in values],
            color=colour,
            marker=mark,
            markersize=4,
            linewidth=1.2,
            label=_short(model["label"]),
        )
    axes.set_xticks(
        range(len(parts)),
        [_short(part) for part in parts],
        rotation=45 if len(parts) < 16 else 90,
        ha="right" if len(parts) < 16 else "center",
        fontsize=8,
    )
    axes.set_ylim(bottom=0)
    title = LAYERS[measure]
    if measure == "norms" and not found["base"]:
        title = "norm of the weights"
    axes.set_title(title, fontsize=10)
    if len(found["models"]) <= MOST_CURVES:
        add_legend(figure, axes)
    return save_figure(figure, path)


def plot_spectra(found: Mapping, path) -> Path:
    """How much of a task vector's energy its strongest directions hold.

    Arguments
    ---------
    found : dict
        See ``report/comparison.py``.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path
    """
    figure, axes = new_figure(grid="both")
    shares = [100 * place / (GRID - 1) for place in range(GRID)]
    for number, model in enumerate(found["models"]):
        if model["energy"]:
            colour, mark = _curve(number, len(found["models"]))
            axes.plot(
                shares,
                [100 * value for value in model["energy"]],
                color=colour,
                marker=mark,
                markevery=(number % 5, 5),
                markersize=4,
                linewidth=1.4,
                label=_short(model["label"]),
            )
    axes.plot(
        [0, 100],
        [0, 100],
        color=GREY,
        linestyle=":",
        label="all equally strong",
    )
    axes.set_xlabel("strongest directions (% of the rank)")
    axes.set_ylabel("energy of the task vector (%)")
    axes.set_title("spectra, mean of the matrices in layers", fontsize=10)
    if len(found["models"]) <= MOST_CURVES:
        add_legend(figure, axes)
    return save_figure(figure, path)


def _curve(number, count):
    """Colour and mark of a curve; thin grey ones where there are many."""
    return style(number) if count <= MOST_CURVES else (GREY, None)


def _short(label):
    """A label that fits."""
    return label if len(label) <= _LONGEST else "…" + label[1 - _LONGEST :]
