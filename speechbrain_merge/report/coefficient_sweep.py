"""The picture of a sweep: error rates against a coefficient of the merge.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.report.figure import (
    add_legend,
    draw_lines,
    new_figure,
    save_figure,
    style,
)


def plot_coefficient_sweep(
    curves, path, coefficient="scale", lines=None, title=None, metric="WER"
):
    """Error rates against a coefficient of the merge; a star at each best.

    Arguments
    ---------
    curves : dict
        Title (such as "in domain") to pairs of coefficient and error rate in
        percent; ``sweep_of`` reads them from the trials of a search.
    path : str or Path
        The picture to write.
    coefficient : str
        Its name, for the axis.
    lines : dict, optional
        Title to error rate in percent of what is drawn as a level line.
    title : str, optional
        Of the picture.
    metric : str
        What the rates are, for the axis.

    Returns
    -------
    path : Path

    Example
    -------
    >>> curve = [(0.0, 20.0), (0.5, 12.0), (1.0, 15.0)]
    >>> path = getfixture("tmp_path") / "sweep.png"
    >>> plot_coefficient_sweep({"in domain": curve}, path).name
    'sweep.png'
    """
    figure, axes = new_figure()
    draw_lines(axes, lines)
    for number, (name, pairs) in enumerate(curves.items()):
        pairs = sorted(pairs)
        colour, mark = style(number)
        best = min(pairs, key=lambda pair: pair[1])
        axes.plot(
            *zip(*pairs),
            marker=mark,
            markersize=5,
            color=colour,
            label=f"{name}, best {best[1]:.1f} % at {best[0]:g}",
        )
        axes.plot(
            *best,
            marker="*",
            markersize=17,
            color=colour,
            markeredgecolor="white",
            zorder=4,
        )
    axes.set_xlabel(coefficient)
    axes.set_ylabel(f"{metric} (%)")
    if title:
        axes.set_title(title)
    add_legend(figure, axes)
    return save_figure(figure, path)


def sweep_of(trials, coefficient):
    """Coefficient and error rate of the trials that were scored in full.

    Arguments
    ---------
    trials : list of dict
        Of a search over coefficients.
    coefficient : str
        The parameter to look at.

    Returns
    -------
    list of tuple
        By rising coefficient.

    Example
    -------
    >>> trials = [
    ...     {"parameters": {"scale": 1.0}, "value": 15.0, "complete": True},
    ...     {"parameters": {"scale": 0.5}, "value": 12.0, "complete": True},
    ...     {"parameters": {"scale": 2.0}, "value": 15.0, "complete": False},
    ... ]
    >>> sweep_of(trials, "scale")
    [(0.5, 12.0), (1.0, 15.0)]
    """
    return sorted(
        (trial["parameters"][coefficient], trial["value"])
        for trial in trials
        # what racing stopped has a floor only, no error rate
        if trial["complete"]
    )
