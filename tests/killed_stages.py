"""The stages that the kill harness kills, each as small as it gets, and real.

A stage is a function of a folder. It does all of its work there, and called
again on what a killed process left it comes to the same end. `MATERIAL` makes
what it begins with. The trainings are SpeechBrain's, with the mixin; the study
runs through `Study.run`, plans and merges through the command line.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import inference_yaml, tiny_whisper
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import (
    CheckpointPool,
    MergeMixin,
    MergeStage,
    Run,
    learn_coefficients,
    merge,
)
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.cli import main
from speechbrain_merge.export import export_pretrained, export_whisper
from speechbrain_merge.methods import AdaMerging, Fisher, RegMean
from speechbrain_merge.search import CMAES, GoldenSection, GreedySearch
from speechbrain_merge.study import Study
from speechbrain_merge.weights import write_weights

EPOCHS = 3
VALID = {"batch_size": 2}
RUNS = ("one", "two")


class ASR(MergeMixin, TinyCTC):
    """The tiny recipe, which collects and merges."""


def brain_of(folder, run, epochs=EPOCHS, seed=0, rate=0.05, **arguments):
    """A Brain with a pool that it shares with other runs of the folder."""
    torch.manual_seed(seed)
    network = tiny_network(0)
    pool = CheckpointPool(
        folder / "pool", {"model": network}, run=run, **arguments
    )
    brain = tiny_ctc_brain(
        folder / run,
        network,
        ASR,
        epochs=epochs,
        learning_rate=rate,
        recoverables={"pool": pool},
        output_folder=str(folder / run),
    )
    return brain


def fit(brain, domain=0, utterances=12):
    """Trains it, or what is left of it."""
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(utterances, seed=1 + domain, shift=0.5 * domain),
        tiny_ctc_data(6, seed=50 + domain, shift=0.5 * domain),
        train_loader_kwargs={"batch_size": 4},
        valid_loader_kwargs=dict(VALID),
    )


def trained_pool(folder):
    """Two trainings of one pool."""
    for number, run in enumerate(RUNS):
        fit(brain_of(folder, run, seed=number), number)


def resumed(folder):
    """The Brain of the first run as its finished training leaves it."""
    brain = brain_of(folder, RUNS[0])
    fit(brain)
    return brain


def selection():
    """A selection set that no candidate is perfect on."""
    return tiny_ctc_data(8, seed=60, shift=0.3)


def collect(folder):
    """Trains with a pool that bounds itself."""
    fit(brain_of(folder, "run", keep_last=2, keep_best=1))


def search_greedily(folder):
    """Chooses candidates by word error rate."""
    brain = resumed(folder)
    stage = MergeStage("average", [folder / "pool"], search=GreedySearch())
    brain.merge(stage, selection(), dict(VALID))


def search_coefficients(folder):
    """Chooses a scale by golden section, then two by CMA-ES."""
    brain = resumed(folder)
    for method, search in (
        ("task_arithmetic", GoldenSection("scale", 0.0, 1.5, evaluations=5)),
        (
            "dare",
            CMAES(
                {"drop_rate": (0.1, 0.9), "scale": (0.0, 1.5)},
                evaluations=6,
                population=3,
            ),
        ),
    ):
        stage = MergeStage(
            method,
            [folder / "pool"],
            select={"last": 1, "per_run": "last"},
            search=search,
            name=method,
        )
        brain.merge(stage, selection(), dict(VALID))


def learn(folder):
    """Learns a merge's coefficients by gradient, and merges with them."""
    brain = resumed(folder)
    method = AdaMerging(by="tensor")
    stage = MergeStage(
        method, [folder / "pool"], select={"per_run": "last"}, name="learned"
    )
    experts = stage.chosen()
    history = learn_coefficients(
        brain,
        stage.method,
        experts,
        experts[0].base,
        {"a": tiny_ctc_data(4, seed=70), "b": tiny_ctc_data(4, 71, shift=0.5)},
        dict(VALID),
        steps=8,
        learning_rate=0.05,
        folder=folder / "learned",
        save_every=2,
    )
    assert [row["step"] for row in history] == list(range(1, 9))
    brain.merge(stage)


def collect_and_merge(folder):
    """Fisher information, then Gram matrices, and the merges by them."""
    brain = resumed(folder)
    data = {run: tiny_ctc_data(5, seed=80 + n) for n, run in enumerate(RUNS)}
    for method in (Fisher(), RegMean()):
        stage = MergeStage(
            method,
            [folder / "pool"],
            select={"per_run": "last"},
            name=type(method).__name__,
        )
        collect_statistics(brain, stage, data, dict(VALID))
        brain.merge(stage)


