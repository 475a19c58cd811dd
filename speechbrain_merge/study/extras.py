"""Landscapes and costs of a study's models.

Landscapes show what lies between two models on the selection sets::

    landscapes:
        fusion:
            between: [SSL, SL]         # a line from one to the other
            aligned: [aligned-SL]      # lines from these to the last of them
            from_start: True           # and from the start of each to its end
            points: 11
            plane_points: 7            # a plane through both and the first aligned

Costs are measured in a process of their own.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.brain.landscape import Landscape as Walk
from speechbrain_merge.methods.parameters import check_whole
from speechbrain_merge.pool import Candidate
from speechbrain_merge.records.once import once
from speechbrain_merge.records.own_outputs import outputs_of
from speechbrain_merge.report import plot_line, plot_plane
from speechbrain_merge.study.graph import check_known
from speechbrain_merge.study.made import checked
from speechbrain_merge.study.merged import base_of, members_of
from speechbrain_merge.study.results import write_times


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The landscape between two models: its ends and its points.

    Arguments
    ---------
    name : str
        Its name.
    between : list of str
        Two models.
    aligned : list of str
        Models made by `align`: from each a line to the model that it was
        aligned to.
    from_start : bool
        Whether to walk from the start of each model's training to its end.
    points : int
        Along each line.
    plane_points : int
        Along each side of the plane; 0 leaves it out.
    """

    name: str
    between: Sequence
    aligned: Sequence = ()
    from_start: bool = False
    points: int = 11
    plane_points: int = 0


def check_extras(study, names: Sequence) -> None:
    """Raises where landscapes or exports cannot be made of the models that they
    name.

    Arguments
    ---------
    study : Study
        The study.
    names : list of str
        The names of all models.
    """
    nodes = {node.name: node for plan in study.plans.values() for node in plan}
    for name in study.exports:
        _check_weights(name, names, nodes, "`exports`")
    for landscape in study.landscapes.values():
        _check_landscape(landscape, names, nodes)


def _check_landscape(landscape, names, nodes):
    """Raises where a landscape cannot be walked or drawn."""
    section = f"landscapes.{landscape.name}"
    where = f"`{section}`"
    between = list(landscape.between)
    if len(set(between)) != 2 or len(between) != 2:
        raise ValueError(
            f"{where}: `between` is {between}; expected two models, each with "
            "weights of its own."
        )
    for name in (*between, *landscape.aligned):
        _check_weights(name, names, nodes, where)
    for name in landscape.aligned:
        if name == getattr(nodes[name], "anchor", between[1]):
            raise ValueError(
                f"{where}: `aligned` names '{name}', which the line would both "
                "begin and end with; expected a model made by `align`."
            )
    check_whole(landscape.points, f"{section}.points", at_least=3)
    if landscape.plane_points:
        side = f"{section}.plane_points"
        check_whole(landscape.plane_points, side, at_least=2)
    for name in between if landscape.from_start else ():
        if nodes[name].kind != "train":
            raise ValueError(
                f"{where}: `from_start` walks from the start of a training, and "
                f"'{name}' is not trained by this study ({nodes[name].kind}). "
                "Leave `from_start` out, or name two trained models."
            )


def _check_weights(name, names, nodes, where):
    """Raises where a name is none of a model with weights."""
    check_known(name, names, where)
    if not nodes[name].has_weights:
        raise ValueError(
            f"{where} names '{name}', which has no weights of its own "
            f"({nodes[name].kind}): expected a model that is trained, loaded or "
            "merged."
        )


def walk_landscapes(study, makers: Mapping, results: dict) -> None:
    """Walks all landscapes of a study, draws them, and adds their barriers.

    Arguments
    ---------
    study : Study
        The study.
    makers : dict
        Seed to Maker.
    results : dict
        Gets ``barriers``: landscape to seed to line to measure to height.
    """
    for landscape in study.landscapes.values():
        for seed in results["seeds"]:
            maker = makers[seed]
            if not {*landscape.between, *landscape.aligned} <= set(maker.made):
                continue
            heights = walk(landscape, maker)
            by_seed = results.setdefault("barriers", {}).setdefault(
                landscape.name, {}
            )
            by_seed[str(seed)] = heights


