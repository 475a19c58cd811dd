"""Landscapes, exports and costs of a study's models.

Landscapes show what lies between two models on the selection sets::

    landscapes:
        fusion:
            between: [SSL, SL]         # a line from one to the other
            aligned: [aligned-SL]      # lines from these to the last of them
            from_start: True           # and from the start of each to its end
            points: 11
            plane_points: 7            # a plane through both and the first aligned

Exports write models as folders that other programs load, by the run's own
``export``, with a card, to which `card` adds what the Hub wants to know::

    exports: [smact]
    card:
        language: en
        license: apache-2.0
        base_model: openai/whisper-tiny.en

Costs are measured in a process of their own.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.brain.landscape import Landscape as Walk
from speechbrain_merge.evaluation.bootstrap import confidence_interval
from speechbrain_merge.export.publishing import published
from speechbrain_merge.lineage import CARD
from speechbrain_merge.pool import Candidate
from speechbrain_merge.records.contents import contents_of
from speechbrain_merge.records.once import once
from speechbrain_merge.records.ownership import ChangedFolder
from speechbrain_merge.report import merge_card, plot_line, plot_plane
from speechbrain_merge.report.leaderboard import (
    FILE as LEADERBOARD_FILE,
    leaderboard_yaml,
)
from speechbrain_merge.study.comparison import Scores
from speechbrain_merge.study.graph import check_known
from speechbrain_merge.study.made import checked
from speechbrain_merge.study.merged import base_of, members_of
from speechbrain_merge.study.results import flat, write_times
from speechbrain_merge.study.testing import speakers
from speechbrain_merge.weights import Weights, open_weights


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
    """Raises where landscapes or exports name models that there are not.

    Arguments
    ---------
    study : Study
        The study.
    names : list of str
        The names of all models.
    """
    for name in study.exports:
        check_known(name, names, "`exports`")
    for landscape in study.landscapes.values():
        where = f"`landscapes.{landscape.name}`"
        if len(landscape.between) != 2:
            raise ValueError(
                f"{where}: `between` is {list(landscape.between)}; expected "
                "two models."
            )
        for name in (*landscape.between, *landscape.aligned):
            check_known(name, names, where)


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


def export_models(study, makers: Mapping, results: Mapping) -> None:
    """Exports models with a card each, those of the first seed.

    Arguments
    ---------
    study : Study
        The study.
    makers : dict
        Seed to Maker.
    results : dict
        See ``study/results.py``.

    Raises
    ------
    ChangedFolder
        Where an exported file is not as the study wrote it. A card may be
        edited.
    """
    maker = makers[results["seeds"][0]]
    for name in study.exports:
        if name not in maker.made:
            continue
        export = maker.run.export
        if export is None:
            raise ValueError(
                f"`exports` names '{name}', and the Run that `build` gives has "
                "no `export`."
            )
        made = maker.made[name]
        folder = study.folder / "exported" / name

        def work():
            # in one step: an export with other files in it is not replaced
            texts = _card(study, maker, name, results, folder)
            run_on_main(export, args=[made.verified(name), folder, texts])
            node = maker.nodes[name]
            if node.kind == "merge" and node.method.merges_adapters:
                run_on_main(_export_adapter, args=[maker, node, folder])
            return {
                "folder": f"exported/{name}",
                "files": run_on_main(_files_of, args=[folder]),
                "contents": run_on_main(_contents_of, args=[folder]),
            }

        record = study.folder / "exported" / f"{name}.json"

        def is_there(outcome):
            # earlier versions did not write down which files there are
            files = outcome.get("files", [])
            if not folder.is_dir() or not set(files) <= set(_files_of(folder)):
                return False
            _check_unchanged(folder, outcome.get("contents", {}), record)
            return True

        decides = {"weights": made.digest}
        if study.card:
            decides["card"] = study.card
        once(record, decides, work, again=True, is_there=is_there)


def _files_of(folder):
    """The files of an exported model, and of its adapter beside it."""
    beside = folder.parent.glob(f"{folder.name}-adapter.*")
    return sorted(
        str(path.relative_to(folder.parent))
        for place in (folder, *beside)
        for path in (place, *place.rglob("*"))
        if path.is_file()
    )


def _contents_of(folder):
    """The hashes of these files, but for that of the card."""
    files = [name for name in _files_of(folder) if Path(name).name != CARD]
    found = contents_of(folder.parent / name for name in files)
    return dict(zip(files, found.values()))


def _check_unchanged(folder, known, record):
    """Raises where exported files are not as they were written."""
    found = _contents_of(folder)
    for name, content in known.items():
        if found.get(name, content) != content:
            raise ChangedFolder(
                f"{folder.parent / name} has the SHA-256 {found[name]}, and "
                f"{content} is on record in {record}: it was changed since the "
                f"study exported it. Remove {folder} to have it exported "
                f"again, or take '{folder.name}' out of `exports` to keep it "
                "as it is."
            )


def _export_adapter(maker, node, folder):
    """The merged adapter beside the model, for PEFT and for SpeechBrain."""
    about = maker.made[node.name].about
    parameters = {k: v for k, v in about["method"].items() if k != "name"}
    method = type(node.method)(**parameters)
    members = {member.name: member for member in members_of(maker, node)}
    chosen = [members[name] for name in about["selected"]]
    modules = list(maker.pool_of(maker.run).modules)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                _of_module(checked(member), modules, "adapted_model.")
            )
            for member in chosen
        ]
        base = stack.enter_context(_of_module(base_of(maker, node), modules))
        for form, end in (("peft", "peft"), ("speechbrain", "safetensors")):
            method.write_adapter(
                opened,
                folder.with_name(f"{folder.name}-adapter.{end}"),
                form,
                base=base,
                labels=[member.name for member in chosen],
                progress=False,
            )


def _of_module(path, modules, start=""):
    """Weights by their names in the module, where there is only one.

    So PEFT knows them, and, with the start, SpeechBrain's AdaptedModel.
    """
    weights = open_weights(path)
    if len(modules) > 1:
        return weights
    names = {name: name.removeprefix(f"{modules[0]}.") for name in weights}
    return Weights(
        {start + name: weights.entry(old) for old, name in names.items()},
        weights.label,
        weights.metadata,
        on_close=weights.close,
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


def _card(study, maker, name, results, folder):
    """The card of an exported model, a merge, and what goes with it.

    It is a model of the first seed, so its results are those of that seed.
    """
    with open_weights(maker.made[name].path) as weights:
        metadata = published(weights.metadata, folder)
    if "merge" not in metadata:
        return {}
    seed, mode = results["seeds"][0], results["modes"][0]
    shown = flat(results, mode, [seed])
    [row] = [row for row in results["rows"] if row["name"] == name] or [None]
    own = [
        each for each in shown["rows"] if row and each["name"] == row["title"]
    ]
    if not own:  # it was not tested on all sets
        card = merge_card(metadata, title=name, about=study.card)
        return {"README.md": card}
    scores = Scores(
        study.folder,
        {**results, "seeds": [seed]},
        speakers(maker.run.test_sets),
    )
    for domain, counts in own[0]["sets"].items():
        drawn = confidence_interval(
            scores.of(row, mode, domain), scores.blocks([domain])
        )
        counts["interval"] = {
            "low": drawn.low,
            "high": drawn.high,
            "level": 0.95,
        }
    title = own[0]["name"]
    texts = {"README.md": merge_card(metadata, shown, title, title, study.card)}
    sets = study.card.get("leaderboard")
    if sets:
        texts[LEADERBOARD_FILE] = leaderboard_yaml(shown, title, sets)
    return texts


def _draw(lines, plane, ends, starts, folder):
    """Draws all that was walked."""
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
