"""When a residual stream can be rotated: what docs/fusion.md derives.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
import torch.nn.functional as functional
from methods.transport_models import HEADS, WIDTH, build, outputs

NAME = "transformer-RelPosMHAXL-ctc"


@pytest.fixture(autouse=True)
def softmax_in_float64(monkeypatch):
    """SpeechBrain's attention asks for float32, and so for 1e-7."""
    softmax = functional.softmax

    def precise(scores, dim=None, _stacklevel=3, dtype=None):
        return softmax(scores, dim=dim)

    monkeypatch.setattr(functional, "softmax", precise)


def rotation_that_keeps_ones():
    """An orthogonal matrix R with R 1 = 1."""
    draw = torch.Generator().manual_seed(3)
    size = (WIDTH, WIDTH)
    start = torch.randn(size, generator=draw, dtype=torch.float64)
    start[:, 0] = 1
    basis = torch.linalg.qr(start)[0]
    inner = torch.randn(size, generator=draw, dtype=torch.float64)[1:, 1:]
    turn = torch.eye(WIDTH, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(inner)[0]
    return basis @ turn @ basis.T


def rotated(state, rotation):
    """A pre-norm Transformer with relative positions, its stream rotated."""
    state = {name: tensor.clone() for name, tensor in state.items()}

    def read(norm, matrix):
        gain, bias = state[f"{norm}.weight"], state[f"{norm}.bias"]
        offset = state[matrix] @ bias
        state[matrix] = state[matrix] * gain @ rotation.T
        gain.fill_(1)
        bias.zero_()
        return offset

    def write(layer):
        state[f"{layer}.weight"] = rotation @ state[f"{layer}.weight"]
        state[f"{layer}.bias"] = rotation @ state[f"{layer}.bias"]

    write("Transformer.custom_src_module.layers.0.w")
    for layer in range(2):
        block = f"Transformer.encoder.layers.{layer}"
        heard = f"{block}.self_att"
        offset = read(f"{block}.norm1.norm", f"{heard}.in_proj_weight")
        queries, _, values = offset.view(HEADS, 3, -1).unbind(1)
        for name in (f"{heard}.pos_bias_u", f"{heard}.pos_bias_v"):
            state[name].view(HEADS, -1).add_(queries)
        out = state[f"{heard}.out_proj.weight"]
        state[f"{heard}.out_proj.bias"] += out @ values.flatten()
        write(f"{heard}.out_proj")
        feed = f"{block}.pos_ffn.ffn"
        state[f"{feed}.0.bias"] += read(
            f"{block}.norm2.norm", f"{feed}.0.weight"
        )
        write(f"{feed}.3")
    state["ctc_lin.w.bias"] += read(
        "Transformer.encoder.norm.norm", "ctc_lin.w.weight"
    )
    return state


@pytest.mark.parametrize("normalize_before", [True, False])
def test_a_rotation_is_exact_where_norms_come_first(normalize_before):
    """And is none where they come last, in tensors of the same names."""
    model = build(NAME, seed=1)
    for layer in model.Transformer.encoder.layers:
        layer.normalize_before = normalize_before
    before = outputs(NAME, model)
    rotation = rotation_that_keeps_ones()
    assert (rotation - torch.eye(WIDTH)).abs().max() > 0.1
    model.load_state_dict(rotated(model.state_dict(), rotation))
    difference = (outputs(NAME, model) - before).abs().max()
    assert difference < 1e-9 if normalize_before else difference > 1e-3
