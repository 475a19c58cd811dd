"""The wav2vec 2.0 recipe's studies: attention merged, selected and learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_domains import make_domains, recipe_module
from tiny_models import (
    tiny_bert,
    tiny_bert_tokenizer,
    tiny_wav2vec2,
    tiny_whisper,
)

from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import open_weights

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/wav2vec2"
)
DOMAINS = ["digits", "telephony"]
RATIOS = [0.0, 0.25]
QKV = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


@pytest.fixture(scope="module")
def recipe():
    """The recipe's ``train.py`` as a module."""
    with recipe_module(RECIPE) as module:
        yield module


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two tiny speech encoders, a deeper text Transformer, and data."""
    folder = tmp_path_factory.mktemp("material")
    tiny_wav2vec2(folder / "wav2vec2")
    tiny_whisper(folder / "whisper", layers=2)
    tiny_bert(folder / "bert", layers=4)
    tiny_bert_tokenizer(folder / "bert")
    make_domains(folder / "data", DOMAINS)
    return folder


def study(material, results, name, hub="wav2vec2", **more):
    """A study's YAML, in small."""
    overrides = {
        "results_folder": str(results),
        "data_folder": str(material / "data"),
        "encoder_hub": str(material / hub),
        "text_hub": str(material / "bert"),
        "domains": DOMAINS,
        "target": {
            "run_name": "target",
            "domains": DOMAINS,
            "number_of_epochs": 1,
        },
        **more,
    }
    with open(RECIPE / "hparams" / f"{name}.yaml") as file:
        hparams = load_hyperpyyaml(file, overrides)
    hparams["model_hparams"] = str(RECIPE / "hparams/train.yaml")
    hparams["model_overrides"].update(
        steps_per_epoch=2, batch_size=2, window=[2.0], warmup_steps_head=1
    )
    return hparams


def run(recipe, *arguments, **more):
    """Runs a study in small."""
    run_opts = {"device": "cpu", "noprogressbar": True}
    hparams = study(*arguments, **more)
    return recipe.run_study(hparams, run_opts, recipe.load_and_build)


