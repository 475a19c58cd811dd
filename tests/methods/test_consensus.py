"""Consensus merging."""

import pytest
import torch
from methods.reference_answers import (
    TOLERANCES,
    largest_difference,
    task_vector_answers,
)

from speechbrain_merge.methods import Consensus, TaskArithmetic


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_is_fusion_benchs_masks(dtype):
    base, experts, answers = task_vector_answers(dtype)
    merged = Consensus(mask_scale=0.4, scale=0.3)(experts, base)
    answer = answers["fusion_bench_consensus"]
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


def test_by_hand():
    """Three weights: needed by both, by one, by neither."""
    base = {"w": torch.zeros(3)}
    experts = [
        {"w": torch.tensor([1.0, 4.0, 1.0])},
        {"w": torch.tensor([1.0, 0.5, 0.0])},
        {"w": torch.tensor([0.0, 0.0, 0.0])},
    ]
    # τ − τ_t: (1, .5, 0), (1, 4, 1); marked where |τ_t| > 0.5 |τ − τ_t|
    for agreement, expected in (
        (0, [2.0, 4.5, 1.0]),
        (1, [2.0, 4.5, 1.0]),
        (2, [2.0, 0.0, 0.0]),
        (3, [0.0, 0.0, 0.0]),
    ):
        method = Consensus(0.5, minimum_agreement=agreement)
        assert method(experts, base)["w"].tolist() == expected


def test_a_mask_scale_for_each_expert():
    base = {"w": torch.zeros(1)}
    experts = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([0.5])}]
    # marked where 1 > μ_1 · 0.5 and where 0.5 > μ_2 · 1
    for masks, expected in (([1.5, 0.4], 1.5), ([1.5, 0.6], 0.0)):
        merged = Consensus(mask_scale=masks)(experts, base)
        assert merged["w"].item() == expected


def test_no_agreement_asked_for_is_task_arithmetic():
    base = {"w": torch.randn(50)}
    experts = [{"w": torch.randn(50)} for _ in range(3)]
    merged = Consensus(minimum_agreement=0, scale=0.4)(experts, base)["w"]
    expected = TaskArithmetic(0.4)(experts, base)["w"]
    torch.testing.assert_close(merged, expected)


def test_fewer_experts_than_must_agree_are_refused():
    base = {"w": torch.zeros(1)}
    with pytest.raises(ValueError, match="needs at least 3 experts, got 2"):
        Consensus(minimum_agreement=3)([base, base], base)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"mask_scale": -1}, "`mask_scale` must be a number at least 0"),
        ({"mask_scale": []}, "`mask_scale` must be"),
        ({"minimum_agreement": 1.5}, "`minimum_agreement` must be a whole"),
        ({"minimum_agreement": -1}, "at least 0"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        Consensus(**parameters)
