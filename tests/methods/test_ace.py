"""ACE: the authors' answers, and experts that stand still."""

import pytest
import torch
from methods.reference_answers import (
    FOLDER,
    TOLERANCES,
    assert_answers,
    later_answers,
)
from safetensors.torch import load_file

from speechbrain_merge.methods import ACE, Average


def uneven(base, experts):
    """Experts of very different lengths, as in ``make_ace.py``."""
    return [
        {
            name: base[name] + factor * (expert[name] - base[name])
            for name in base
        }
        for factor, expert in zip((0.01, 1.0, 0.1), experts)
    ]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("answer", ["ace", "ace_uneven"])
def test_agrees_with_the_authors(answer, dtype):
    base, experts, _ = later_answers(dtype)
    if answer == "ace_uneven":
        experts = uneven(base, experts)
    start = f"{str(dtype).removeprefix('torch.')}/{answer}/"
    expected = {
        key.removeprefix(start): tensor
        for key, tensor in load_file(FOLDER / "ace.safetensors").items()
        if key.startswith(start)
    }
    assert len(expected) == 4
    merged = ACE()(experts, base)
    if dtype == torch.float64:
        assert_answers(merged, expected, dtype)
    for name, tensor in expected.items():
        # their inverse is in float32, and of a matrix that is nearly singular
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=5e-4)


def test_the_residual_belongs_to_heterogeneous_experts():
    base, experts, _ = later_answers(torch.float64)
    apart = uneven(base, experts)
    for models, changes in ((experts, False), (apart, True)):
        with_it = ACE()(models, base)["square.weight"]
        without = ACE(fraction=0)(models, base)["square.weight"]
        assert torch.equal(with_it, without) != changes
    assert torch.equal(
        ACE(threshold=1e9)(experts, base)["square.weight"],
        ACE()(experts, base)["square.weight"],
    )


def test_short_task_vectors_come_near_to_the_mean_of_their_centred_rows():
    base, experts, _ = later_answers(torch.float64)
    short = [
        {n: base[n] + 1e-4 * (expert[n] - base[n]) for n in base}
        for expert in experts
    ]
    mean = Average()(short)
    merged = ACE()(short, base)
    for name in ("tall.weight", "wide.weight", "square.weight"):
        moved = mean[name] - base[name]
        centred = moved - moved.mean(0, keepdim=True)
        torch.testing.assert_close(
            merged[name] - base[name], centred, rtol=1e-3, atol=1e-8
        )


def test_an_expert_that_stands_still_has_no_say():
    base, experts, _ = later_answers(torch.float64)
    with_it = ACE()([*experts, base], base)
    without = ACE()(experts, base)
    for name in base:
        if name.endswith("weight"):
            assert torch.equal(with_it[name], without[name])
    still = ACE()([base, base], base)
    assert all(torch.equal(still[name], base[name]) for name in base)


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0}, {"threshold": -1}, {"fraction": 1.5}]
)
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ACE(**wrong)
