"""LiNeS over any method, on the names of real models."""

import pytest
import torch
from tiny_models import tiny_conformer

from speechbrain_merge.methods import (
    TIES,
    Average,
    LayerScaled,
    TaskArithmetic,
    create,
)


def ones_and_zeros(names):
    """A base of zeros and an expert of ones."""
    base = {name: torch.zeros(2) for name in names}
    return base, {name: torch.ones(2) for name in names}


def test_each_stack_has_its_own_depth():
    """An encoder of four layers, a decoder of two, and what lies outside."""
    names = [f"model.encoder.layers.{i}.fc1.weight" for i in range(4)]
    names += [f"model.decoder.layers.{i}.fc1.weight" for i in range(2)]
    names += ["model.encoder.conv1.weight", "model.decoder.layer_norm.weight"]
    base, expert = ones_and_zeros(names)
    merged = LayerScaled(TaskArithmetic(), first=0.25, last=1)([expert], base)
    assert [round(merged[name][0].item(), 4) for name in names] == [
        *[0.25, 0.5, 0.75, 1.0],
        *[0.25, 1.0],
        *[0.25, 0.25],
    ]


def test_a_stack_of_one_layer_does_not_divide_by_zero():
    base, expert = ones_and_zeros(["encoder.layers.0.fc1.weight"])
    merged = LayerScaled("task_arithmetic", first=0.5, last=1)([expert], base)
    assert merged["encoder.layers.0.fc1.weight"].tolist() == [0.5, 0.5]


def test_the_paper_formula_on_a_real_model():
    """α + β l / (L − 1) in the encoder of a Conformer."""
    base = tiny_conformer(seed=0).state_dict()
    experts = [tiny_conformer(seed=seed).state_dict() for seed in (1, 2)]
    alpha, beta = 0.2, 0.6
    plain = TaskArithmetic(0.4)(experts, base)
    merged = LayerScaled(TaskArithmetic(0.4), alpha, alpha + beta)(
        experts, base
    )
    layers = 1 + max(
        int(name.split("encoder.layers.")[1].split(".")[0])
        for name in base
        if "encoder.layers." in name
    )
    assert layers > 1
    seen = set()
    for name, tensor in base.items():
        if not tensor.is_floating_point() or "running_" in name:
            continue
        factor = alpha
        if "encoder.layers." in name:
            layer = int(name.split("encoder.layers.")[1].split(".")[0])
            factor = alpha + beta * layer / (layers - 1)
            seen.add(layer)
        elif "decoder.layers." in name:
            continue
        expected = tensor + factor * (plain[name] - tensor)
        torch.testing.assert_close(merged[name], expected)
    assert seen == set(range(layers))


def test_equal_ends_are_the_method_itself_or_the_base():
    generator = torch.Generator().manual_seed(0)
    names = [f"encoder.layers.{i}.fc1.weight" for i in range(3)]
    base = {name: torch.randn(30, generator=generator) for name in names}
    experts = [
        {name: torch.randn(30, generator=generator) for name in names}
        for _ in range(3)
    ]
    for method in (TIES(), Average()):
        whole = LayerScaled(method, first=1, last=1)(experts, base)
        nothing = LayerScaled(method, first=0, last=0)(experts, base)
        plain = method(experts, base)
        for name in names:
            assert torch.equal(whole[name], plain[name])
            assert torch.equal(nothing[name], base[name])


def test_it_says_how_it_was_made():
    method = create("layer_scaled", method="ties", first=0.1, last=1)
    assert method.configuration() == {
        "method": {
            "method": "ties",
            "parameters": {
                "density": 0.2,
                "scale": 1.0,
                "scope": "model",
                "aggregate": "mean",
                "vote_weights": None,
            },
        },
        "first": 0.1,
        "last": 1,
    }


def test_the_wrapped_method_counts_the_experts():
    base = {"w": torch.zeros(1)}
    with pytest.raises(ValueError, match="'slerp' .* at least 2 experts"):
        LayerScaled("slerp", first=0, last=1)([base], base)


@pytest.mark.parametrize(
    "method, first, last, message",
    [
        ("ties", "low", 1, "`first` must be a finite number"),
        ("ties", 0, float("inf"), "`last` must be a finite number"),
        ("tie", 0, 1, "no merge method 'tie'. Did you mean 'ties'"),
        (torch.nn.Linear(1, 1), 0, 1, "`method` must be a merge method"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(method, first, last, message):
    with pytest.raises(ValueError, match=message):
        LayerScaled(method, first, last)
