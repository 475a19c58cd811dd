"""Pictures of results.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from pathlib import Path

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_merge_curve(searches, path, lines=None, title=None):
    """Error rate against the number of merged candidates.

    The figure of Ducorroy and Riad (arXiv 2505.20477): a curve for each
    search, the single candidates as black crosses, and, where a search
    rejects, accepted and rejected trials with marks of their own. A trial that
    racing stopped is drawn at the error rate that it was sure to reach.

    Arguments
    ---------
    searches : dict
        Title of a search to its trials, as ``SearchResult.trials`` has them.
    path : str or Path
        The picture to write.
    lines : dict, optional
        Title to error rate in percent of what is drawn as a level line.
    title : str, optional
        Of the picture.

    Returns
    -------
    path : Path
    """
    figure, axes = _figure()
    crosses = True
    for colour, (name, trials) in zip(COLOURS, searches.items()):
        singles = [t["value"] for t in trials if t["kind"] == "single"]
        if singles:
            axes.scatter(
                [1] * len(singles),
                singles,
                marker="x",
                color="black",
                zorder=3,
                label="single candidates" if crosses else None,
            )
            crosses = False
        merges = [t for t in trials if t["kind"] == "merge"]
        if not merges:
            continue
        start = [t for t in trials if t["kind"] == "single" and t["accepted"]]
        accepted = start + [t for t in merges if t["accepted"]]
        rejected = [t for t in merges if not t["accepted"]]
        axes.plot(
            [t["merged"] for t in accepted],
            [t["value"] for t in accepted],
            "o-",
            color=colour,
            label=f"{name}" + (", accepted" if rejected else ""),
        )
        if rejected:
            axes.scatter(
                [t["merged"] for t in rejected],
                [t["value"] for t in rejected],
                marker="v",
                facecolors="none",
                edgecolors=colour,
                label=f"{name}, rejected",
            )
    styles = ("--", ":", "-.")
    for style, (name, value) in zip(styles, (lines or {}).items()):
        axes.axhline(value, linestyle=style, color="grey", label=name)
    axes.set_xlabel("merged candidates")
    axes.set_ylabel("WER on the selection sets (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if title:
        axes.set_title(title)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def plot_domains(results, path):
    """Heat map of error rates: models down, test sets across.

    Arguments
    ---------
    results : dict
        As in ``speechbrain_merge.report.tables``.
    path : str or Path
        The picture to write.

    Returns
    -------
    path : Path
    """
    domains = results["test_domains"]
    values = [
        [
            100 * row["sets"][d]["errors"] / row["sets"][d]["words"]
            for d in domains
        ]
        for row in results["rows"]
    ]
    figure, axes = _figure(
        width=1.6 + 0.9 * len(domains), height=1.0 + 0.36 * len(values)
    )
    # each column has its own scale: red is bad for that set
    scaled = [
        [
            (value - min(column)) / (max(column) - min(column) or 1)
            for value, column in zip(row, zip(*values))
        ]
        for row in values
    ]
    axes.imshow(scaled, cmap="RdYlBu_r", aspect="auto", vmin=-0.3, vmax=1.3)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center")
    axes.set_xticks(range(len(domains)), domains, rotation=20, ha="right")
    axes.set_yticks(range(len(values)), [r["name"] for r in results["rows"]])
    axes.set_title("WER (%)", fontsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _save(figure, path)


def _figure(width=6.4, height=4.0):
    """An empty figure, drawn without a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install 'speechbrain_merge[plots]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path):
    """Writes a picture, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format=path.suffix[1:] or "png")
    os.replace(temporary, path)
    return path
