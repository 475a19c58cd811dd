"""How far two models were from each other, and how far alignment brought them.

One row a space (``speechbrain_merge.methods.transport``): the distance of the
weights that lie in it that is left after alignment, and the share of units that
stayed where they were. For models from one start nothing moves, and there is
nothing for alignment to do.

Example
-------
>>> groups = [
...     {
...         "space": "stream",
...         "units": 2,
...         "before": 4.0,
...         "after": 1.0,
...         "stays": 0.5,
...         "pinned": "",
...     }
... ]
>>> plot_alignment(groups, getfixture("tmp_path") / "alignment.png").name
'alignment.png'

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report.figure import (
    GREY,
    WIDTH,
    add_legend,
    new_figure,
    save_figure,
    style,
)


def plot_alignment(groups, path, title=None):
    """Draws what an alignment did to each space.

    Arguments
    ---------
    groups : list of dict
        ``Alignment.groups``.
    path : str or Path
        The picture to write.
    title : str, optional
        Above the picture.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        Where there is nothing to draw.
    """
    if not groups:
        raise ValueError("An alignment without any space cannot be drawn.")
    ordered = sorted(groups, key=lambda group: _natural(group["space"]))
    figure, axes = new_figure(WIDTH, 1.4 + 0.2 * len(ordered), grid="x")
    rows = range(len(ordered))
    left = [
        100 * group["after"] / group["before"] if group["before"] else 100.0
        for group in ordered
    ]
    stays = [100 * group["stays"] for group in ordered]
    colour, _ = style(0)
    axes.barh(
        rows,
        left,
        height=0.7,
        color=colour,
        alpha=0.75,
        label="squared distance left, % of that before",
    )
    colour, mark = style(1)
    axes.plot(
        stays,
        rows,
        linestyle="",
        marker=mark,
        markersize=5,
        color=colour,
        label="units that stay in their place, %",
    )
    axes.axvline(100, color=GREY, linewidth=1.0, zorder=0.5)
    axes.set_yticks(
        rows,
        [
            f"{group['space']} ({group['units']})"
            + (", pinned" if group["pinned"] else "")
            for group in ordered
        ],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.set_xlim(0, max(104, 1.04 * max(left)))
    axes.set_xlabel("%")
    if title:
        axes.set_title(title)
    add_legend(figure, axes, columns=2)
    return save_figure(figure, path)


def _natural(name):
    """Sorts layer 10 after layer 9."""
    return [
        (word.isdigit(), int(word) if word.isdigit() else 0, word)
        for word in name.split(".")
    ]
