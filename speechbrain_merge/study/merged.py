"""Merging and aligning models of a study.

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.decisive import decisive_settings
from speechbrain_merge.brain.repair import repair
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.methods.transport import align
from speechbrain_merge.methods.transport.learned_map import read_learned_map
from speechbrain_merge.methods.transport.learning import check_learning
from speechbrain_merge.pool import Candidate, select
from speechbrain_merge.records.once import once
from speechbrain_merge.search import GridSearch, LayerDistances
from speechbrain_merge.stage.content import decided_by
from speechbrain_merge.stage.merge_stage import MergeStage
from speechbrain_merge.study.made import Made, relative_to
from speechbrain_merge.study.nodes import ORIGINAL, SCRATCH
from speechbrain_merge.weights import digest, open_weights, write_weights

logger = get_logger(__name__)

FOLDER = {"parents": True, "exist_ok": True}


def make_merged(maker, node):
    """Merges models, with a search where one is asked for."""
    candidates = members_of(maker, node)
    options = dict(node.options)
    if node.layers_of is not None:
        options["search"] = _layer_search(maker, node.layers_of)
    stage = MergeStage(
        copy.deepcopy(node.method),
        candidates,
        base=base_of(maker, node),
        metric=maker.study.metric,
        mode=maker.study.mode,
        tracker=maker.study.tracker,
        folder=maker.folder / "merge",
        name=node.name,
        **{**options, "search": copy.deepcopy(options.get("search"))},
    )
    valid_sets = selection_sets(maker, node)
    if stage.needs_statistics:
        _collect(maker, stage, node)
    result = maker.run.brain.merge(
        stage,
        valid_sets if stage.search is not None else None,
        maker.run.loader_kwargs("valid"),
    )
    with open_weights(result.path) as weights:
        content = digest(weights)
    bases = {maker.made[name].base_digest for name in node.members}
    about = {
        "method": json.loads(json.dumps(result.method, default=str)),
        "candidates": result.candidates,
        "selected": result.selected,
        "value": result.value,
        "chosen": result.coefficients,
        "trials": result.trials,
        "savings": result.savings,
    }
    return Made(
        Path(result.path),
        content,
        about=about,
        seconds=round(result.seconds, 1),
        base_digest=bases.pop() if len(bases) == 1 else None,
    )


def make_aligned(maker, node):
    """Permutes the units of a model to match those of another."""
    source, anchor = maker.made[node.source], maker.made[node.anchor]
    path = maker.folder / "aligned" / f"{node.name}.safetensors"
    settings = {
        "source": source.digest,
        "anchor": anchor.digest,
        "method": node.method.configuration(),
    }
    settings |= decided_by(node.method)
    cost = node.method.cost
    if cost in ("activations", "learned"):
        stage = MergeStage(
            copy.deepcopy(node.method),
            [_candidate(maker, node.anchor), _candidate(maker, node.source)],
            same_base=False,
            name=node.name,
        )
        seen = _collect(maker, stage, node)
        cost = dict(zip(("anchor", "source"), seen.values()))
        # the names of these files say all that decided them
        settings["seen"] = [
            Path(file).name for file in seen.values() if file is not None
        ]

    def write():
        run_on_main(path.parent.mkdir, kwargs=FOLDER)
        run_on_main(
            _write_aligned,
            args=[
                path,
                source.verified(node.source),
                anchor.verified(node.anchor),
                cost,
                node.method,
                node.device,
            ],
        )

    record, content = _written_once(maker, path, settings, write)
    steps = {}
    if node.method.cost == "learned":
        steps["steps"] = check_learning(node.method.learning)["steps"]
    return Made(path, content, about=steps, seconds=record["seconds"])


def make_repaired(maker, node):
    """Gives the units of a merge the statistics of its parents' units."""
    merged = maker.made[node.merged]
    parents = [maker.made[name] for name in node.members]
    path = maker.folder / "repaired" / f"{node.name}.safetensors"
    sets = maker.run.valid_sets
    data = {name: sets[name] for name in maker.study.domains if name in sets}
    loader_kwargs = maker.run.loader_kwargs("valid")
    settings = {
        "merged": merged.digest,
        "parents": [parent.digest for parent in parents],
        "weights": list(node.weights),
        "data": FixedBatches(maker.run.brain, data, loader_kwargs).key(),
        "hparams": decisive_settings(maker.run.brain),
    }

    def write():
        run_on_main(path.parent.mkdir, kwargs=FOLDER)
        state = repair(
            maker.run.brain,
            merged.verified(node.merged),
            [maker.made[name].verified(name) for name in node.members],
            data,
            loader_kwargs,
            node.weights or None,
        )
        run_on_main(write_weights, args=[path, state])

    record, content = _written_once(maker, path, settings, write)
    return Made(path, content, seconds=record["seconds"])