def large_models(folder):
    """Weights that take a while to write, and something to replace."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        tensors = {
            f"layers.{n}.weight": torch.randn(256, 512, generator=generator)
            for n in range(8)
        }
        write_weights(folder / f"{name}.safetensors", tensors)
    # no merge replaces what no merge has made
    merge(
        "average",
        [{"w": torch.zeros(3)}],
        output=folder / "merged.safetensors",
        progress=False,
    )


def merge_in_memory(folder):
    """A merge that is a state dict, written afterwards."""
    experts = [folder / f"{name}.safetensors" for name in "ab"]
    base = folder / "base.safetensors"
    made = merge("ties", experts, base, progress=False, same_base=False)
    write_weights(folder / "merged.safetensors", made)


def merge_streamed(folder):
    """A merge from file to file, by two threads, through the command line."""
    _command(
        "merge",
        "ties",
        *(folder / f"{name}.safetensors" for name in "ab"),
        "--base",
        folder / "base.safetensors",
        "--different-bases",
        "--workers",
        2,
        "-o",
        folder / "merged.safetensors",
    )


def plan_of_merges(folder):
    """Large models, and a plan of three stages over them."""
    large_models(folder)
    files = {name: str(folder / f"{name}.safetensors") for name in "ab"}
    base = str(folder / "base.safetensors")
    experts = {"experts": [files["a"], files["b"]], "different_bases": True}
    stages = {
        "mean": {"method": "average", **experts},
        "kept": {
            "method": "task_arithmetic",
            "base": base,
            **experts,
            "output": str(folder / "kept.safetensors"),
        },
        "final": {
            "method": "slerp",
            "parameters": {"t": 0.25},
            "experts": ["mean", "kept"],
            "different_bases": True,
            "output": str(folder / "final.safetensors"),
        },
    }
    (folder / "plan.yaml").write_text(json.dumps({"stages": stages}))


def run_plan(folder):
    """The command that runs a plan."""
    _command("merge", folder / "plan.yaml")


def exportable(folder):
    """A model to export, and an earlier export of another."""
    for name, value in (("new", 2.0), ("earlier", 1.0)):
        tensors = {
            "encoder.weight": torch.full((512, 512), value),
            "output.weight": torch.full((64, 512), -value),
        }
        write_weights(folder / f"{name}.safetensors", tensors)
    (folder / "inference.yaml").write_text(inference_yaml(tensors))
    _export(folder, "earlier")


def export_speechbrain(folder):
    """Replaces the export by another."""
    _export(folder, "new")


def _export(folder, name):
    export_pretrained(
        folder / f"{name}.safetensors",
        folder / "inference.yaml",
        folder / "exported" / "model",
        texts={"README.md": f"This is the {name} one.\n"},
    )


def exportable_whisper(folder):
    """A tiny Whisper, other weights for it, and an earlier export."""
    hub = tiny_whisper(folder / "hub", layers=1)
    whisper = Whisper(hub, hub + "/cache")
    for name, shift in (("new", 0.5), ("earlier", 0.25)):
        tensors = {
            f"whisper.{key}": tensor + shift
            if tensor.is_floating_point()
            else tensor
            for key, tensor in whisper.state_dict().items()
        }
        write_weights(folder / f"{name}.safetensors", tensors)
    _export_whisper(folder, "earlier")


def export_hugging_face(folder):
    """Replaces the export by another."""
    _export_whisper(folder, "new")


def _export_whisper(folder, name):
    hub = str(folder / "hub")
    export_whisper(
        folder / f"{name}.safetensors",
        Whisper(hub, hub + "/cache"),
        folder / "exported" / "whisper",
    )


STUDY_YAML = """\
seed: 0
output_folder: results
run_name: expert
domains: []
test_domains: []
start_from: null
number_of_epochs: 2
lr: 0.03
"""
SETS = {"a": 0, "b": 1}


def study_yaml(folder):
    """The YAML of a training, outside the study's folder."""
    (folder / "train.yaml").write_text(STUDY_YAML)
    (folder / "inference.yaml").write_text(
        "model: !new:tiny_recipe.TinyNetwork\n"
        "modules: {model: !ref <model>}\n"
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        "    loadables: {model: !ref <model>}\n"
    )


