"""The picture of a search: error rate against the candidates merged.

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


def plot_merge_curve(
    searches, path, lines=None, title=None, limits=None, metric="WER"
):
    """Error rate against the number of merged candidates.

    The figure of Ducorroy and Riad (arXiv 2505.20477): a curve for each
    search, and the single candidates as black crosses. The curve joins the
    merges that the search accepted; where a search rejects, rejected merges
    are hollow, and a trial that racing stopped is drawn as a triangle at the
    error rate that it was sure to reach.

    Arguments
    ---------
    searches : dict
        Title of a search to its trials, as ``SearchResult.trials`` has them.
    path : str or Path
        The picture to write.
    lines : dict, optional
        Title to error rate in percent of what is drawn as a level line, such
        as the generalist.
    title : str, optional
        Of the picture.
    limits : tuple of float, optional
        Lowest and highest error rate to show, in percent.
    metric : str
        What the rates are, for the axis.

    Returns
    -------
    path : Path

    Example
    -------
    >>> def trial(kind, step, merged, value, accepted, best):
    ...     return dict(
    ...         kind=kind,
    ...         candidate=f"c{step}",
    ...         step=step,
    ...         merged=merged,
    ...         value=value,
    ...         accepted=accepted,
    ...         complete=True,
    ...         best=best,
    ...     )
    >>> trials = [
    ...     trial("single", 1, 1, 20.0, True, 20.0),
    ...     trial("merge", 2, 2, 18.0, True, 18.0),
    ...     trial("merge", 3, 3, 19.0, False, 18.0),
    ... ]
    >>> path = getfixture("tmp_path") / "curve.png"
    >>> plot_merge_curve({"greedy": trials}, path, {"generalist": 25.0}).name
    'curve.png'
    """
    figure, axes = new_figure()
    draw_lines(axes, lines)
    crosses = {}
    for number, (name, trials) in enumerate(searches.items()):
        _draw_search(axes, name, trials, *style(number))
        for trial in trials:
            if trial["kind"] == "single":
                crosses.setdefault(trial["candidate"], trial["value"])
    if crosses:
        axes.scatter(
            [1] * len(crosses),
            list(crosses.values()),
            marker="x",
            s=42,
            linewidths=1.6,
            color="black",
            zorder=4,
            label="single candidates",
        )
    axes.set_xlabel("merged candidates")
    axes.set_ylabel(f"{metric} on the selection sets (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    # room beneath the lowest mark
    axes.margins(y=0.09)
    if limits is not None:
        axes.set_ylim(*limits)
    if title:
        axes.set_title(title)
    add_legend(figure, axes)
    return save_figure(figure, path)


def _draw_search(axes, name, trials, colour, mark):
    """The curve of one search and its rejected trials."""
    kept = [trial for trial in trials if trial["step"] is not None]
    rejected = [trial for trial in kept if not trial["accepted"]]
    accepted = [trial for trial in kept if trial["accepted"]]
    if not accepted:
        return
    axes.plot(
        [trial["merged"] for trial in accepted],
        [trial["value"] for trial in accepted],
        marker=mark,
        markersize=7,
        color=colour,
        linewidth=1.8,
        zorder=2,
        label=f"{name}, accepted" if rejected else name,
    )
    for complete, shape, words in (
        (True, mark, "rejected"),
        (False, "^", "rejected early (at least)"),
    ):
        these = [t for t in rejected if t["complete"] == complete]
        if these:
            axes.scatter(
                [trial["merged"] for trial in these],
                [trial["value"] for trial in these],
                marker=shape,
                s=44,
                facecolors="white",
                edgecolors=colour,
                linewidths=1.3,
                zorder=2.5,
                label=f"{name}, {words}",
            )