def _written_once(maker, path, settings, write):
    """Writes weights once; again where they are not what was written.

    Returns the record, and the digest of the weights.
    """

    def work():
        write()
        place = str(relative_to(path, maker.study.folder))
        return {"weights": place, "digest": _content(path)}

    place = path.with_suffix(".json")
    record = once(place, settings, work, again=True)
    content = _content(path)
    if content != record["outcome"].get("digest"):
        logger.warning(f"{path} is not what was made: it is made again.")
        run_on_main(place.unlink)
        record = once(place, settings, work)
        content = _content(path)
    return record, content


def _content(path):
    """The digest of weights, None where there are none."""
    if not path.is_file():
        return None
    with open_weights(path) as weights:
        return digest(weights)


def members_of(maker, node):
    """The candidates of a merge."""
    if node.method.merges_adapters:
        return [_adapter(maker, node, name) for name in node.members]
    if not node.from_runs:
        return [_candidate(maker, name) for name in node.members]
    # in the order in which a pool of all of them would list them
    found = {name: maker.made[name].candidates for name in sorted(node.members)}
    candidates = [each for listed in found.values() for each in listed]
    if len({each.name for each in candidates}) < len(candidates):
        # their pools call their runs alike, by default
        candidates = [
            dataclasses.replace(
                each,
                run=name,
                name=f"{name}/{each.name.removeprefix(f'{each.run}/')}",
            )
            for name, listed in found.items()
            for each in listed
        ]
    return select(
        candidates,
        metric=maker.study.metric,
        mode=maker.study.mode,
        **node.chosen,
    )


def _adapter(maker, node, name):
    """The adapter of a training, by its name in the study."""
    adapter = maker.made[name].adapter
    if adapter is None:
        raise ValueError(
            f"Model '{node.name}' merges adapters, and '{name}' has none: its "
            "training needs a CheckpointPool with `adapters: True` among the "
            "recoverables of its checkpointer."
        )
    return dataclasses.replace(
        adapter, name=name, base=None, base_digest=root_of(maker, name)
    )


def _candidate(maker, name):
    """A model as a candidate of a merge, by its name in the study.

    The graph knows what a model was trained from, over as many rounds as there
    were. Models that go back to the same weights belong together, however far
    training has taken them.
    """
    made = maker.made[name]
    root = root_of(maker, name)
    if made.candidate is None:
        return Candidate(
            name,
            made.path,
            name,
            known_digest=made.digest,
            base_digest=root,
        )
    return dataclasses.replace(
        made.candidate,
        name=name,
        base=made.candidate.base
        if made.candidate.base_digest == root
        else made.path,
        base_digest=root,
    )


