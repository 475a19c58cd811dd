"""The wav2vec 2.0 recipe's studies: attention merged, selected and learned."""

import csv
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
SEED = "1986"
SMALL = {
    "steps_per_epoch": 2,
    "batch_size": 2,
    "window": [2.0],
    "warmup_steps_head": 1,
}
TARGET = {**SMALL, "number_of_epochs": 1}


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


def run(recipe, material, results, name, hub="wav2vec2", target=TARGET, **more):
    """Runs a study in small."""
    trainings = {"target": {"with": target}}
    if "tuning" in more:
        trainings["fine_tuning"] = {"with": more.pop("tuning")}
    overrides = {
        "output_folder": str(results),
        "data_folder": str(material / "data"),
        "encoder_hub": str(material / hub),
        "text_hub": str(material / "bert"),
        "domains": DOMAINS,
        "target_domains": DOMAINS,
        "study": {"trainings": trainings},
        **more,
    }
    with open(RECIPE / "hparams" / f"{name}.yaml") as file:
        hparams = load_hyperpyyaml(file, overrides)
    run_opts = {"device": "cpu", "noprogressbar": True}
    return hparams["study"].run(recipe.build, run_opts)


@pytest.fixture(autouse=True)
def in_the_recipe(monkeypatch):
    """The YAMLs name one another from the recipe's folder, as users run."""
    monkeypatch.chdir(RECIPE)


def written(folder):
    """Time of writing of all weights and scores."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".jsonl")
    }


def trials(folder, name):
    """The trials of a merge's search."""
    times = json.loads((folder / "times.json").read_text())
    return times[name][SEED]["trials"]


def about(results, name):
    """What is known of a model that is no row."""
    return results["models"][name]["about"][SEED]


def home(folder, name):
    """Where the candidates of a training are."""
    return folder / f"seed-{SEED}" / "models" / name / "pool" / name


def merged(folder, name):
    """The weights of a merge."""
    [path] = (folder / f"seed-{SEED}" / "merge" / name).glob("*.safetensors")
    return path


@pytest.fixture(scope="module")
def mam(recipe, material, tmp_path_factory):
    """The zero-shot study, run once."""
    folder = tmp_path_factory.mktemp("mam")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPE)
        found = run(recipe, material, folder, "mam", ratios=RATIOS)
    return found, folder


def test_zero_shot_study(mam):
    results, folder = mam
    names = ["mam", "noise_like_source", "noise_like_target", "noise_standard"]
    for domain in DOMAINS:
        for name in names:
            tested = trials(folder, f"{name}-{domain}")
            assert [t["parameters"]["ratio"] for t in tested] == RATIOS
            assert all(trial["complete"] for trial in tested)
            lowest = min(trial["value"] for trial in tested)
            assert about(results, f"{name}-{domain}")["value"] == lowest
            model = results["models"][f"{name}-{domain}"]
            assert model["select_on"] == [domain]
    assert [row["name"] for row in results["rows"]] == ["target", *names]
    for row in results["rows"]:
        assert set(row["sets"][SEED]["usual"]) == set(DOMAINS)
    table = (folder / "results.md").read_text()
    assert "| selection set of digits, WER % | ratio 0 | 0.25 |" in table
    assert "| noise_standard |" in table and "| target |" in table
    assert "From target to mam on telephony" in table
    assert "kinds of errors" in table
    for domain in DOMAINS:
        picture = folder / f"sweep_ratio_{domain}.png"
        assert picture.stat().st_size > 5000


def test_merged_weights_are_those_of_the_formula(mam, material):
    results, folder = mam
    ratio = about(results, "mam-digits")["chosen"]["ratio"]
    [target] = read_pool(home(folder, "target"))
    with (
        open_weights(target.path) as target,
        open_weights(merged(folder, "mam-digits")) as made,
        open_weights(material / "bert") as source,
    ):
        assert made.names() == target.names()
        for name in target.names():
            if not name.endswith(QKV):
                assert torch.equal(made[name], target[name])
        # the last of two layers takes from the last of four
        taken = source["encoder.layer.3.attention.self.key.weight"]
        name = "encoder.model.encoder.layers.1.attention.k_proj.weight"
        torch.testing.assert_close(
            made[name], ratio * taken + (1 - ratio) * target[name]
        )


def test_a_finished_study_runs_nothing_again(recipe, material, mam):
    results, folder = mam
    before = written(folder)
    again = run(recipe, material, folder, "mam", ratios=RATIOS)
    assert written(folder) == before
    assert again["rows"] == results["rows"]


