"""Each family of models, all the way: pool, merge, strict load, equal outputs.

What a merge must be is worked out by hand, with torch's own way of taking
weight norm apart, on the weights that the layers compute with.
"""

import pytest
import torch
from tiny_models import (
    TinyCTC,
    tiny_conformer,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_hubert,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)
from torch.nn.utils import parametrize

from speechbrain.integrations.huggingface.hubert import HuBERT
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.wavlm import WavLM
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage, merge
from speechbrain_merge.methods import create
from speechbrain_merge.search import GridSearch
from speechbrain_merge.weights import fold, open_weights

SPEECH = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
PARAMETRISED = "parametrizations"


class MergingCTC(MergeMixin, TinyCTC):
    """Trains, collects and merges."""


def collect(folder, modules, count=3, noise=0.2):
    """A pool of models that drifted apart from one base."""
    pool = CheckpointPool(folder / "pool", modules)
    pool.store_base(resuming=False)
    checkpointer = Checkpointer(folder / "save", {**modules, "pool": pool})
    base = {name: _copy(module) for name, module in modules.items()}
    for number in range(count):
        for name, module in modules.items():
            module.load_state_dict(base[name])
            with torch.no_grad():
                for parameter in module.parameters():
                    drift = noise * torch.randn(parameter.shape)
                    parameter += drift * parameter.std(correction=0)
                    # the magnitudes differ, as after long training
                    if parameter.dim() == 3:
                        parameter *= 1 + number
        checkpointer.save_checkpoint(meta={"WER": 50.0 - number})
    for name, module in modules.items():
        module.load_state_dict(base[name])
    return pool


def average_by_hand(module, name, candidates):
    """Leaves in the module the mean of the weights it computes with."""
    states = []
    for candidate in candidates:
        with open_weights(candidate, recoverable=name) as weights:
            module.load_state_dict(dict(weights), strict=True)
        remove = [
            child
            for child in module.modules()
            if parametrize.is_parametrized(child)
        ]
        plain = _copy(module)
        names = {id(child): prefix for prefix, child in module.named_modules()}
        for child in remove:
            prefix = names[id(child)]
            for key in list(plain):
                if key.startswith(f"{prefix}.{PARAMETRISED}"):
                    del plain[key]
            plain[f"{prefix}.weight"] = child.weight.detach().clone()
        states.append(plain)
    for child in module.modules():
        if parametrize.is_parametrized(child):
            parametrize.remove_parametrizations(child, "weight")
    mean = {key: tensor.clone() for key, tensor in states[0].items()}
    for key, tensor in mean.items():
        if tensor.is_floating_point():
            total = sum(state[key].double() for state in states)
            mean[key] = (total / len(states)).to(tensor.dtype)
    module.load_state_dict(mean, strict=True)
    return mean


