"""Landscapes of a fusion: what lies between two models, before and after.

Along the line from one parent to the other, as it is and aligned; along the way
that each has come since its training began (Fu et al., arXiv 2306.02541, Figure
2); and on the plane through both and the aligned one. On the selection sets,
offline. Every point is kept once it is scored.

Authors
 * The speechbrain_merge authors 2026
"""

from contextlib import ExitStack

from speechbrain.utils.distributed import run_on_main

from speechbrain_merge.brain.landscape import Landscape
from speechbrain_merge.methods.transport import align
from speechbrain_merge.report import plot_line, plot_plane
from speechbrain_merge.weights import open_weights, write_weights


def walk(
    brain,
    valid_data,
    parents,
    starts,
    alignments,
    folder,
    points,
    plane_points,
):
    """Walks between two models, and draws it.

    Arguments
    ---------
    brain : ASR
        Scores.
    valid_data : DynamicItemDataset
        The selection sets.
    parents : dict
        Name to weights of the two models. The second is aligned to the first.
    starts : dict
        Name to the weights that its training began from.
    alignments : dict
        Name of an alignment to None, if it goes by weights, or else to the
        files of the activations of ``anchor`` and ``source``.
    folder : Path
        Gets the points, the lines as JSON and the pictures.
    points : int
        Along each line.
    plane_points : int
        Along each side of the plane; 0 leaves it out.

    Returns
    -------
    dict
        Line to its barriers, of ``loss`` and ``wer``.
    """
    anchor, moved = parents
    folder.mkdir(parents=True, exist_ok=True)
    landscape = Landscape(brain, valid_data, folder=folder)
    between = {"direct": {moved: parents[moved], anchor: parents[anchor]}}
    for name, seen in alignments.items():
        aligned = folder / f"{name}.safetensors"
        run_on_main(
            write_aligned, args=[parents[moved], parents[anchor], seen, aligned]
        )
        between[name] = {f"{moved}, {name}": aligned, anchor: parents[anchor]}
    since = {
        name: {"start": starts[name], name: parents[name]} for name in parents
    }
    lines = {
        name: landscape.line(models, points, name)
        for name, models in {**between, **since}.items()
    }
    plane = None
    if plane_points:
        # The third corner: aligned by weights
        corners = {**parents, **between[next(iter(alignments))]}
        plane = landscape.plane(corners, plane_points, name="plane")
    run_on_main(draw, args=[lines, plane, list(between), list(since), folder])
    return {name: lines[name]["barrier"] for name in between}


def write_aligned(source, anchor, seen, path):
    """Writes a model aligned to another, unless it is there."""
    if path.is_file():
        return
    with ExitStack() as stack:
        cost = "weights"
        if seen is not None:
            cost = {
                which: stack.enter_context(open_weights(file))
                for which, file in seen.items()
            }
        write_weights(path, align(source, anchor, cost=cost))


def draw(lines, plane, between, since, folder):
    """Draws all that was walked.

    Arguments
    ---------
    lines : dict
        Name to line.
    plane : dict, optional
        The plane.
    between, since : list of str
        The lines between the models, and those from where they began.
    folder : Path
        Gets ``MEASURE_between.png``, ``MEASURE_since_start.png`` and
        ``MEASURE_plane.png``.
    """
    for measure in ("loss", "wer"):
        plot_line(
            {name: lines[name] for name in between},
            folder / f"{measure}_between.png",
            measure,
            # the aligned one computes what it did before
            ends=[model["name"] for model in lines[between[0]]["models"]],
        )
        plot_line(
            {name: lines[name] for name in since},
            folder / f"{measure}_since_start.png",
            measure,
            ends=("start", "end of training"),
        )
        if plane is not None:
            plot_plane(plane, folder / f"{measure}_plane.png", measure)
