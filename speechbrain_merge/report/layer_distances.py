"""The picture of how alike two models are, layer by layer.

Attention is merged in the layers in which source and target are most similar
(``speechbrain_merge.search.layer_similarity``). The picture shows the distance
of each layer, and stars on those that are chosen. Several distances, whose
units have nothing in common, are drawn from 0, the most similar layer, to 1,
the least.

Example
-------
>>> from speechbrain_merge.search import LayerDistances
>>> found = LayerDistances("euclidean", (3.0, 1.0, 2.0), "bert", "hubert")
>>> plot_layer_distances(
...     found, getfixture("tmp_path") / "layers.png", chosen=2
... ).name
'layers.png'

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report.figure import (
    add_legend,
    new_figure,
    save_figure,
    style,
)

TITLES = {
    "sliced_wasserstein": "sliced Wasserstein distance",
    "euclidean": "Euclidean distance",
    "inner_product": "inner product",
}


def plot_layer_distances(distances, path, chosen=None, title=None):
    """Draws the distance of each layer.

    Arguments
    ---------
    distances : LayerDistances or list of LayerDistances
        One distance, drawn as it is, or several of the same two models.
    path : str or Path
        The picture to write.
    chosen : int, optional
        Marks so many of the most similar layers of each.
    title : str, optional
        Above the picture. Default: the two models.

    Returns
    -------
    path : Path
    """
    listed = list(distances) if isinstance(distances, (list, tuple)) else None
    several = listed is not None and len(listed) > 1
    listed = listed or [distances]
    figure, axes = new_figure()
    for number, found in enumerate(listed):
        colour, mark = style(number)
        values = _scaled(found) if several else list(found.values)
        stars = found.closest(chosen) if chosen else []
        # a measure of one's own has a name of its own
        name = TITLES.get(found.distance, found.distance)
        if stars:
            name += f", most similar: {', '.join(map(str, stars))}"
        axes.plot(
            range(len(values)),
            values,
            marker=mark,
            markersize=5,
            color=colour,
            label=name,
        )
        axes.plot(
            stars,
            [values[layer] for layer in stars],
            linestyle="",
            marker="*",
            markersize=15,
            color=colour,
            markeredgecolor="white",
            zorder=4,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    first = listed[0]
    if several:
        axes.set_ylabel("0: most similar layer, 1: least")
    else:
        more = "more" if first.distance == "inner_product" else "less"
        # what it is a distance of stands in the legend
        word = "product" if more == "more" else "distance"
        axes.set_ylabel(f"{word} ({more} is more similar)")
    axes.set_title(title or f"{first.source} and {first.target}")
    add_legend(figure, axes, columns=1)
    return save_figure(figure, path)


def _scaled(found):
    """Values from 0, the most similar, to 1, the least."""
    ranked = found.ranked()
    nearest, farthest = found.values[ranked[0]], found.values[ranked[-1]]
    span = (farthest - nearest) or 1.0
    return [(value - nearest) / span for value in found.values]