def walk(landscape: Landscape, maker) -> dict:
    """Walks between the models of one seed.

    Arguments
    ---------
    landscape : Landscape
        What to walk.
    maker : Maker
        Has made the models.

    Returns
    -------
    dict
        Line to its barriers, of ``loss`` and ``wer``.
    """
    first, last = landscape.between
    folder = maker.folder / "landscapes" / landscape.name
    run_on_main(folder.mkdir, kwargs={"parents": True, "exist_ok": True})
    paths = {
        name: maker.made[name].verified(name)
        for name in (*landscape.between, *landscape.aligned)
    }
    walked = Walk(
        maker.run.brain,
        maker.run.valid_sets,
        maker.run.loader_kwargs("valid"),
        folder,
        tracker=maker.study.tracker,
    )
    ends = {"direct": {first: paths[first], last: paths[last]}}
    for name in landscape.aligned:
        node = maker.nodes[name]
        anchor = getattr(node, "anchor", last)
        ends[name] = {name: paths[name], anchor: paths[anchor]}
    starts = {}
    if landscape.from_start:
        for name in landscape.between:
            base = _start_of(maker, name)
            starts[name] = {"start": base, name: paths[name]}
    lines = {
        name: walked.line(models, landscape.points, name)
        for name, models in {**ends, **starts}.items()
    }
    plane = None
    if landscape.plane_points and landscape.aligned:
        third = landscape.aligned[0]
        corners = {**ends["direct"], third: paths[third]}
        plane = walked.plane(corners, landscape.plane_points, name="plane")
    run_on_main(_draw, args=[lines, plane, list(ends), list(starts), folder])
    return {name: lines[name]["barrier"] for name in ends}


def _start_of(maker, name):
    """The weights that the training of a model began with."""
    candidate = maker.made[name].candidate
    return checked(
        Candidate(
            f"{name}/base",
            candidate.base,
            name,
            known_digest=candidate.base_digest,
        )
    )


def measure_costs(study, makers: Mapping, results: Mapping) -> None:
    """Measures time and memory of each merge, into ``times.json``.

    Arguments
    ---------
    study : Study
        The study; it measures nothing where its ``costs`` is False.
    makers : dict
        Seed to Maker.
    results : dict
        See ``study/results.py``.
    """
    if not study.costs:
        return
    seed = results["seeds"][0]
    maker = makers[seed]
    for row in results["rows"]:
        node = maker.nodes[row["name"]]
        if node.kind != "merge" or node.method.merges_adapters:
            continue
        run_on_main(_write_cost, args=[study, node, maker, seed])


def _write_cost(study, node, maker, seed):
    """Measures one merge, and adds it to ``times.json``."""
    cost = _cost(node, maker)
    write_times(study.folder, {node.name: {f"{seed} cost": cost}})


def _cost(node, maker):
    """Time and memory of one merge, measured in a process of its own."""
    made = maker.made[node.name]
    members = {member.name: member for member in members_of(maker, node)}
    chosen = [members[name] for name in made.about["selected"]]
    parameters = dict(made.about["method"])
    base = base_of(maker, node)
    target = maker.folder / "cost" / f"{node.name}.json"
    what = {
        "method": parameters.pop("name"),
        "parameters": parameters,
        "experts": [str(checked(member)) for member in chosen],
        "labels": [member.name for member in chosen],
        "base": None if base is None else str(base),
        "output": str(target.with_suffix(".safetensors")),
    }

    def work():
        printed = subprocess.run(
            [
                sys.executable,
                "-m",
                "speechbrain_merge.study.merge_cost",
                json.dumps(what, default=str),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        return json.loads(printed.splitlines()[-1])

    cost = once(target, {"merged": made.digest}, work, again=True)["outcome"]
    savings = made.about["savings"] or {}
    return {
        **cost,
        "trials": len(made.about["trials"]),
        "decoded_seconds": savings.get("seconds", 0.0),
        "search_seconds": made.seconds,
    }


def _draw(lines, plane, ends, starts, folder):
    """Draws all that was walked."""
    with outputs_of(folder) as drawn:
        _draw_in(drawn, lines, plane, ends, starts)


def _draw_in(folder, lines, plane, ends, starts):
    for measure in ("loss", "wer"):
        plot_line(
            {name: lines[name] for name in ends},
            folder / f"{measure}_between.png",
            measure,
            # an aligned model computes what it did before
            ends=[model["name"] for model in lines[ends[0]]["models"]],
        )
        if starts:
            plot_line(
                {name: lines[name] for name in starts},
                folder / f"{measure}_since_start.png",
                measure,
                ends=("start", "end of training"),
            )
        if plane is not None:
            plot_plane(plane, folder / f"{measure}_plane.png", measure)