def root_of(maker, name: str) -> Optional[str]:
    """The weights that a model goes back to.

    Arguments
    ---------
    maker : Maker
        Has made the model and its parents.
    name : str
        The model.

    Returns
    -------
    str or None
        Their digest: of the original, of weights that were loaded or their
        base, or of a model that was trained from scratch. None where members
        of a merge go back to different weights.
    """
    node, made = maker.nodes[name], maker.made[name]
    if node.kind == "train" and node.start != SCRATCH:
        return root_of(maker, node.start)
    if node.kind == "merge":
        roots = {root_of(maker, member) for member in node.members}
        return roots.pop() if len(roots) == 1 else None
    if node.kind == "load":
        return made.base_digest or made.digest
    return made.digest


def base_of(maker, node):
    """The base of a merge: as the YAML says, or what experts came from."""
    if node.base is not None:
        return maker.made[node.base].verified(node.base)
    if not node.method.needs_base:
        return None
    origins = [maker.nodes[name].origin for name in node.members]
    origins = [name for name in origins if name not in (SCRATCH, None)]
    origin = origins[0] if origins else ORIGINAL
    made = maker.made.get(origin)
    return None if made is None else made.verified(origin)


def selection_sets(maker, node) -> dict:
    """The sets that the search of a merge selects on.

    Arguments
    ---------
    maker : Maker
        Of the study.
    node : Merge
        The merge.

    Returns
    -------
    dict
        Name of a domain to its set.

    Raises
    ------
    ValueError
        Where the search needs one that ``build`` does not give.
    """
    wanted = node.select_on or tuple(maker.study.domains)
    valid_sets = maker.run.valid_sets
    missing = [name for name in wanted if name not in valid_sets]
    searches = node.layers_of or node.options.get("search") is not None
    if missing and searches:
        raise ValueError(
            f"Model '{node.name}': there is no selection set for "
            f"{', '.join(missing)}; `build` gives "
            f"{', '.join(valid_sets) or 'none'}. Name those that the search is "
            "to select on by `select_on`."
        )
    return {name: valid_sets[name] for name in wanted if name in valid_sets}


def _layer_search(maker, asked):
    """A search over the layers that a similarity found closest."""
    found = [
        LayerDistances(each["distance"], tuple(each["values"]))
        for each in maker.made[asked["similarity"]].about["distances"]
        if each["distance"] == asked["distance"]
    ]
    if not found:
        raise ValueError(
            f"`layers_of`: '{asked['similarity']}' measured no distance "
            f"'{asked['distance']}'."
        )
    layers = [found[0].closest(number) for number in asked["numbers"]]
    return GridSearch(grid={"layers": layers, "ratio": list(asked["ratios"])})


def _collect(maker, stage, node):
    """Statistics of each member, on the data of its own domains."""
    data = {}
    for candidate in stage.chosen():
        trained = maker.nodes.get(candidate.run)
        domains = getattr(trained, "domains", ()) or maker.study.domains
        sets = maker.run.valid_sets
        # domains that are only trained on have no selection set here
        own = [name for name in domains if name in sets]
        data[candidate.name] = {name: sets[name] for name in own or sets}
    train = maker.run.train_set
    units = any(
        method.statistics_kind == "activations"
        for method in stage.needs_statistics
    )
    return collect_statistics(
        maker.run.brain,
        stage,
        data,
        maker.run.loader_kwargs("valid"),
        folder=maker.folder / "statistics",
        # what units do is seen without augmentation
        decode="valid" if units else None,
        train={one.name: train for one in stage.chosen()} if train else None,
    )


def _write_aligned(path, source, anchor, cost, method, device):
    """Writes a model aligned to another, with the options of the method."""
    with ExitStack() as stack:
        if method.cost == "learned":
            found = read_learned_map(
                source,
                cost["source"],
                method.architecture,
                method.heads,
                anchor,
            )
            found = found.turned(source, anchor, method.inside)
            with open_weights(source) as weights:
                write_weights(path, found.apply(weights))
            return
        if isinstance(cost, dict):
            cost = {
                which: stack.enter_context(open_weights(file))
                for which, file in cost.items()
            }
        options = {**method.alignment_options, "device": device}
        write_weights(path, align(source, anchor, cost=cost, **options))