def test_a_target_of_other_settings_is_refused(recipe, material, mam):
    _, folder = mam
    target = {**TARGET, "lr_head": 0.5}
    with pytest.raises(ValueError, match=r"other settings .*lr_head"):
        run(recipe, material, folder, "mam", target=target)


def test_statistics_of_a_model_of_several_domains(
    recipe, material, mam, tmp_path
):
    folder = tmp_path / "results"
    shutil.copytree(mam[1], folder)
    weighed = {
        "merge": "fisher",
        "of": {"runs": "target", "last": 1},
        "tests": ["digits"],
    }
    results = run(
        recipe,
        material,
        folder,
        "mam",
        ratios=RATIOS,
        models={"weighed": weighed},
        only=["weighed"],
    )
    [row] = results["rows"]
    assert row["name"] == "weighed" and row["parents"] == ["target"]
    assert row["about"][SEED]["selected"] == row["about"][SEED]["candidates"]


def test_layers_by_block_and_by_data(recipe, material, tmp_path):
    folder = tmp_path / "results"
    results = run(
        recipe,
        material,
        folder,
        "mam_layers",
        "whisper",
        domains=["digits"],
        similar_numbers=[1],
        layer_ratios=[0.25],
        blocks=["0", "0-1"],
    )
    tried = [t["parameters"]["layers"] for t in trials(folder, "blocks-digits")]
    assert tried == ["0", "0-1"]
    distances = about(results, "alike-digits")["distances"]
    assert len(distances) == 3
    for found in distances:
        assert len(found["values"]) == 2
        tested = trials(folder, f"{found['distance']}-digits")
        assert len(tested) == 1
        layers = tested[0]["parameters"]["layers"]
        assert layers == [found["ranked"][0]]
    picture = folder / "layers_alike-digits.png"
    assert picture.stat().st_size > 5000
    table = (folder / "results.md").read_text()
    assert "| selection set of digits, WER % | ratio 0.25 |" in table
    assert "| blocks-digits, layers 0-1 |" in table
    assert "| sliced_wasserstein-digits, layers " in table
    found = json.loads((folder / "results.json").read_text())
    assert found.pop("check") and found == results


def test_learned_ratios_and_what_they_are_compared_with(
    recipe, material, mam, tmp_path
):
    folder = tmp_path / "results"
    shutil.copytree(mam[1], folder)
    more = {
        "domains": ["digits"],
        "ratios": RATIOS,
        "tuning": {
            **SMALL,
            "number_of_epochs": 2,
            "lr_encoder": 5e-5,
            "lr_ratio": 5e-3,
            "warmup_steps_encoder": 1,
        },
    }
    before = written(folder / f"seed-{SEED}" / "models")
    results = run(recipe, material, folder, "lmam", **dict(more))
    names = [row["name"] for row in results["rows"]]
    assert names == ["target", "mam", "fine_tuned", "mam_fine_tuned", "lmam"]
    after = written(folder / f"seed-{SEED}" / "models")
    # the target that another study has trained is used
    assert before.items() <= after.items()
    bases = {
        name: read_pool(home(folder, f"{name}-digits"))[0].base
        for name in ("fine_tuned", "mam_fine_tuned")
    }
    history = read_pool(home(folder, "lmam-digits"))
    [target] = read_pool(home(folder, "target"))
    with (
        open_weights(target.path) as target,
        open_weights(merged(folder, "mam-digits")) as made,
        open_weights(history[-1].path) as learned,
        open_weights(bases["fine_tuned"]) as tuned_from,
        open_weights(bases["mam_fine_tuned"]) as merge_tuned_from,
    ):
        # a plain model: nothing tells it from the others
        assert set(learned.names()) == set(target.names())
        for name in target.names():
            assert torch.equal(tuned_from[name], target[name])
            assert torch.equal(merge_tuned_from[name], made[name])
    ratios = [candidate.meta["ratios"] for candidate in history]
    places = [f"encoder.layers.{layer}.attention" for layer in range(2)]
    assert [list(each) for each in ratios] == [places, places]
    for place in places:
        # Adam moves λ by about its learning rate a step
        assert 1e-3 < abs(ratios[0][place] - 0.1) < 2e-2
        assert ratios[1][place] != ratios[0][place]
    drawn = about(results, "lmam-digits")["learned"]
    assert [each["coefficients"] for each in drawn] == ratios
    assert [each["step"] for each in drawn] == [1, 2]
    assert (folder / "learned_lmam-digits.png").stat().st_size > 5000
    table = (folder / "results.md").read_text()
    assert "| mam_fine_tuned |" in table
    assert "From fine_tuned to lmam on digits" in table
    assert ": utterances" in table

    before = written(folder)
    again = run(recipe, material, folder, "lmam", **dict(more))
    assert again["rows"] == results["rows"]
    assert written(folder) == before


