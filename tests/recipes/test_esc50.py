"""The ESC-50 recipe on generated clips, with a tiny BEATs and a tiny ViT."""

import csv
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_domains import recipe_module
from tiny_models import tiny_beats, tiny_vit

from speechbrain_merge.evaluation import read_scores
from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import open_weights

RECIPE = Path(__file__).resolve().parents[2] / "recipes/ESC50/classification"
RUN_OPTS = {"device": "cpu", "noprogressbar": True}
SMALL = {"number_of_epochs": 2, "batch_size": 4, "warmup_steps": 1}


@pytest.fixture(scope="module")
def recipe():
    """The recipe's ``train.py`` as a module."""
    with recipe_module(RECIPE) as module:
        yield module


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """ESC-50 in small: 5 folds of 2 clips of 2 classes; and the models."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "ESC-50" / "meta").mkdir(parents=True)
    (folder / "ESC-50" / "audio").mkdir()
    random = numpy.random.default_rng(0)
    columns = ["filename", "fold", "target", "category"]
    table = folder / "ESC-50" / "meta" / "esc50.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for fold in range(1, 6):
            for take in range(2):
                for target, category in enumerate(["dog", "rain"]):
                    name = f"{fold}-{take}-A-{target}.wav"
                    clip = 0.1 * random.standard_normal(22050)
                    if category == "dog":
                        time = numpy.arange(22050) / 44100
                        clip = numpy.sin(2 * numpy.pi * 440 * time)
                    path = folder / "ESC-50" / "audio" / name
                    soundfile.write(path, clip.astype("float32"), 44100)
                    writer.writerow([name, fold, target, category])
    tiny_beats(folder / "beats.pt")
    tiny_vit(folder / "vit")
    return folder


def build(recipe, material, results, **more):
    """The Brain of a small run, as the recipe makes it."""
    overrides = {
        "results_folder": str(results),
        "data_folder": str(material / "ESC-50"),
        "beats_path": str(material / "beats.pt"),
        **SMALL,
        **more,
    }
    return recipe.load_and_build(
        str(RECIPE / "hparams/train.yaml"), overrides, RUN_OPTS
    )


def test_folds_classes_and_rates(recipe, material, tmp_path):
    brain, _, sets = build(recipe, material, tmp_path)
    folds = {
        split: {row["fold"] for row in sets[split].data.values()}
        for split in ("train", "valid")
    }
    assert folds == {"train": {1, 2, 3}, "valid": {4}}
    clip = sets["test_sets"]["esc50"][0]
    # half a second of 44.1 kHz at 16 kHz, as loud as it can be
    assert clip["sig"].shape == (8000,)
    assert clip["sig"].abs().max() == 1
    rates = brain.evaluate_domains(sets["test_sets"], tmp_path / "tested")
    assert rates["esc50"]["clips"] == 4
    scores = read_scores(tmp_path / "tested" / "esc50.jsonl")
    wrong = sum(score.reference != score.hypothesis for score in scores)
    assert rates["esc50"]["errors"] == wrong
    assert rates["esc50"]["error"] == 100 * wrong / 4


def test_the_paper_s_rows_from_one_command(recipe, material, tmp_path):
    overrides = {
        "results_folder": str(tmp_path),
        "data_folder": str(material / "ESC-50"),
        "beats_path": str(material / "beats.pt"),
        "vit_hub": str(material / "vit"),
        "target": {"run_name": "target", "lr": 0.01},
        "ratios": [0.0, 0.3],
        "blocks": ["0", "0-1"],
        "fine_tuning_overrides": {"layer_map": None, "lr_ratio": 0.02},
    }

    with open(RECIPE / "hparams/mam.yaml") as file:
        study = load_hyperpyyaml(file, overrides)
    study["model_hparams"] = str(RECIPE / "hparams/train.yaml")
    study["model_overrides"].update(SMALL)
    results = recipe.run_study(study, RUN_OPTS, recipe.load_and_build)
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [
        "target",
        "mam",
        "noise_like_source",
        "mam_layers",
        "fine_tuned",
        "mam_fine_tuned",
        "lmam",
    ]
    assert all(row["rates"]["clips"] == 4 for row in rows.values())
    merges = results["merges"]["esc50"]
    assert [
        (trial["parameters"]["layers"], trial["parameters"]["ratio"])
        for trial in merges["mam_layers"]["trials"]
    ] == [("0", 0.0), ("0", 0.3), ("0-1", 0.0), ("0-1", 0.3)]
    with (
        open_weights(rows["target"]["source"]) as target,
        open_weights(rows["lmam"]["source"]) as learned,
        open_weights(material / "vit") as vit,
    ):
        assert set(learned.names()) == set(target.names())
        name = "embedding_model.encoder.layers.1.self_attn.q_proj.weight"
        assert not torch.equal(learned[name], target[name])
        assert any(vit.shape(each) == target.shape(name) for each in vit)
    history = [row["coefficients"] for row in results["ratios"]["esc50"]]
    assert len(history) == 3 and len(history[0]) == 2
    assert all(abs(ratio - 0.1) > 1e-3 for ratio in history[0].values())
    pool = read_pool(tmp_path / "pool" / "target")
    assert [each.score for each in pool] == [e.meta["error"] for e in pool]
    table = (tmp_path / "results.md").read_text()
    assert "| test error % | esc50 |" in table
    assert "| esc50, dev error % | λ = 0 | 0.3 |" in table
    assert "| mam layers, layers 0-1 |" in table
    for picture in ("ratio_esc50.png", "learned_esc50.png"):
        assert (tmp_path / picture).stat().st_size > 5000


def test_one_classifier_and_its_merge(recipe, material, tmp_path):
    brain, fit, sets = build(recipe, material, tmp_path, lr=0.01)
    fit()
    stage = brain.hparams.merge_stage
    result = brain.merge(stage, sets["valid_sets"])
    first, second = read_pool(tmp_path / "pool" / "classifier")
    with (
        open_weights(result.path) as merged,
        open_weights(first.path) as one,
        open_weights(second.path) as other,
    ):
        torch.testing.assert_close(
            merged["classifier.weight"],
            (one["classifier.weight"] + other["classifier.weight"]) / 2,
        )


def test_what_is_no_esc50_is_refused(recipe, material, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be ESC-50"):
        build(recipe, material, tmp_path, data_folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"share the folds \[4\]"):
        build(recipe, material, tmp_path, test_fold_nums=[4, 5])
    with pytest.raises(ValueError, match=r"train_fold_nums has \[6\]"):
        build(recipe, material, tmp_path, train_fold_nums=[6])
