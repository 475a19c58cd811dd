"""Fused projections are cut as the real attention layers cut them."""

import math

import pytest
import torch
from tiny_models import tiny_conformer

from speechbrain.nnet.attention import (
    MultiheadAttention,
    RelPosEncXL,
    RelPosMHAXL,
    RoPEMHA,
)
from speechbrain_merge.weights import (
    heads,
    join_projection,
    projection_layout,
    split_projection,
)

SIZE, HEADS, TIME = 12, 3, 5
INTERLEAVED = "1.encoder.layers.0.mha_layer.in_proj_weight"
STACKED = "1.encoder.layers.0.self_att.att.in_proj_weight"


def rel_shift(scores):
    """Row i, column j of the result is the score of distance j - i."""
    queries, keys = scores.shape[-2], (scores.shape[-1] + 1) // 2
    columns = torch.arange(keys)[None] - torch.arange(queries)[:, None]
    return scores.gather(
        -1, (columns + keys - 1).expand(*scores.shape[:-1], keys)
    )


def test_relative_attention_built_by_hand():
    """Heads from `split_projection` alone reproduce RelPosMHAXL."""
    layer = RelPosMHAXL(SIZE, HEADS).eval()
    inputs = torch.randn(2, TIME, SIZE)
    positions = RelPosEncXL(SIZE)(inputs)
    expected, _ = layer(inputs, inputs, inputs, positions)

    parts = split_projection(INTERLEAVED, layer.in_proj_weight, HEADS)
    q, k, v = (heads(parts[name], HEADS) for name in "qkv")
    p = heads(layer.linear_pos.weight, HEADS)
    u, w = (
        heads(bias.flatten(), HEADS)
        for bias in (layer.pos_bias_u, layer.pos_bias_v)
    )
    out = heads(layer.out_proj.weight, HEADS, axis=1)
    total = layer.out_proj.bias
    for h in range(HEADS):
        query, key, value = (inputs @ part[h].T for part in (q, k, v))
        content = (query + u[h]) @ key.transpose(1, 2)
        position = (query + w[h]) @ (positions @ p[h].T).transpose(1, 2)
        scores = (content + rel_shift(position)) / math.sqrt(SIZE)
        attended = scores.softmax(-1) @ value
        total = total + attended @ out[:, h].T
    assert torch.allclose(total, expected, atol=1e-6)


def test_torch_attention_built_by_hand():
    layer = MultiheadAttention(HEADS, SIZE).eval()
    inputs = torch.randn(2, TIME, SIZE)
    expected, _ = layer(inputs, inputs, inputs)

    weight = split_projection(STACKED, layer.att.in_proj_weight, HEADS)
    bias_name = STACKED.replace("weight", "bias")
    bias = split_projection(bias_name, layer.att.in_proj_bias, HEADS)
    out = heads(layer.att.out_proj.weight, HEADS, axis=1)
    total = layer.att.out_proj.bias
    for h in range(HEADS):
        query, key, value = (
            inputs @ heads(weight[name], HEADS)[h].T
            + heads(bias[name], HEADS)[h]
            for name in "qkv"
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(SIZE // HEADS)
        total = total + scores.softmax(-1) @ value @ out[:, h].T
    assert torch.allclose(total, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [RelPosMHAXL, RoPEMHA])
def test_both_paths_of_speechbrains_own_layers(kind):
    """The same layer reads its matrix as stacked when query and key differ.

    So weights that are cut as interleaved and joined as stacked compute the
    same on that path. The key differs by less than the outcome can show.
    """
    layer = kind(SIZE, HEADS).eval()
    inputs = torch.randn(2, TIME, SIZE)
    key = inputs + 1e-6
    positions = None
    if kind is RelPosMHAXL:
        positions = RelPosEncXL(SIZE)(inputs)
    same, _ = layer(inputs, inputs, inputs, positions)
    as_stored, _ = layer(inputs, key, key, positions)
    parts = split_projection(INTERLEAVED, layer.in_proj_weight, HEADS)
    with torch.no_grad():
        stacked = join_projection(INTERLEAVED, parts, HEADS, layout="stacked")
        layer.in_proj_weight.copy_(stacked)
    rearranged, _ = layer(inputs, key, key, positions)
    assert torch.allclose(same, rearranged, atol=1e-5)
    assert not torch.allclose(same, as_stored, atol=1e-2)


@pytest.mark.parametrize("layout", ["interleaved", "stacked"])
@pytest.mark.parametrize("shape", [(36, 7), (36,)])
def test_there_and_back(layout, shape):
    fused = torch.randn(shape)
    parts = split_projection("x", fused, HEADS, layout)
    assert [tuple(part.shape) for part in parts.values()] == [
        (12, *shape[1:])
    ] * 3
    assert torch.equal(join_projection("x", parts, HEADS, layout), fused)


def test_rows_by_hand():
    fused = torch.arange(18)
    parts = split_projection("x", fused, 3, "interleaved")
    assert parts["k"].tolist() == [2, 3, 8, 9, 14, 15]
    parts = split_projection("x", fused, 3, "stacked")
    assert parts["k"].tolist() == [6, 7, 8, 9, 10, 11]


def test_layout_of_real_names():
    names = tiny_conformer(decoder_layers=1).state_dict()
    fused = [name for name in names if "in_proj" in name]
    for name in fused:
        conformer = ".mha_layer." in name
        expected = "interleaved" if conformer else "stacked"
        assert projection_layout(name) == expected, name
    # Two layers of the encoder; weight and bias, self and cross, of the decoder
    assert len(fused) == 2 + 4
    assert projection_layout("encoder.layers.0.self_att.in_proj_weight") == (
        "interleaved"
    )
    with pytest.raises(ValueError, match="Give layout="):
        projection_layout("layers.0.self_attn.in_proj_weight")


def test_mistakes():
    fused = torch.randn(36, 12)
    with pytest.raises(ValueError, match="three projections of 5 heads"):
        split_projection(STACKED, fused, 5)
    with pytest.raises(ValueError, match="layout is one of"):
        split_projection(STACKED, fused, 3, "sideways")
    parts = split_projection(STACKED, fused, 3)
    with pytest.raises(ValueError, match="q, k and v of one shape"):
        join_projection(STACKED, {**parts, "v": parts["v"][:4]}, 3)
    with pytest.raises(ValueError, match="q, k and v of one shape"):
        join_projection(STACKED, {"q": parts["q"]}, 3)
    with pytest.raises(ValueError, match="do not divide into 5 heads"):
        join_projection(STACKED, parts, 5)
    with pytest.raises(ValueError, match="do not divide into 5 heads"):
        heads(fused, 5)


def test_inputs_are_views_and_stay_as_they_are():
    fused = torch.randn(36, 4)
    before = fused.clone()
    parts = split_projection(STACKED, fused, HEADS)
    join_projection(INTERLEAVED, parts, HEADS)
    assert torch.equal(fused, before)