HALVES = ["child_l2-1", "child_l2-2", "telephony-1", "telephony-2"]


@pytest.fixture(scope="module")
def cross_fitted(recipe, material, tmp_path_factory):
    """The study in which each half that is held out is tested once."""
    folder = tmp_path_factory.mktemp("cross_fit")
    data = make_domains(folder / "data", ["child_l2", "telephony", "digits"])
    results = folder / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPE)
        run(
            recipe,
            material,
            results,
            "cross_fit",
            hub="whisper",
            data_folder=str(data),
            domains=HALVES,
            target_domains=["child_l2", "digits", "telephony"],
            ratios={"values": RATIOS},
            only=[
                "target",
                "mam_same_heads",
                "fine_tuned-child_l2",
                "lmam_same_heads-child_l2",
            ],
            tuning={**TARGET, "warmup_steps_encoder": 1},
        )
    return json.loads((results / "results.json").read_text()), results


def listed(path):
    """The utterances of a list."""
    with open(path, newline="") as file:
        return [row["ID"] for row in csv.DictReader(file)]


def test_cross_fitting_tests_what_neither_target_nor_ratio_know(cross_fitted):
    found, results = cross_fitted
    splits, tested = results / "splits/csv", []
    for half, other in zip(HALVES, [HALVES[i] for i in (1, 0, 3, 2)]):
        domain = half.rpartition("-")[0]
        own = listed(splits / f"{half}_test.csv")
        assert own == listed(splits / f"{other}_valid.csv")
        heard = listed(splits / f"{domain}_train.csv")
        heard += listed(splits / f"{domain}_valid.csv")
        assert not {*own} & {*heard, *listed(splits / f"{half}_valid.csv")}
        assert found["models"][f"mam_same_heads-{half}"]["select_on"] == [half]
        tested += own
    assert len(tested) == len(set(tested)) == 12  # half of both domains
    manifests = results / f"seed-{SEED}/models/target/manifests"
    heard = {*listed(manifests / "train.csv"), *listed(manifests / "valid.csv")}
    assert heard and not heard & {*tested}


def test_a_source_of_the_same_heads_is_taken_layer_by_layer(
    cross_fitted, material
):
    found, results = cross_fitted
    [target] = read_pool(home(results, "target"))
    name = "encoder.whisper.model.encoder.layers.1.self_attn.q_proj.weight"
    with (
        open_weights(target.path) as target,
        open_weights(material / "whisper") as source,
    ):
        taken = source["model.decoder.layers.1.self_attn.q_proj.weight"]
        for half in HALVES:
            ratio = about(found, f"mam_same_heads-{half}")["chosen"]["ratio"]
            with open_weights(
                merged(results, f"mam_same_heads-{half}")
            ) as made:
                torch.testing.assert_close(
                    made[name], ratio * taken + (1 - ratio) * target[name]
                )
    [learned] = read_pool(home(results, "lmam_same_heads-child_l2"))
    assert list(learned.meta["ratios"]) == [
        f"encoder.layers.{layer}.attention" for layer in range(2)
    ]


def test_the_halves_of_all_folds_are_pooled(recipe, cross_fitted):
    found, results = cross_fitted
    with recipe_module(RECIPE, "pool_folds") as pooling:
        text = pooling.pool_folds([results])
        with pytest.raises(ValueError, match="expected other folds"):
            pooling.pool_folds([results, results])
    rates, differences = text.split("\n\n")
    by_hand = {}
    for row in found["rows"]:
        for half, counts in row["sets"][SEED]["usual"].items():
            domain = half.rpartition("-")[0]
            key = row["name"].removesuffix(f"-{domain}"), domain
            added = by_hand.setdefault(key, [0, 0])
            added[0] += counts["errors"]
            added[1] += counts["words"]
    checked = 0
    for line in rates.splitlines()[2:]:
        name, *cells = [c.strip(" `") for c in line.strip("| ").split("|")]
        for domain, cell in zip(("child_l2", "telephony"), cells):
            if cell:
                errors, words = by_hand[name, domain]
                assert cell == f"{100 * errors / words:.1f}"
                checked += 1
    assert checked == len(by_hand) == 6
    lines = differences.splitlines()[2:]
    assert len(lines) == 3  # MAM on two domains, L-MAM on one
    assert any("`lmam_same_heads` against `fine_tuned`" in one for one in lines)
