"""Learned coefficients: written down while training, and drawn."""

import pytest
from tiny_models import tiny_conformer

from speechbrain_merge.methods import learned_ratio, parametrize_attention
from speechbrain_merge.report import (
    plot_learned_coefficients,
    read_coefficients,
    record_coefficients,
)


def words(path):
    """What is written in an SVG picture."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {
        line.strip()[len("<!-- ") : -len(" -->")]
        for line in lines
        if line.strip().startswith("<!-- ")
    }


def test_from_a_model_to_a_picture(tmp_path):
    model = tiny_conformer(0, layers=3, decoder_layers=1)
    source = tiny_conformer(1, layers=3, decoder_layers=1)
    ratios = parametrize_attention(model, source, ratio=0.25)
    path = tmp_path / "log" / "ratios.jsonl"
    for epoch in range(4):
        record_coefficients(path, epoch, learned_ratio(model)["parts"])
        for number, ratio in enumerate(ratios.values()):
            ratio.value.data += 0.01 * number
    history = read_coefficients(path)
    assert [row["step"] for row in history] == [0, 1, 2, 3]
    last = history[-1]["coefficients"]
    assert last["encoder.layers.1.attention"] == pytest.approx(0.28)
    picture = plot_learned_coefficients(
        path, tmp_path / "ratios.svg", unit="epoch", title="L-MAM", start=0.25
    )
    assert {
        "L-MAM",
        "λ, encoder attention",
        "λ, decoder attention",
        "λ, decoder cross-attention",
        "epoch",
        "layer",
        "from epoch 0 to 3",
    } <= words(picture)


def test_a_resumed_training_and_a_kill(tmp_path):
    path = tmp_path / "ratios.jsonl"
    for step, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)):
        record_coefficients(path, step, {"layers.0": value})
    with open(path, "a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "coeff')
    values = [
        row["coefficients"]["layers.0"] for row in read_coefficients(path)
    ]
    assert values == [0.1, 0.25, 0.35]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty.jsonl has no coefficients"):
        read_coefficients(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="no step"):
        plot_learned_coefficients([], tmp_path / "none.png")


@pytest.mark.parametrize("by", ["expert", "layer", "tensor"])
def test_coefficients_of_experts(tmp_path, by):
    groups = {
        "expert": ["everything"],
        "layer": ["encoder", "encoder.layers.0", "decoder.layers.0", "others"],
        "tensor": [
            f"model.encoder.layers.{layer}.fc{number}.{kind}"
            for layer in range(20)
            for number in (1, 2)
            for kind in ("weight", "bias")
        ],
    }[by]
    history = [
        {
            "step": step,
            "objective": 1.0,
            "coefficients": {
                expert: dict.fromkeys(groups, 0.3 + step / 100)
                for expert in ("digits", "telephony")
            },
        }
        for step in range(1, 30)
    ]
    picture = plot_learned_coefficients(history, tmp_path / "ada.svg")
    expected = {
        "expert": {"everything"},
        "layer": {"encoder, else", "encoder 0", "decoder 0", "others"},
        "tensor": {"model encoder fc1 bias 7"},
    }[by]
    found = words(picture)
    assert {"λ, digits", "λ, telephony", "from step 1 to 29"} <= found
    assert expected <= found
    png = plot_learned_coefficients(history, tmp_path / "ada.png")
    assert png.read_bytes()[:4] == b"\x89PNG"