def build(hparams_file, overrides, run_opts):
    """The recipe's part of a study."""
    del run_opts
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    torch.manual_seed(hparams["seed"])
    folder = Path(hparams["output_folder"])
    network = tiny_network(0)
    pool = CheckpointPool(
        folder / "pool", {"model": network}, run=hparams["run_name"]
    )
    brain = tiny_ctc_brain(
        folder,
        network,
        ASR,
        epochs=hparams["number_of_epochs"],
        learning_rate=hparams["lr"],
        recoverables={"pool": pool},
        **hparams,
    )
    # All models have the same features, those of the first domain
    features = torch.cat([row["feats"] for row in tiny_ctc_data(8, seed=1)])
    brain.modules.normalize(features[None], epoch=0)
    brain.modules.normalize.update_until_epoch = 0
    if hparams["start_from"]:
        brain.load_weights(hparams["start_from"])
    [domain] = hparams["domains"][:1] or ["a"]

    def data(number, seed, domain):
        made = tiny_ctc_data(number, seed + SETS[domain], 0.5 * SETS[domain])
        for row in made.data.values():
            row["spk_id"] = f"speaker-{len(row['wrd']) % 3}"
        return made

    def train():
        brain.fit(
            brain.hparams.epoch_counter,
            data(8, 1, domain),
            data(4, 50, domain),
            train_loader_kwargs={"batch_size": 4},
            valid_loader_kwargs=dict(VALID),
        )

    def export(weights, target, texts):
        yaml = Path(hparams_file).with_name("inference.yaml")
        export_pretrained(weights, yaml, target, texts=texts)

    return Run(
        brain,
        train,
        data(8, 1, domain),
        {name: data(4, 60, name) for name in SETS},
        {name: data(5, 70, name) for name in SETS},
        dict(VALID),
        export=export,
    )


def run_study(folder):
    """Trains, merges with two searches, tests, compares, draws, exports."""
    # As in a recipe's folder: paths of a study do not say where it lies
    os.chdir(folder)
    study = Study(
        "results",
        {
            "{domain}": {"train": "{domain}"},
            "in-turn": {"in_turn": "{each}"},
            "average": {"merge": "average", "of": "{each}"},
            "fisher": {"merge": "fisher", "of": "{each}"},
            "tuned": {
                "merge": "task_arithmetic",
                "of": "{each}",
                "search": GoldenSection("scale", 0.0, 1.5, evaluations=3),
            },
            "chosen": {
                "merge": "average",
                "of": {"runs": "{each}"},
                "search": GreedySearch(),
            },
            "oracle": {"oracle": "{domain}"},
        },
        {"expert": {"hparams": "train.yaml"}},
        domains=["a", "b"],
        compare=[["average", "chosen"]],
        landscapes={"between": {"between": ["a", "b"], "points": 3}},
        exports=["average"],
    )
    study.run(build, {})


def study_of_loaded_weights(folder):
    """Makes a study of one model that is loaded and tested on one set.

    Arguments
    ---------
    folder : Path
        The working directory.

    Returns
    -------
    callable
        Runs it, and gives the counts of the model.
    """
    study_yaml(folder)
    state = tiny_network(0).state_dict()
    weights = {f"model.{name}": state[name] for name in state}
    write_weights(folder / "a.safetensors", weights)

    def run():
        results = Study(
            "results",
            {"loaded": {"load": "a.safetensors"}},
            {"expert": {"hparams": "train.yaml"}},
            domains=["a"],
        ).run(build, {"noprogressbar": True})
        return results["rows"][0]["sets"]["0"]["usual"]["a"]

    return run


def nothing(folder):
    """A stage that begins with an empty folder."""
    del folder


STAGES = {
    "collecting": (nothing, collect),
    "greedy search": (trained_pool, search_greedily),
    "coefficient search": (trained_pool, search_coefficients),
    "learned coefficients": (trained_pool, learn),
    "statistics": (trained_pool, collect_and_merge),
    "merge in memory": (large_models, merge_in_memory),
    "merge streamed": (large_models, merge_streamed),
    "export, SpeechBrain": (exportable, export_speechbrain),
    "export, Hugging Face": (exportable_whisper, export_hugging_face),
    "plan": (plan_of_merges, run_plan),
    "study": (study_yaml, run_study),
}
"""Name of a stage to what makes its material, and what does its work."""


def _command(*arguments):
    status = main([str(argument) for argument in arguments])
    if status != 0:
        raise RuntimeError(f"the command ended with {status}")
