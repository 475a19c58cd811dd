"""Freezing parts by name: a decoder that training leaves alone.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import (
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_whisper,
)

from speechbrain_merge.training import freeze, layerwise_groups

RECIPE = """
model: !new:tiny_models.TinyConformer
modules:
    model: !ref <model>
__frozen: !apply:speechbrain_merge.training.freeze
    modules: !ref <modules>
    parts: [encoder.layers.0, front_end]
"""


def is_frozen(name):
    """What RECIPE freezes."""
    return "encoder.layers.0." in name or "custom_src_module" in name


def test_a_training_by_yaml_leaves_frozen_parts_as_they_are(tmp_path):
    model = load_hyperpyyaml(RECIPE)["model"]
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    brain = tiny_ctc_brain(tmp_path, model=model, epochs=1)
    brain.fit(brain.hparams.epoch_counter, tiny_ctc_data(4), tiny_ctc_data(1))
    moved = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    trained = {name for name in before if not is_frozen(name)}
    assert moved <= trained
    assert "ctc_lin.weight" in moved
    assert any("encoder.layers.1." in name for name in moved)


def test_the_decoder_of_whisper(tmp_path):
    from transformers import WhisperForConditionalGeneration

    folder = tiny_whisper(tmp_path / "whisper", layers=1)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    # The encoder's table of positions is frozen from the start
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    names = freeze({"whisper": model}, "decoder")
    assert set(names) == {
        f"whisper.{name}"
        for name, _ in model.named_parameters()
        if name.startswith("model.decoder.")
    }
    # The head is tied to the decoder's embedding
    assert not model.proj_out.weight.requires_grad
    left = {n for n, p in model.named_parameters() if p.requires_grad}
    assert left == {n for n in trainable if n.startswith("model.encoder.")}
    groups = layerwise_groups(model.parameters(), model)
    assert sum(len(group["params"]) for group in groups) == len(left)


def test_wrong_parts():
    model = tiny_conformer()
    with pytest.raises(ValueError, match="`parts` is empty"):
        freeze(model, [])
    with pytest.raises(ValueError, match=r"names \['decoder'\], to which no"):
        freeze(model, ["encoder", "decoder"])
    with pytest.raises(ValueError, match="'decodr' names no part"):
        freeze(model, "decodr")
    assert all(parameter.requires_grad for parameter in model.parameters())
