"""Making one model of a study: keeping, training, merging, aligning.

Each model leaves its weights in the study's folder. It is not made again while
what it was made from and its settings are the same::

    <folder>/seed-<seed>/original.safetensors    what experts are trained from
                         models/<name>/          a training, and its pool
                         merge/<name>/           a merge, its search, its result
                         aligned/<name>.safetensors

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_merge.brain.run import Run
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.methods.transport import align
from speechbrain_merge.pool import Candidate, read_pool, select
from speechbrain_merge.records.once import known_record, once
from speechbrain_merge.search import GridSearch, LayerDistances
from speechbrain_merge.stage.merge_stage import MergeStage
from speechbrain_merge.study.graph import ORIGINAL, SCRATCH
from speechbrain_merge.study.trainings import without_folder
from speechbrain_merge.weights import (
    digest,
    local_source,
    open_weights,
    write_weights,
)

logger = get_logger(__name__)


@dataclasses.dataclass
class Made:
    """A model that exists.

    Arguments
    ---------
    path : Path
        Its weights.
    digest : str
        The digest of their content, whatever file holds them.
    candidates : list of Candidate
        Of a training: all that its pool holds.
    candidate : Candidate, optional
        Of a training: the one that stands for the model.
    about : dict
        More that results show: steps of a training, the trials of a search.
    seconds : float
        How long making it took.
    interrupted : bool
        Whether it was stopped and went on, so that it took longer.
    base_digest : str, optional
        The digest of the weights that it was fine-tuned from.
    """

    path: Optional[Path]
    digest: str
    candidates: list = dataclasses.field(default_factory=list)
    candidate: Optional[Candidate] = None
    about: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    base_digest: Optional[str] = None


class Maker:
    """Makes the models of a study, for one seed.

    Arguments
    ---------
    study : Study
        The study.
    seed : int
        Which of its seeds.
    nodes : dict
        Name to Node of this seed.
    build : callable
        The recipe's ``build(hparams_file, overrides, run_opts)``.
    run_opts : dict
        SpeechBrain's run options.
    """

    def __init__(
        self,
        study,
        seed: int,
        nodes: Mapping,
        build: Callable,
        run_opts: Mapping,
    ):
        self.study, self.seed, self.nodes = study, seed, nodes
        self.build, self.run_opts = build, run_opts
        self.folder = study.folder / f"seed-{seed}"
        self.made = {}

    @cached_property
    def run(self) -> Run:
        """The Brain that merges and tests, with all domains and test sets."""
        training = self.study.trainings[self.study.evaluate_with]
        values = {
            "seed": self.seed,
            "output_folder": str(self.folder / "evaluate"),
            "run": "evaluate",
            "domains": list(self.study.domains),
            "tests": list(self.study.tests),
        }
        run = self._build(training, training.overrides(values, {}))
        missing = [t for t in self.study.tests if t not in run.test_sets]
        if missing:
            raise ValueError(
                f"`tests` of the study names {', '.join(missing)}, and `build` "
                f"gives the test sets {', '.join(run.test_sets) or 'none'}."
            )
        return run

    def make(self, name: str) -> Made:
        """Makes a model, unless it exists; its parents must exist.

        Arguments
        ---------
        name : str
            The model.

        Returns
        -------
        Made
        """
        if name not in self.made:
            node = self.nodes[name]
            for parent in node.parents:
                self.make(parent)
            self.made[name] = getattr(self, f"_make_{node.kind}")(node)
        return self.made[name]

    def _make_original(self, node):
        """Keeps the weights that the recipe's modules start with."""
        path = self.folder / f"{ORIGINAL}.safetensors"
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self._pool(self.run).modules.items()
            for key, tensor in module.state_dict().items()
        }
        content = digest(tensors)
        if path.is_file():
            with open_weights(path) as weights:
                known = digest(weights)
            if known != content:
                raise ValueError(
                    f"{path} holds other weights than this study starts from: "
                    "choose another folder."
                )
        else:
            run_on_main(path.parent.mkdir, kwargs=_MAKE)
            run_on_main(write_weights, args=[path, tensors, {"format": "pt"}])
        return Made(path, content)

    def _make_load(self, node):
        """Opens weights that exist already."""
        path = Path(local_source(node.weights))
        if (path / "manifest.jsonl").is_file():
            candidates = read_pool(path)
            [best] = self._one(candidates)
            return Made(
                best.path,
                best.digest,
                candidates,
                best,
                base_digest=best.base_digest,
            )
        if not path.exists():
            raise ValueError(
                f"Model '{node.name}': `load` is {node.weights}, which is "
                "neither there nor a name on the Hugging Face hub."
            )
        with open_weights(path) as weights:
            return Made(path, digest(weights))

    def _make_train(self, node):
        """Trains a model."""
        training = self.study.trainings[node.training]
        home = self.folder / "models" / node.name
        values = {
            "seed": self.seed + node.seed_offset,
            "output_folder": str(home),
            "run": node.name,
            "domains": list(node.domains),
            "tests": [],  # a training need not know them
        }
        start = None if node.start == SCRATCH else self.made[node.start]
        if start is not None and node.start != ORIGINAL:
            values["start_from"] = str(start.path)
        overrides = training.overrides(values, node.settings)
        decisive = training.decisive(
            {**overrides, **self._without_start(training, overrides)},
            self.study.folder,
        )
        settings = {
            "training": str(training.hparams),
            "yaml": decisive,
            "start": None if start is None else start.digest,
        }

        def fit():
            run = self._build(training, overrides)
            plain = start is None or self._start(run, training, node, start)
            run.fit()
            pool = self._pool(run)
            folder = pool.folder / pool.run
            if not self.study.keep_checkpoints:
                self._remove_checkpoints(run, home)
            return {
                "steps": int(run.brain.optimizer_step),
                "pool": str(_relative(folder, self.study.folder)),
                "plain": plain,
            }

        record = once(
            home / "finished.json",
            settings,
            fit,
            advice=f"delete {home} to train it again.",
        )
        # A Brain and what it holds refer to one another
        gc.collect()
        pool = self.study.folder / record["outcome"]["pool"]
        candidates = read_pool(pool)
        [candidate] = self._one(candidates)
        known = start is not None and candidate.base_digest is not None
        # Learning with another model's attention begins from both models
        plain = record["outcome"]["plain"]
        if known and plain and candidate.base_digest != start.digest:
            raise ValueError(
                f"Model '{node.name}' was trained from other weights than "
                f"'{node.start}' has now: choose another folder, or delete "
                f"{home} to train it again."
            )
        return Made(
            candidate.path,
            candidate.digest,
            candidates,
            candidate,
            {"steps": record["outcome"]["steps"], **_learned(candidates)},
            record["seconds"],
            record["interrupted"],
            candidate.base_digest,
        )

    def _make_merge(self, node):
        """Merges models, with a search where one is asked for."""
        candidates = self._members(node)
        options = dict(node.options)
        if node.layers_of is not None:
            options["search"] = self._layer_search(node.layers_of)
        stage = MergeStage(
            copy.deepcopy(node.method),
            candidates,
            base=self._base(node),
            metric=self.study.metric,
            mode=self.study.mode,
            tracker=self.study.tracker,
            folder=self.folder / "merge",
            name=node.name,
            **{**options, "search": copy.deepcopy(options.get("search"))},
        )
        valid_sets = self._selection(node)
        if stage.needs_statistics:
            self._collect(stage, node)
        result = self.run.brain.merge(
            stage,
            valid_sets if stage.search is not None else None,
            self.run.loader_kwargs("valid"),
        )
        with open_weights(result.path) as weights:
            content = digest(weights)
        bases = {self.made[name].base_digest for name in node.members}
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

    def _make_align(self, node):
        """Permutes the units of a model to match those of another."""
        source, anchor = self.made[node.source], self.made[node.anchor]
        path = self.folder / "aligned" / f"{node.name}.safetensors"
        settings = {
            "source": source.digest,
            "anchor": anchor.digest,
            "method": node.method.configuration(),
        }
        cost = node.method.cost
        if cost == "activations":
            stage = MergeStage(
                copy.deepcopy(node.method),
                [self._candidate(node.anchor), self._candidate(node.source)],
                same_base=False,
                name=node.name,
            )
            seen = self._collect(stage, node)
            cost = dict(zip(("anchor", "source"), seen.values()))

        def write():
            run_on_main(path.parent.mkdir, kwargs=_MAKE)
            run_on_main(
                _write_aligned,
                args=[path, source.path, anchor.path, cost, node.method],
            )
            return {"weights": str(_relative(path, self.study.folder))}

        record = once(path.with_suffix(".json"), settings, write, again=True)
        with open_weights(path) as weights:
            content = digest(weights)
        return Made(path, content, seconds=record["seconds"])

    def _make_by_domain(self, node):
        """Nothing: its tests are those of other models."""
        content = {
            domain: self.made[name].digest
            for domain, name in node.experts.items()
        }
        return Made(None, digest_of(content))

    def _make_combine(self, node):
        """Nothing: its models decode side by side when it is tested."""
        members = [self.made[name].digest for name in node.members]
        return Made(None, digest_of([node.how, members]))

    def _make_similarity(self, node):
        """Measures how alike layers are."""
        path = self.folder / "similarity" / f"{node.name}.json"
        measure = node.measure
        settings = {
            "of": self.made[node.of].digest,
            "domain": node.domain,
            "measure": {
                "function": getattr(measure, "func", measure).__name__,
                **getattr(measure, "keywords", {}),
            },
        }
        # a study may be moved
        settings = without_folder(settings, self.study.folder)

        def work():
            self.run.brain.load_weights(self.made[node.of].path)
            found = measure(self.run, node.domain)
            return [distance.to_dict() for distance in found]

        record = once(path, settings, work, again=True)
        return Made(
            None,
            digest_of(record["outcome"]),
            about={"distances": record["outcome"]},
            seconds=record["seconds"],
        )

    def _members(self, node):
        """The candidates of a merge."""
        if not node.from_runs:
            return [self._candidate(name) for name in node.members]
        candidates = []
        # in the order in which a pool of all of them would list them
        for name in sorted(node.members):
            candidates += self.made[name].candidates
        return select(
            candidates,
            metric=self.study.metric,
            mode=self.study.mode,
            **node.chosen,
        )

    def _candidate(self, name):
        """A model as a candidate of a merge, by its name in the study."""
        made = self.made[name]
        known = {"known_digest": made.digest, "base_digest": made.base_digest}
        if made.candidate is not None:
            return dataclasses.replace(made.candidate, name=name)
        return Candidate(name, made.path, name, **known)

    def _base(self, node):
        """The base of a merge: as the YAML says, or what experts came from."""
        if node.base is not None:
            return self.made[node.base].path
        if not node.method.needs_base:
            return None
        origins = [self.nodes[name].origin for name in node.members]
        origin = next((name for name in origins if name), ORIGINAL)
        if origin in (SCRATCH, None) or origin not in self.made:
            return None
        return self.made[origin].path

    def _selection(self, node):
        """The selection sets of a merge's search."""
        wanted = node.select_on or tuple(self.study.domains)
        valid_sets = self.run.valid_sets
        missing = [name for name in wanted if name not in valid_sets]
        if missing and node.options.get("search") is not None:
            raise ValueError(
                f"Model '{node.name}': there is no selection set for "
                f"{', '.join(missing)}; `build` gives "
                f"{', '.join(valid_sets) or 'none'}."
            )
        return {name: valid_sets[name] for name in wanted if name in valid_sets}

    def _layer_search(self, asked):
        """A search over the layers that a similarity found closest."""
        found = [
            LayerDistances(each["distance"], tuple(each["values"]))
            for each in self.made[asked["similarity"]].about["distances"]
            if each["distance"] == asked["distance"]
        ]
        if not found:
            raise ValueError(
                f"`layers_of`: '{asked['similarity']}' measured no distance "
                f"'{asked['distance']}'."
            )
        layers = [found[0].closest(number) for number in asked["numbers"]]
        return GridSearch(
            grid={"layers": layers, "ratio": list(asked["ratios"])}
        )

    def _collect(self, stage, node):
        """Statistics of each member, on the data of its own domains."""
        data = {}
        for candidate in stage.chosen():
            trained = self.nodes.get(candidate.run)
            domains = getattr(trained, "domains", ()) or self.study.domains
            sets = self.run.valid_sets
            data[candidate.name] = {
                name: sets[name] for name in domains if name in sets
            }
        units = any(
            method.statistics_kind == "activations"
            for method in stage.needs_statistics
        )
        return collect_statistics(
            self.run.brain,
            stage,
            data,
            self.run.loader_kwargs("valid"),
            folder=self.folder / "statistics",
            # what units do is seen without augmentation
            decode="valid" if units else None,
        )

    def _one(self, candidates):
        """The candidate that stands for a training."""
        return select(
            candidates,
            per_run=self.study.checkpoint,
            metric=self.study.metric,
            mode=self.study.mode,
        )

    def _build(self, training, overrides):
        """A run of the recipe, as `build` of the recipe prepares it."""
        build = training.build or self.build
        run = build(str(training.hparams), dict(overrides), self.run_opts)
        if not isinstance(run, Run):
            raise ValueError(
                f"`build` of training '{training.name}' gave a "
                f"{type(run).__name__}; expected a speechbrain_merge.Run."
            )
        return run

    def _pool(self, run):
        """The pool of a run."""
        pools = run.brain._pools()
        if not pools:
            raise ValueError(
                "The YAML of a training has no CheckpointPool among the "
                "recoverables of its checkpointer, so that nothing would be "
                "left to merge: add one, as the README shows."
            )
        return pools[0]

    def _start(self, run, training, node, start):
        """Has a run begin from the weights that its node names.

        Returns whether its modules have the names of those weights. Modules
        with adapters or a learned attention have others, and are what `build`
        made of them.
        """
        modules = self._pool(run).modules
        mine = {
            f"{name}.{key}": tensor
            for name, module in modules.items()
            for key, tensor in module.state_dict().items()
        }
        with open_weights(start.path) as weights:
            same_names = set(weights.names()) == set(mine)
        # Where the YAML has a key for the start, the recipe has loaded it
        loaded = training.key("start_from") and node.start != ORIGINAL
        if same_names and not loaded and digest(mine) != start.digest:
            run.brain.load_weights(start.path)
        return same_names

    def _without_start(self, training, overrides):
        """The path of the start is no setting: its content is."""
        key = training.key("start_from")
        return {key: None} if key in overrides else {}

    def _remove_checkpoints(self, run, home):
        """Removes the checkpoints of a finished training of this study."""
        checkpointer = run.brain.checkpointer
        folder = Path(checkpointer.checkpoints_dir).absolute()
        if home.absolute() in folder.parents:
            run_on_main(shutil.rmtree, args=[folder, True])