def written(folder):
    """Time of writing of all weights and scores."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".jsonl")
    }


@pytest.fixture(scope="module")
def mam(recipe, material, tmp_path_factory):
    """The zero-shot study, run once."""
    folder = tmp_path_factory.mktemp("mam")
    return run(recipe, material, folder, "mam", ratios=RATIOS), folder


def test_zero_shot_study(mam):
    results, folder = mam
    names = ["mam", "noise_like_source", "noise_like_target", "noise_standard"]
    for domain in DOMAINS:
        merges = results["merges"][domain]
        assert list(merges) == names
        for merge in merges.values():
            tried = [trial["parameters"]["ratio"] for trial in merge["trials"]]
            assert tried == RATIOS
            assert all(trial["complete"] for trial in merge["trials"])
            lowest = min(trial["value"] for trial in merge["trials"])
            assert merge["value"] == lowest
    assert [row["name"] for row in results["rows"]] == ["target", *names] * 2
    table = (folder / "results.md").read_text()
    assert "| digits, dev WER % | λ = 0 | 0.25 |" in table
    assert "| noise standard |" in table and "| target |" in table
    assert "From target to mam on telephony: kinds of errors" in table
    assert (folder / "ratio_digits.png").stat().st_size > 5000


def test_merged_weights_are_those_of_the_formula(mam, material):
    results, _ = mam
    rows = {
        row["name"]: row for row in results["rows"] if row["domain"] == "digits"
    }
    ratio = results["merges"]["digits"]["mam"]["chosen"]["ratio"]
    with (
        open_weights(rows["target"]["source"]) as target,
        open_weights(rows["mam"]["source"]) as merged,
        open_weights(material / "bert") as source,
    ):
        assert merged.names() == target.names()
        for name in target.names():
            if not name.endswith(QKV):
                assert torch.equal(merged[name], target[name])
        # the last of two layers takes from the last of four
        taken = source["encoder.layer.3.attention.self.key.weight"]
        name = "encoder.model.encoder.layers.1.attention.k_proj.weight"
        torch.testing.assert_close(
            merged[name], ratio * taken + (1 - ratio) * target[name]
        )


def test_a_finished_study_runs_nothing_again(recipe, material, mam):
    results, folder = mam
    before = written(folder)
    again = run(recipe, material, folder, "mam", ratios=RATIOS)
    assert written(folder) == before
    assert again["rows"] == results["rows"]


def test_a_target_of_other_settings_is_refused(recipe, material, mam):
    _, folder = mam
    target = {
        "run_name": "target",
        "domains": DOMAINS,
        "number_of_epochs": 1,
        "lr_head": 0.5,
    }
    with pytest.raises(ValueError, match=r"other settings \(lr_head\)"):
        run(recipe, material, folder, "mam", target=target)


def test_layers_by_block_and_by_data(recipe, material, tmp_path):
    results = run(
        recipe,
        material,
        tmp_path / "results",
        "mam_layers",
        "whisper",
        domains=["digits"],
        similar_numbers=[1],
        layer_ratios=[0.25],
        blocks=["0", "0-1"],
    )
    for domain in ["digits"]:
        merges = results["merges"][domain]
        tried = [t["parameters"]["layers"] for t in merges["blocks"]["trials"]]
        assert tried == ["0", "0-1"]
        for found in results["layers"][domain]:
            assert len(found["values"]) == 2
            trials = merges[found["distance"]]["trials"]
            assert len(trials) == 1
            layers = trials[0]["parameters"]["layers"]
            assert layers == [found["ranked"][0]]
        picture = tmp_path / "results" / f"layers_{domain}.png"
        assert picture.stat().st_size > 5000
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| blocks, layers 0-1 |" in table
    assert "| sliced wasserstein, layers " in table
    assert json.loads((tmp_path / "results" / "results.json").read_text())


def test_learned_ratios_and_what_they_are_compared_with(
    recipe, material, mam, tmp_path
):
    folder = tmp_path / "results"
    shutil.copytree(mam[1], folder)
    tuning = {
        "number_of_epochs": 2,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "lr_encoder": 5e-5,
        "lr_ratio": 5e-3,
        "warmup_steps_encoder": 1,
        "layer_map": "even",
    }
    more = {
        "domains": ["digits"],
        "fine_tuning_overrides": tuning,
        "ratios": RATIOS,
    }
    results = run(recipe, material, folder, "lmam", **more)
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [
        "target",
        "mam",
        "fine_tuned",
        "mam_fine_tuned",
        "lmam",
    ]
    bases = {
        name: read_pool(folder / "pool" / f"{name}-digits-1986")[0].base
        for name in ("fine_tuned", "mam_fine_tuned", "lmam")
    }
    with (
        open_weights(rows["target"]["source"]) as target,
        open_weights(rows["mam"]["source"]) as merged,
        open_weights(rows["lmam"]["source"]) as learned,
        open_weights(bases["fine_tuned"]) as tuned_from,
        open_weights(bases["mam_fine_tuned"]) as merge_tuned_from,
    ):
        # a plain model: nothing tells it from the others
        assert set(learned.names()) == set(target.names())
        for name in target.names():
            assert torch.equal(tuned_from[name], target[name])
            assert torch.equal(merge_tuned_from[name], merged[name])
    history = [
        candidate.meta["ratios"]
        for candidate in read_pool(folder / "pool" / "lmam-digits-1986")
    ]
    places = [f"encoder.layers.{layer}.attention" for layer in range(2)]
    assert [list(ratios) for ratios in history] == [places, places]
    for place in places:
        # Adam moves λ by about its learning rate a step
        assert 1e-3 < abs(history[0][place] - 0.1) < 2e-2
        assert history[1][place] != history[0][place]
    drawn = results["ratios"]["digits"]
    assert [each["coefficients"] for each in drawn] == history
    assert [each["step"] for each in drawn] == [1, 2]
    assert (folder / "learned_digits.png").stat().st_size > 5000
    table = (folder / "results.md").read_text()
    assert "| mam fine tuned |" in table
    assert "From fine tuned to lmam on digits: utterances" in table

    before = written(folder)
    assert (
        run(recipe, material, folder, "lmam", **more)["rows"]
        == (results["rows"])
    )
    assert written(folder) == before
