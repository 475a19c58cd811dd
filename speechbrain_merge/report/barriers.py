"""The picture of barriers: how high they are in several landscapes.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Union

from speechbrain_merge.report.figure import (
    add_legend,
    new_figure,
    save_figure,
    style,
)

LABELS = {"loss": "barrier of the loss", "wer": "barrier of the WER (points)"}


def plot_barriers(
    barriers: Mapping, path: Union[str, Path], measure: str = "loss"
) -> Path:
    """Heights of barriers side by side, a curve for each line in common.

    A study has the models of one size; this shows several studies in one
    picture, such as barriers against width. A curve joins the means over the
    seeds; single seeds are small marks. Barriers that are infinite are left
    out.

    Arguments
    ---------
    barriers : dict
        Title to the barriers of a landscape: seed to line to measure to
        height. Titles are drawn from left to right in this order.
    path : str or Path
        The picture to write.
    measure : str
        ``"loss"``, or ``"wer"`` in points.

    Returns
    -------
    path : Path

    Example
    -------
    >>> barriers = {
    ...     f"width {width}": {
    ...         "7": {"direct": {"loss": 160 / width}},
    ...         "8": {"direct": {"loss": 170 / width}},
    ...     }
    ...     for width in (64, 128)
    ... }
    >>> path = getfixture("tmp_path") / "barriers.png"
    >>> plot_barriers(barriers, path).name
    'barriers.png'
    """
    figure, axes = new_figure()
    names = list(barriers)
    for number, title in enumerate(_lines_in_common(barriers)):
        colour, mark = style(number)
        heights = [
            [
                lines[title][measure]
                for lines in barriers[name].values()
                if lines.get(title, {}).get(measure) is not None
            ]
            for name in names
        ]
        axes.plot(
            range(len(names)),
            [sum(each) / len(each) if each else math.nan for each in heights],
            marker=mark,
            markersize=7,
            color=colour,
            label=title,
        )
        for place, each in enumerate(heights):
            if len(each) > 1:
                axes.scatter(
                    [place] * len(each), each, color=colour, marker=mark, s=12
                )
    axes.set_xticks(range(len(names)), labels=names)
    axes.set_ylabel(LABELS[measure])
    axes.set_ylim(bottom=0)
    add_legend(figure, axes)
    return save_figure(figure, path)


def _lines_in_common(barriers):
    """The names of lines that more than one landscape has."""
    found = Counter(
        title
        for seeds in barriers.values()
        for title in dict.fromkeys(chain.from_iterable(seeds.values()))
    )
    return [title for title, number in found.items() if number > 1]
