"""A model from the hub as the base of what a recipe collected."""

import pytest
import torch
from tiny_models import tiny_wav2vec2, tiny_whisper

from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.weights import fold, open_weights, renamed


def collected(**modules):
    """State of modules as a pool names it."""
    return {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def test_whisper_of_the_hub(tmp_path):
    folder = tiny_whisper(tmp_path / "hub", seed=3)
    recipe = Whisper(source=folder, save_path=str(tmp_path / "cache"))
    expert = open_weights(collected(whisper=recipe))
    base = renamed(folder, expert)
    assert base.names() == expert.names()
    for name in expert.names():
        assert torch.equal(base[name], expert[name]), name


def test_wav2vec2_of_the_hub_under_weight_norm(tmp_path):
    folder = tiny_wav2vec2(tmp_path / "hub", seed=3)
    recipe = Wav2Vec2(source=folder, save_path=str(tmp_path / "cache"))
    expert = fold(open_weights(collected(wav2vec2=recipe)))
    base = renamed(fold(open_weights(folder)), expert)
    for name in expert.names():
        assert torch.equal(base[name], expert[name]), name


def test_another_model_is_refused_not_guessed():
    encoder = {"layers.0.fc1.weight": torch.ones(2, 2)}
    expert = open_weights(
        {
            "asr.encoder.layers.0.fc1.weight": torch.ones(2, 2),
            "asr.decoder.layers.0.fc1.weight": torch.ones(2, 2),
        }
    )
    with pytest.raises(ValueError, match="no counterpart of asr"):
        renamed(encoder, expert)


def test_the_same_names_are_left_as_they_are():
    """With their ties, which a new mapping would not have."""
    state = {"embed.weight": torch.ones(3, 2)}
    state["output.weight"] = state["embed.weight"]
    base = open_weights(state)
    assert renamed(base, open_weights(dict(reversed(state.items())))) is base
    assert base.tied == {"output.weight": "embed.weight"}
