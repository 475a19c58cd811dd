"""Learning without Forgetting: exact values, and what it does to a training.

Authors
 * The speechbrain_merge authors 2026
"""

import math

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from tiny_models import (
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
    tiny_whisper,
)
from tiny_recipe import TinyCTC

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.training import LearningWithoutForgetting


def test_by_hand():
    """Of two classes with T = 2: original odds 3 : 1, new odds 1 : 1."""
    keep = LearningWithoutForgetting(torch.nn.Linear(1, 1), 0.5, temperature=2)
    original = torch.tensor([[[2 * math.log(3), 0.0]]])
    logits = torch.zeros(1, 1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = 0.5 * 2**2 * divergence
    assert keep(logits, original).item() == pytest.approx(expected, rel=1e-6)
    # Logarithms of probabilities have the same softmax
    same = keep(logits.log_softmax(-1), original.log_softmax(-1))
    assert same.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_keeps_its_size_at_any_temperature():
    """For large T it is that of half the squared difference, over classes."""
    original = torch.tensor([[[1.0, -1.0, 0.0]]])
    for temperature in (100.0, 400.0):
        logits = torch.tensor([[[-2.0, 1.0, 1.0]]], requires_grad=True)
        keep = LearningWithoutForgetting(
            torch.nn.Linear(1, 1), temperature=temperature
        )
        keep(logits, original).backward()
        torch.testing.assert_close(
            logits.grad, (logits.detach() - original) / 3, rtol=0.02, atol=0.02
        )


def test_padding_does_not_count():
    keep = LearningWithoutForgetting(torch.nn.Linear(1, 1))
    logits, original = torch.randn(2, 2, 10, 5).unbind(0)
    lengths = torch.tensor([1.0, 0.7])
    one_by_one = [
        keep(logits[:1], original[:1]).item() * 10,
        keep(logits[1:, :7], original[1:, :7]).item() * 7,
    ]
    expected = sum(one_by_one) / 17
    assert keep(logits, original, lengths).item() == pytest.approx(expected)
    logits[1, 7:] = float("nan")
    assert keep(logits, original, lengths).item() == pytest.approx(expected)


def test_the_original_is_a_frozen_copy(tmp_path):
    """Of SpeechBrain's Whisper, with dropout in the model alone."""
    folder = tiny_whisper(tmp_path / "whisper", layers=1)
    model = Whisper(source=folder, save_path=str(tmp_path / "save"))
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    keep = LearningWithoutForgetting(model)
    model.train()
    wavs, tokens = torch.randn(2, 1600), torch.full((2, 3), model.bos)
    _, first, _ = keep.original_outputs(wavs, tokens)
    _, again, _ = keep.original_outputs(wavs, tokens)
    _, logits, _ = model(wavs, tokens)
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert not torch.allclose(logits, first)
    keep(logits, first).backward()
    assert all(p.grad is None for p in keep.original.parameters())
    assert any(p.grad is not None for p in model.parameters())
    # Training the model leaves it alone
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(keep.original_outputs(wavs, tokens)[1], first)
    keep.remember()
    assert not torch.allclose(keep.original_outputs(wavs, tokens)[1], first)


def test_several_modules():
    modules = {"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(4, 5)}
    keep = LearningWithoutForgetting(modules)
    inputs = torch.randn(2, 6, 3)
    outputs = keep.original_outputs(
        inputs, forward=lambda original, x: original["b"](original["a"](x))
    )
    assert torch.equal(outputs, modules["b"](modules["a"](inputs)))


RECIPE = """
weight: 0.0
model: !new:tiny_models.TinyConformer
distillation: !new:speechbrain_merge.training.LearningWithoutForgetting
    model: !ref <model>
    weight: !ref <weight>
    temperature: 2
"""


class Distilled(TinyCTC):
    """A recipe's Brain that adds the term to its loss."""

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        keep = self.hparams.distillation
        log_probabilities, lengths = predictions
        inputs = self.modules.normalize(
            batch.feats[0], lengths, epoch=self.hparams.epoch_counter.current
        )
        original = keep.original_outputs(inputs, lengths)
        self.distance = keep(log_probabilities, original, lengths)
        return loss + self.distance


def test_a_training_stays_nearer_to_the_original(tmp_path):
    """A CTC recipe by YAML: the heavier the term, the less it moves away."""

    def distance(weight):
        torch.manual_seed(0)
        hparams = load_hyperpyyaml(RECIPE, {"weight": weight})
        keep = hparams["distillation"]
        brain = tiny_ctc_brain(
            tmp_path / str(weight),
            model=hparams["model"],
            brain_class=Distilled,
            epochs=2,
            learning_rate=0.002,
            distillation=keep,
        )
        data = tiny_ctc_data(12)
        brain.fit(brain.hparams.epoch_counter, data, data)
        keep.weight = 1.0
        brain.evaluate(data, min_key="WER")
        return float(brain.distance)

    free, held, bound = distance(0.0), distance(1.0), distance(100.0)
    assert bound < held < free
    assert bound < 0.05 * free


def test_wrong_use():
    model = tiny_network()
    with pytest.raises(ValueError, match="`weight` must be at least 0"):
        LearningWithoutForgetting(model, weight=-1)
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        LearningWithoutForgetting(model, temperature=0)
    with pytest.raises(ValueError, match=r"\(2, 3, 5\) of the new .* 4\)"):
        LearningWithoutForgetting(model)(
            torch.zeros(2, 3, 5), torch.zeros(2, 3, 4)
        )


def test_that_conformers_are_copied_too():
    keep = LearningWithoutForgetting(tiny_conformer(layers=1))
    assert not any(p.requires_grad for p in keep.original.parameters())