_MAKE = {"parents": True, "exist_ok": True}

# The parameters of OptimalTransport that `align` knows
_ALIGNMENT = (
    "architecture",
    "hard",
    "reg",
    "heads",
    "sweeps",
    "distance",
    "residual",
    "heads_map",
    "keep_norms",
)


def digest_of(value: Any) -> str:
    """A hash of plain data.

    Arguments
    ---------
    value : object
        Plain data.

    Returns
    -------
    str

    Example
    -------
    >>> digest_of({"a": 1}) == digest_of({"a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _learned(candidates):
    """The coefficients that a training learned, as its checkpoints tell them.

    A Brain that learns with the attention of another model puts its λ, one a
    layer, into the meta of each checkpoint, under ``ratios``.
    """
    history = [
        {"step": candidate.epoch, "coefficients": candidate.meta["ratios"]}
        for candidate in candidates
        if "ratios" in candidate.meta
    ]
    return {"learned": history} if history else {}


def finished(folder, name: str) -> Optional[dict]:
    """The record of a training, if it is finished.

    Arguments
    ---------
    folder : Path
        Of the seed.
    name : str
        The model.

    Returns
    -------
    dict or None
    """
    return known_record(folder / "models" / name / "finished.json")


def _relative(path, folder):
    """A path as seen from the study's folder, where it lies in it."""
    path, folder = Path(path).absolute(), Path(folder).absolute()
    return path.relative_to(folder) if folder in path.parents else path


def _write_aligned(path, source, anchor, cost, method):
    """Writes a model aligned to another, with the options of the method."""
    options = {name: getattr(method, name) for name in _ALIGNMENT}
    with ExitStack() as stack:
        if isinstance(cost, dict):
            cost = {
                which: stack.enter_context(open_weights(file))
                for which, file in cost.items()
            }
        write_weights(path, align(source, anchor, cost=cost, **options))
