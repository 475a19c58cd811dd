"""Weight norm is folded into the weight that the layer computes with."""

import warnings

import pytest
import torch
from tiny_models import tiny_hubert, tiny_wav2vec2, tiny_wavlm

from speechbrain_merge.engine import merge
from speechbrain_merge.weights import (
    check_compatible,
    fold,
    open_weights,
    refold,
)


def normed(style, dimension, layer=None):
    layer = layer or torch.nn.Conv1d(4, 6, 3)
    if style == "new":
        layer = torch.nn.utils.parametrizations.weight_norm(
            layer, dim=dimension
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            layer = torch.nn.utils.weight_norm(layer, dim=dimension)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("style", ["new", "old"])
@pytest.mark.parametrize("dimension", [0, 1, 2, None])
def test_fold_gives_the_layers_own_weight(tmp_path, style, dimension):
    layer = normed(style, dimension)
    inputs = torch.randn(2, 4, 9)
    output = layer(inputs)
    path = tmp_path / "layer.ckpt"
    torch.save(layer.state_dict(), path)
    for source in (layer, layer.state_dict(), path):
        with fold(source) as plain:
            assert set(plain) == {"weight", "bias"}
            assert plain.shape("weight") == (6, 4, 3)
            assert torch.equal(plain["weight"], layer.weight.detach())
            other = torch.nn.Conv1d(4, 6, 3)
            other.load_state_dict(dict(plain))
    assert torch.equal(other(inputs), output)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64]
)
def test_fold_keeps_the_dtype(dtype):
    layer = normed("new", 0).to(dtype)
    plain = fold(layer.state_dict())["weight"]
    assert plain.dtype == dtype
    wide = layer.double().weight
    tolerance = torch.finfo(dtype).eps
    assert torch.allclose(plain.double(), wide, rtol=tolerance, atol=0)


@pytest.mark.parametrize("style", ["new", "old"])
@pytest.mark.parametrize("dimension", [0, 2, None])
def test_refold_loads_strictly_and_computes_the_same(style, dimension):
    layer = normed(style, dimension)
    plain = {"weight": torch.randn(6, 4, 3), "bias": torch.randn(6)}
    plain["weight"][1] = 0
    for like in (layer, layer.state_dict()):
        refolded = refold(plain, like)
        assert list(refolded) == list(layer.state_dict())
        layer.load_state_dict(refolded, strict=True)
        inputs = torch.randn(2, 4, 9)
        expected = torch.nn.functional.conv1d(inputs, **plain)
        assert torch.allclose(layer(inputs), expected, atol=1e-5)
        effective = fold(layer)["weight"]
        assert torch.allclose(effective, plain["weight"], atol=1e-6, rtol=1e-6)
        assert effective.isfinite().all()


@pytest.mark.parametrize("tiny", [tiny_wav2vec2, tiny_hubert, tiny_wavlm])
def test_speech_encoders_there_and_back(tmp_path, tiny):
    """Fold two, average, refold: the model computes with the average."""
    from transformers import AutoModel

    folders = [tiny(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    with fold(folders[0]) as first, fold(folders[1]) as second:
        check_compatible([first, second])
        name = "encoder.pos_conv_embed.conv.weight"
        assert name in first
        assert not any("original" in each for each in first)
        average = {each: (first[each] + second[each]) / 2 for each in first}
    model = AutoModel.from_pretrained(folders[0]).eval()
    model.load_state_dict(refold(average, like=model), strict=True)
    weight = model.encoder.pos_conv_embed.conv.weight
    assert torch.allclose(weight, average[name], atol=1e-7)
    # Averaging magnitudes and directions would have given another weight
    with open_weights(folders[0]) as a, open_weights(folders[1]) as b:
        g, v = (
            (a[part] + b[part]) / 2
            for part in a
            if "pos_conv_embed.conv.param" in part
        )
    naive = torch._weight_norm(v, g, 2)
    assert (naive - average[name]).norm() > 0.1 * average[name].norm()


def test_a_merge_keeps_weight_norm_beside_layers_called_adapter(tmp_path):
    """wav2vec 2.0 has such layers of its own, which are no LoRA."""
    from transformers import AutoModel

    folders = [
        tiny_wav2vec2(
            tmp_path / str(seed),
            seed=seed,
            add_adapter=True,
            num_adapter_layers=1,
        )
        for seed in (0, 1)
    ]
    model = AutoModel.from_pretrained(folders[0]).eval()
    assert any(name.startswith("adapter.") for name in model.state_dict())
    merged = merge("average", folders, progress=False, same_base=False)
    model.load_state_dict(merged, strict=True)
    with fold(folders[0]) as first, fold(folders[1]) as second:
        assert first.folded == {"weight norm"}
        name = "encoder.pos_conv_embed.conv.weight"
        torch.testing.assert_close(
            model.encoder.pos_conv_embed.conv.weight,
            (first[name] + second[name]) / 2,
        )


def test_a_merge_of_two_dtypes_keeps_weight_norm():
    first, second = (normed("new", 0).state_dict() for _ in range(2))
    half = {name: tensor.half() for name, tensor in second.items()}
    for experts in ([first, half], [half, first]):
        assert set(merge("average", experts, progress=False)) == set(first)


def test_folding_says_what_it_folded():
    layer = normed("new", 0)
    assert fold(layer).folded == {"weight norm"}
    assert fold(layer, weight_norm=False).folded == set()
    assert fold(torch.nn.Linear(2, 2)).folded == set()
    adapter = {
        "fc.adapter_down_proj.weight": torch.ones(2, 3),
        "fc.adapter_up_proj.weight": torch.ones(4, 2),
    }
    base = {"fc.weight": torch.zeros(4, 3)}
    assert fold(adapter, base=base, alpha=1.0).folded == {"adapters"}
    base |= {"w_g": torch.ones(2, 1), "w_v": torch.ones(2, 3)}
    both = fold(adapter, base=base, alpha=1.0)
    assert both.folded == {"adapters", "weight norm"}
    assert fold(both).folded == set()  # nothing is left to fold


def test_refold_without_weight_norm_only_checks_names():
    layer = torch.nn.Linear(2, 3)
    assert set(refold(layer.state_dict(), layer)) == {"weight", "bias"}
    with pytest.raises(ValueError, match="1 missing .'bias'., 1 left over"):
        refold({"weight": torch.ones(3, 2), "extra": torch.ones(1)}, layer)


def test_other_parametrisations_are_refused():
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="remove_parametrizations"):
        fold(layer)
    half = {"a.parametrizations.weight.original1": torch.ones(3, 3)}
    with pytest.raises(ValueError, match="half of one"):
        fold(half)


def test_names_that_only_look_like_weight_norm():
    state = {"head_g": torch.ones(2), "head_v": torch.ones(3, 3)}
    assert list(fold(state)) == ["head_g", "head_v"]


def test_tied_weight_norm_stays_tied():
    layer = normed("new", 0)
    model = torch.nn.ModuleDict({"one": layer, "two": layer})
    assert fold(model).tied == {
        "two.weight": "one.weight",
        "two.bias": "one.bias",
    }
