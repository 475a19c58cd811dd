"""Task arithmetic."""

import pytest
import torch
from methods.reference_answers import (
    TOLERANCES,
    largest_difference,
    task_vector_answers,
)

from speechbrain_merge.methods import TaskArithmetic


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("reference", ["mergekit", "peft"])
def test_task_arithmetic_is_the_references(reference, dtype):
    base, experts, answers = task_vector_answers(dtype)
    merged = TaskArithmetic(scale=[0.5, 1.0, -0.25, 2.0])(experts, base)
    answer = answers[f"{reference}_task_arithmetic"]
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


def test_negative_scale_forgets():
    base = {"w": torch.tensor([1.0, 2.0])}
    expert = {"w": torch.tensor([2.0, 2.0])}
    merged = TaskArithmetic(scale=-1)([expert], base)
    assert merged["w"].tolist() == [0.0, 2.0]


def test_scale_by_expert_part_and_depth():
    names = [
        "encoder.layers.0.linear.weight",
        "encoder.layers.1.linear.weight",
        "decoder.layers.0.linear.weight",
    ]
    base = {name: torch.zeros(1) for name in names}
    experts = [{name: torch.ones(1) for name in names} for _ in range(2)]
    scale = {
        "parts": {"encoder": {"depth": [0.0, 1.0]}, "decoder": [0.25, 0.5]}
    }
    merged = TaskArithmetic(scale)(experts, base)
    assert [merged[name].item() for name in names] == [0.0, 2.0, 0.75]


def test_a_wrong_number_of_scales_is_refused():
    base = {"w": torch.zeros(1)}
    with pytest.raises(ValueError, match="3 coefficients .* 2 experts"):
        TaskArithmetic([1, 2, 3])([base, base], base)


def test_without_a_base_the_error_asks_for_it():
    with pytest.raises(ValueError, match="give `base`"):
        TaskArithmetic()([{"w": torch.zeros(1)}])


@pytest.mark.parametrize(
    "scale", ["1", None, True, float("nan"), [], {"experts": {}, "parts": {}}]
)
def test_scales_that_are_none_are_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        TaskArithmetic(scale)


@pytest.mark.parametrize(
    "scale, message",
    [
        ({"depth": 0.5}, "`scale.depth` must be a list of numbers.*got 0.5"),
        ({"depth": None}, "`scale.depth` must be a list of numbers"),
        ({"depth": []}, "`scale.depth` must be a number, a list"),
        ({"parts": 3}, "`scale.parts` must be a mapping of names.*got 3"),
        ({"experts": [1]}, "`scale.experts` must be a mapping of names"),
        ({"parts": {1: 1}}, "`scale.parts` must be a mapping of names"),
        ({1: 1, "parts": {}}, r"got keys \[1, 'parts'\]"),
    ],
)
def test_values_in_the_place_of_lists_and_mappings(scale, message):
    with pytest.raises(ValueError, match=message):
        TaskArithmetic(scale=scale)
