"""Making one model of a study: keeping, training, merging, aligning.

Each model leaves its weights in the study's folder. It is not made again while
what it was made from and its settings are the same::

    <folder>/seed-<seed>/original.safetensors    what experts are trained from
                         models/<name>/          a training, and its pool
                         merge/<name>/           a merge, its search, its result
                         aligned/<name>.safetensors
                         repaired/<name>.safetensors

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Callable

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.brain.combinations import check_combines
from speechbrain_merge.brain.normalisers import without_statistics
from speechbrain_merge.brain.run import Run
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.fingerprint import fingerprint
from speechbrain_merge.records.once import once
from speechbrain_merge.study.decoding import decoding_of
from speechbrain_merge.study.made import Made, digest_of, digest_of_rows
from speechbrain_merge.study.merged import (
    FOLDER,
    make_aligned,
    make_merged,
    make_repaired,
    selection_sets,
)
from speechbrain_merge.study.nodes import ORIGINAL
from speechbrain_merge.study.trained import make_trained
from speechbrain_merge.study.trainings import without_folder
from speechbrain_merge.weights import (
    digest,
    local_source,
    open_weights,
    write_weights,
)


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
        self.decoding = ""  # of `run`, once that is prepared

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
        run = self.prepare(training, training.overrides(values, {}))
        _check_normalisers(run)
        # now, before merges and tests prepare its objects for themselves
        self.decoding = run_on_main(
            decoding_of, args=[run.brain, training.known]
        )
        return run

    def check(self, nodes: Iterable):
        """Looks, before anything is trained, whether ``build`` gives it all.

        Arguments
        ---------
        nodes : list of Node
            What is to be made and tested. Trainings alone need none.

        Raises
        ------
        ValueError
            Where it does not give a test or selection set that is asked for, or
            its Brain cannot combine models; names the model and the key.
        """
        for node in nodes:
            if node.kind == "merge":
                selection_sets(self, node)
            elif node.kind == "combine":
                check_combines(self.run.brain)
        if not any(node.row and node.tests != () for node in nodes):
            return
        known = self.run.test_sets
        missing = [test for test in self.study.tests if test not in known]
        if missing:
            raise ValueError(
                f"`tests` of the study names {', '.join(missing)}, and `build` "
                f"gives the test sets {', '.join(known) or 'none'}."
            )

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
            make = _OTHERS.get(node.kind)
            if make is not None:
                self.made[name] = make(self, node)
            else:
                self.made[name] = getattr(self, f"_make_{node.kind}")(node)
        return self.made[name]

    def _make_original(self, node):
        """Keeps the weights that the recipe's modules start with."""
        path = self.folder / f"{ORIGINAL}.safetensors"
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self.pool_of(self.run).modules.items()
            for key, tensor in module.state_dict().items()
        }
        content = digest(tensors)
        if run_on_main(path.is_file):
            with open_weights(path) as weights:
                known = digest(weights)
            if known != content:
                raise ValueError(
                    f"{path} holds other weights than this study starts from: "
                    "choose another folder."
                )
        else:
            run_on_main(path.parent.mkdir, kwargs=FOLDER)
            run_on_main(write_weights, args=[path, tensors, {"format": "pt"}])
        return Made(path, content)

    def _make_load(self, node):
        """Opens weights that exist already."""
        path = Path(local_source(node.weights))
        if (path / "manifest.jsonl").is_file():
            candidates = read_pool(path)
            [best] = self.standing_for(candidates)
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
        with open_on_record(path) as weights:
            return Made(path, digest(weights))

    def _make_by_domain(self, node):
        """Makes no weights: its tests are those of other models."""
        content = {
            domain: self.made[name].digest
            for domain, name in node.experts.items()
        }
        return Made(None, digest_of(content))

    def _make_combine(self, node):
        """Makes no weights: its models decode side by side in tests."""
        members = [self.made[name].digest for name in node.members]
        return Made(None, digest_of([node.how, members]))

    def _make_similarity(self, node):
        """Measures how alike layers are."""
        path = self.folder / "similarity" / f"{node.name}.json"
        measure, run = node.measure, self.run
        settings = {
            "of": self.made[node.of].digest,
            "domain": node.domain,
            "measure": {
                "function": getattr(measure, "func", measure).__name__,
                **getattr(measure, "keywords", {}),
            },
            "code": fingerprint(measure),
            "decoding": self.decoding,
        }
        # a study may be moved
        settings = without_folder(settings, self.study.folder)
        sets = {"train": run.train_set, **run.valid_sets}
        settings["data"] = {
            name: digest_of_rows(sets[name], self.study.folder, node.domain)
            for name in ("train", node.domain)
            if name in sets
        }

        def work():
            weights = self.made[node.of].verified(node.of)
            with run.brain.borrowed_weights(weights):
                found = measure(run, node.domain)
            return [distance.to_dict() for distance in found]

        record = once(path, settings, work, again=True)
        return Made(
            None,
            digest_of(record["outcome"]),
            about={"distances": record["outcome"]},
            seconds=record["seconds"],
        )

    def standing_for(self, candidates):
        """The candidate that stands for a training."""
        metric = self.study.metric
        if not any(metric in candidate.meta for candidate in candidates):
            # another kind of training, such as one without transcripts
            metric = candidates[0].metric
        return select(
            candidates,
            per_run=self.study.checkpoint,
            metric=metric,
            mode=self.study.mode,
        )

    def prepare(self, training, overrides):
        """A run of the recipe, as `build` of the recipe prepares it."""
        build = training.build or self.build
        run = build(str(training.hparams), dict(overrides), self.run_opts)
        if not isinstance(run, Run):
            raise ValueError(
                f"`build` of training '{training.name}' gave a "
                f"{type(run).__name__}; expected a speechbrain_merge.Run."
            )
        return run

    def pool_of(self, run):
        """The pool of a run."""
        pools = [pool for pool in run.brain.pools() if not pool.adapters]
        if not pools:
            raise ValueError(
                "The YAML of a training has no CheckpointPool among the "
                "recoverables of its checkpointer, so that nothing would be "
                "left to merge: add one, as the README shows."
            )
        return pools[0]

    def adapters_of(self, run):
        """The pool of a run that collects adapters; None without one."""
        pools = [pool for pool in run.brain.pools() if pool.adapters]
        return pools[0] if pools else None


def _check_normalisers(run):
    """Raises where a normaliser would get its statistics by training alone.

    The Brain that merges and tests is never trained.
    """
    for each in without_statistics(run.brain):
        raise ValueError(
            f"The Brain's module {each} has no statistics, and the study tests "
            "with a Brain that it does not train. Models that are merged need "
            "the same features: have `build` load statistics that were taken "
            "once (docs/studies.md, section 4)."
        )


_OTHERS = {
    "train": make_trained,
    "merge": make_merged,
    "align": make_aligned,
    "repair": make_repaired,
}
