"""Two models from different starts, fused into one: the paper's tables.

One model is trained with transcripts alone (SL), the other first without any
(SSL). They are averaged as they are, and after the one was aligned to the other
by optimal transport, and what comes out is fine-tuned moderately (MFT) or in
full (FFT); so are, for comparison, the parents alone. Beside them stand what
two models give together without a merge: see ``combinations.py``. After Fu et
al., Interspeech 2023 (arXiv 2306.02541).

``train.py`` reads all that from a YAML and runs it here, for each seed one step
after the other. Each step leaves a record of its settings and its outcome, and
is not done again while the record says the same. So a study that was stopped
goes on where it was, and one that is finished takes seconds.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from pathlib import Path

from combinations import COMBINATIONS, combine
from fusion_report import report
from landscapes import walk
from records import once
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from testing import test_domains

from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.methods import OptimalTransport
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import digest, open_weights

logger = get_logger(__name__)

PRETRAINED = "pretrained"


def run_study(study, run_opts, build, pretrain):
    """Trains, fuses, fine-tunes, tests and reports, for every seed.

    Arguments
    ---------
    study : dict
        The study's YAML.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        ``build(hparams_file, overrides, run_opts)`` prepares a run as
        ``train.py`` does: its Brain, ``fit``, the selection sets and the test
        sets by domain.
    pretrain : callable
        The same for ``pretrain.py``: its Brain and ``fit``.

    Returns
    -------
    dict
        As in ``results.json``.
    """
    check_study(study)
    folder = Path(study["results_folder"])
    seeds = {}
    for seed in study["seeds"]:
        logger.info(f"Seed {seed}, of {len(study['seeds'])} seeds")
        one = Fusion(study, seed, run_opts, build, pretrain)
        seeds[str(seed)] = one.run()
    results = {
        "domains": list(study["test_domains"]),
        "modes": list(study["modes"]),
        "parents": list(study["parents"]),
        "seeds": seeds,
    }
    run_on_main(report, args=[results, folder])
    return results


def check_study(study):
    """Refuses a study that names what it does not have, before it begins.

    Arguments
    ---------
    study : dict
        The study's YAML.

    Raises
    ------
    ValueError
        Naming the key and the name at fault.
    """
    parents, tunings = set(study["parents"]), set(study["fine_tunings"])
    fine_tuned = study["fine_tuned"]
    asked = {
        "fused": (study["fused"], parents),
        "fine_tuned": (fine_tuned, parents | set(study["fusions"])),
        "combined": (filter(None, study["combined"]), tunings),
    }
    for name, wanted in fine_tuned.items():
        asked[f"fine_tuned` of `{name}"] = (wanted, tunings)
    for key, (names, known) in asked.items():
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"`{key}` of the YAML names {unknown}, expected any of "
                f"{sorted(known)}."
            )
    for tuning in filter(None, study["combined"]):
        for parent in study["parents"]:
            if tuning not in fine_tuned.get(parent, ()):
                raise ValueError(
                    f"{parent!r} of `combined` is not fine-tuned: `fine_tuned` "
                    f"of the YAML has to give it {tuning}."
                )


class Fusion:
    """The whole study of one seed, in a folder of its own.

    Arguments
    ---------
    study : dict
        The study's YAML.
    seed : int
        Of the first training; every other one has its own.
    run_opts, build, pretrain
        See ``run_study``.
    """

    def __init__(self, study, seed, run_opts, build, pretrain):
        self.study, self.seed, self.run_opts = study, seed, run_opts
        self.build, self.pretrain = build, pretrain
        self.folder = Path(study["results_folder"]) / f"seed-{seed}"
        self.shared = {
            "results_folder": str(self.folder),
            "normalizer_folder": str(
                Path(study["results_folder"]) / "normalizer"
            ),
            "data_folder": str(study["data_folder"]),
        }
        self.steps = []

    def run(self):
        """All steps.

        Returns
        -------
        dict
            ``rows``, each with the ``name`` of a model or combination, its
            ``group`` and its rates by mode and domain; ``steps``, ``merges``
            and ``barriers``.
        """
        study, rows, sources = self.study, [], {}
        for name, settings in study["parents"].items():
            sources[name] = self.train_parent(name, dict(settings))
        brain, _, valid_data, test_sets = self.build(
            study["expert_hparams"],
            {
                **study["expert_overrides"],
                **self.shared,
                "run_name": "merge",
                "seed": self.seed,
            },
            self.run_opts,
        )
        merges, alignments = {}, {}
        for fusion, stage in study["fusions"].items():
            stage = stage(
                candidates=[sources[name] for name in study["fused"]],
                folder=self.folder / "merge",
                name=fusion,
            )
            seen = None
            if stage.needs_statistics:
                # What units do on speech; its transcripts are not looked at
                seen = collect_statistics(
                    brain,
                    stage,
                    valid_data,
                    brain.hparams.valid_loader_kwargs,
                    decode="valid",
                )
                seen = dict(zip(("anchor", "source"), seen.values()))
            if isinstance(stage.method, OptimalTransport) and stage.method.hard:
                # such a model computes what it did, wherever it lies now
                alignments[fusion] = stage.method, seen
            merged = brain.merge(stage)
            sources[fusion] = merged.path
            merges[fusion] = {
                "method": merged.method,
                "seconds": round(merged.seconds, 2),
            }
        for name, tunings in study["fine_tuned"].items():
            for tuning in tunings:
                sources[f"{name}+{tuning}"] = self.fine_tune(
                    name, sources[name], tuning
                )
        for name, source in sources.items():
            rates = self.test(brain, name, [source], test_sets)
            parent, _, tuning = name.partition("+")
            rows.append({"name": parent, "group": tuning, "rates": rates})
        for tuning in study["combined"]:
            names = [
                "+".join(filter(None, [parent, tuning]))
                for parent in study["parents"]
            ]
            rates = self.test(
                brain,
                "+".join(filter(None, ["combined", tuning])),
                [sources[name] for name in names],
                test_sets,
            )
            rows += [
                {"name": name, "group": tuning or "", "rates": rates[name]}
                for name in COMBINATIONS
            ]
        found = {"rows": rows, "merges": merges, "steps": self.steps}
        if study["landscape"] is not None:
            found["barriers"] = walk(
                brain,
                valid_data,
                {name: sources[name] for name in study["fused"]},
                {name: self.start(name) for name in study["fused"]},
                alignments,
                self.folder / "landscape",
                **study["landscape"],
            )
        return found

    def start(self, name):
        """The weights that a training began from."""
        return read_pool(self.folder / "pool" / name)[0].base

    def train_parent(self, name, settings):
        """Trains one of the two models, unless it is trained.

        Arguments
        ---------
        name : str
            Its name.
        settings : dict
            What is its own in the expert's YAML, and ``pretrained``: whether
            it starts from an encoder that heard no transcripts.

        Returns
        -------
        Path
            The candidate with the lowest error rate on the selection sets.
        """
        number = list(self.study["parents"]).index(name)
        if settings.pop("pretrained", False):
            source = self.train(
                PRETRAINED,
                self.pretrain,
                self.study["pretrain_hparams"],
                {
                    **self.study["pretrain_overrides"],
                    # Models from one and the same start need no alignment
                    "seed": self.seed + 100,
                },
            )
            settings["start_from"] = str(source)
        return self.train(
            name,
            self.build,
            self.study["expert_hparams"],
            {
                **self.study["expert_overrides"],
                "seed": self.seed + number,
                **settings,
            },
        )

    def fine_tune(self, name, source, tuning):
        """Trains a model further, unless that is done.

        Arguments
        ---------
        name : str
            Its name.
        source : Path
            Its weights.
        tuning : str
            The name of the fine-tuning in the study.

        Returns
        -------
        Path
            The best candidate.
        """
        return self.train(
            f"{name}+{tuning}",
            self.build,
            self.study["expert_hparams"],
            {
                **self.study["expert_overrides"],
                # All are fine-tuned on the same batches
                "seed": self.seed + 200,
                "start_from": str(source),
                **self.study["fine_tunings"][tuning],
            },
        )

    def train(self, name, build, hparams_file, overrides):
        """Runs a training to its end, unless it is there.

        Arguments
        ---------
        name : str
            Of the run.
        build : callable
            Prepares it.
        hparams_file : str
            Its YAML.
        overrides : dict
            What is different in it.

        Returns
        -------
        Path
            The best candidate.
        """
        overrides = {**overrides, "run_name": name}
        settings = {"hparams": hparams_file, **overrides}
        if overrides.get("start_from") is not None:
            # of the weights alone: a merge that was made again is the same
            with open_weights(overrides["start_from"]) as weights:
                settings["start_from"] = digest(weights)

        def fit():
            brain, fit, *_ = build(
                hparams_file, {**overrides, **self.shared}, self.run_opts
            )
            fit()
            return {"steps": brain.optimizer_step}

        record = once(self.folder / name / "finished.json", settings, fit)
        self.steps.append(
            {
                "name": name,
                "steps": record["outcome"]["steps"],
                "seconds": record["seconds"],
            }
        )
        members = read_pool(self.folder / "pool" / name)
        (best,) = select(members, best=1, metric=members[0].metric)
        return best.path

    def test(self, brain, name, sources, test_sets):
        """Tests a model, or several in combination, unless that is done.

        Arguments
        ---------
        brain : ASR
            Decodes.
        name : str
            Of the model, or the combination.
        sources : list of Path
            Its weights; several are combined.
        test_sets : dict
            Domain to dataset.

        Returns
        -------
        dict
            Mode to domain to rates; for several, of each combination.
        """
        tests = {domain: data.data for domain, data in test_sets.items()}
        text = json.dumps(tests, sort_keys=True, default=str)
        settings = {
            "weights": [digest(source) for source in sources],
            "tests": hashlib.sha256(text.encode()).hexdigest(),
            "modes": list(brain.hparams.modes),
            "chunks": vars(brain.hparams.test_chunks),
        }
        target = self.folder / "tested" / name

        def decode():
            if len(sources) > 1:
                return combine(brain, sources, test_sets, target)
            brain.use_weights(sources[0])
            return test_domains(brain, test_sets, target)

        record = once(target / "finished.json", settings, decode, again=True)
        return record["outcome"]
