"""Landscapes of a fusion: what lies between two models, before and after.

Along the line from one parent to the other, as it is and aligned; along the way
that each has come since its training began (Fu et al., arXiv 2306.02541, Figure
2); and on the plane through both and the aligned one. On the selection sets,
offline. Every point is kept once it is scored.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from contextlib import ExitStack

from speechbrain.utils.distributed import run_on_main

from speechbrain_merge.brain.landscape import Landscape
from speechbrain_merge.methods.transport import align
from speechbrain_merge.report import plot_line, plot_plane
from speechbrain_merge.weights import digest, open_weights, write_weights

# What decided an aligned model, in the metadata of its file
ALIGNMENT = "alignment"


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
        Name of a fusion to its method, ``OptimalTransport`` with hard maps,
        and the files of the activations of ``anchor`` and ``source``, or None
        where it goes by weights. The first is a corner of the plane.
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
    for name, (method, seen) in alignments.items():
        aligned = folder / f"{name}.safetensors"
        run_on_main(
            write_aligned,
            args=[
                parents[moved],
                parents[anchor],
                method.alignment_options,
                seen,
                aligned,
            ],
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
    if plane_points and alignments:
        corners = {**parents, **between[next(iter(alignments))]}
        plane = landscape.plane(corners, plane_points, name="plane")
    run_on_main(draw, args=[lines, plane, list(between), list(since), folder])
    return {name: lines[name]["barrier"] for name in between}


def write_aligned(source, anchor, options, seen, path):
    """Writes a model aligned to another, unless that very one is there.

    Arguments
    ---------
    source, anchor : Path
        Weights: which model is moved, and to which.
    options : dict
        The fusion's options, as ``align`` takes them.
    seen : dict, optional
        The files of the activations of ``anchor`` and ``source``.
    path : Path
        The file. It is made anew where either model, the activations or an
        option are others than those that it was made with, or its own weights
        are not those that were written.
    """
    made_with = {
        "source": digest(source),
        "anchor": digest(anchor),
        "activations": None
        if seen is None
        else {which: digest(file) for which, file in seen.items()},
        "options": json.loads(json.dumps(options, default=str)),
    }
    if path.is_file() and _is_made_with(path, made_with):
        return
    with ExitStack() as stack:
        cost = "weights"
        if seen is not None:
            cost = {
                which: stack.enter_context(open_weights(file))
                for which, file in seen.items()
            }
        aligned = align(source, anchor, cost=cost, **options)
    record = {**made_with, "weights": digest(aligned)}
    write_weights(path, aligned, {ALIGNMENT: json.dumps(record)})


def _is_made_with(path, made_with):
    """Whether a file is what was written with these settings."""
    with open_weights(path) as weights:
        record = json.loads(weights.metadata.get(ALIGNMENT, "{}"))
        return {**made_with, "weights": digest(weights)} == record


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