def _copy(module):
    state = module.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def test_whisper(tmp_path):
    folder = tiny_whisper(tmp_path / "hub")
    merged, hand = (
        Whisper(source=folder, save_path=folder + "/cache").eval()
        for _ in range(2)
    )
    pool = collect(tmp_path, {"whisper": merged})
    path = merge(
        "average", pool.candidates(), output=tmp_path / "m.safetensors"
    )
    with open_weights(path, recoverable="whisper") as weights:
        merged.load_state_dict(dict(weights), strict=True)
    average_by_hand(hand, "whisper", pool.candidates())
    for name, tensor in hand.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor), name
    start = torch.tensor([[merged.bos]] * 2)
    with torch.no_grad():
        _, logits, _ = merged(SPEECH, start)
        _, expected, _ = hand(SPEECH, start)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    "build, wrapper",
    [(tiny_wav2vec2, Wav2Vec2), (tiny_hubert, HuBERT), (tiny_wavlm, WavLM)],
)
def test_weight_norm_and_a_head_of_its_own(tmp_path, build, wrapper):
    """Two modules in one pool, one of them with weight norm."""
    folder = build(tmp_path / "hub")
    merged, hand, apart = (
        wrapper(source=folder, save_path=folder + "/cache").eval()
        for _ in range(3)
    )
    head, hand_head = torch.nn.Linear(16, 7), torch.nn.Linear(16, 7)
    pool = collect(tmp_path, {"wav2vec2": merged, "ctc_lin": head})
    candidates = pool.candidates()
    brain = tiny_ctc_brain(
        tmp_path / "brain",
        head,
        MergingCTC,
        recoverables={"pool": pool},
        output_folder=str(tmp_path),
    )
    result = brain.merge(MergeStage("average", [pool]))
    brain.load_weights(result.path)
    average_by_hand(hand, "wav2vec2", candidates)
    average_by_hand(hand_head, "ctc_lin", candidates)
    with torch.no_grad():
        expected = hand_head(hand(SPEECH))
        found = head(merged(SPEECH))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)

    # The mean of magnitudes and the mean of directions are another model
    naive = _copy(apart)
    opened = [open_weights(each, "wav2vec2") for each in candidates]
    for name in naive:
        if PARAMETRISED in name:
            naive[name] = sum(weights[name] for weights in opened) / 3
        else:
            naive[name] = merged.state_dict()[name]
    apart.load_state_dict(naive, strict=True)
    with torch.no_grad():
        wrong = head(apart(SPEECH))
    assert (wrong - expected).norm() > 1e-3 * expected.norm()
    assert (found - expected).norm() < 1e-5 * expected.norm()
    effective = {
        key: value
        for key, value in hand.state_dict().items()
        if key.endswith("pos_conv_embed.conv.weight")
    }
    ((name, weight),) = effective.items()
    error = (fold(apart)[name] - weight).norm() / weight.norm()
    assert error > 0.01
    assert (fold(merged)[name] - weight).norm() < 1e-6 * weight.norm()


def test_task_vectors_of_weight_norm(tmp_path):
    """base + Σ (expert - base), of the weights that the layer computes with."""
    folder = tiny_wav2vec2(tmp_path / "hub")
    model = Wav2Vec2(source=folder, save_path=folder + "/cache").eval()
    pool = collect(tmp_path, {"wav2vec2": model}, count=2)
    brain = tiny_ctc_brain(
        tmp_path / "brain",
        model,
        MergingCTC,
        recoverables={"pool": pool},
        output_folder=str(tmp_path),
    )
    base = fold(_copy(model))
    result = brain.merge(MergeStage("task_arithmetic", [pool]))
    brain.load_weights(result.path)
    experts = [
        fold(open_weights(each, "wav2vec2")) for each in pool.candidates()
    ]
    for name, tensor in fold(model).items():
        expected = base[name] + sum(each[name] - base[name] for each in experts)
        assert torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6), name


def test_conformer_that_trained(tmp_path):
    model, hand = tiny_conformer(), tiny_conformer().eval()
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path,
        model,
        MergingCTC,
        epochs=3,
        recoverables={"pool": pool},
        output_folder=str(tmp_path),
    )
    train, valid = tiny_ctc_data(8), tiny_ctc_data(4, seed=1)
    brain.fit(
        brain.hparams.epoch_counter,
        train,
        valid,
        train_loader_kwargs={"batch_size": 4},
    )
    result = brain.merge(MergeStage("average", [pool]))
    brain.evaluate(valid, min_key="WER")
    assert len(result.selected) == 3
    mean = average_by_hand(hand, "model", pool.candidates())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, mean[name]), name
    features = torch.randn(2, 12, 8)
    model.eval()
    with torch.no_grad():
        assert torch.equal(
            model(features, torch.ones(2)), hand(features, torch.ones(2))
        )

    # a coefficient of a method that wraps another is searched as any other
    stage = MergeStage(
        create("layer_scaled", method="task_arithmetic", first=0.5, last=0.5),
        [pool],
        search=GridSearch("last", [0.5, 1.0]),
    )
    found = brain.merge(stage, valid)
    assert found.method["name"] == "layer_scaled"
    assert len(found.trials) == 2 and found.method["last"] in (0.5, 1.0)
