"""TIES, in its three readings."""

import pytest
import torch
from methods.reference_answers import (
    TOLERANCES,
    largest_difference,
    task_vector_answers,
)

from speechbrain_merge.methods import TIES


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
def test_over_the_model_it_is_the_authors(aggregate, dtype):
    """As FusionBench has it: one threshold over the flattened model."""
    base, experts, answers = task_vector_answers(dtype)
    merged = TIES(density=0.2, scale=0.6, aggregate=aggregate)(experts, base)
    answer = answers[f"fusion_bench_ties_{aggregate}"]
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_over_tensors_it_is_mergekits(dtype):
    base, experts, answers = task_vector_answers(dtype)
    merged = TIES(density=0.3, scale=0.8, scope="tensor")(experts, base)
    answer = answers["mergekit_ties"]
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_over_tensors_with_weights_it_is_pefts(dtype):
    base, experts, answers = task_vector_answers(dtype)
    method = TIES(density=0.3, scale=[0.5, 1.0, -0.25, 2.0], scope="tensor")
    merged = method(experts, base)
    assert largest_difference(merged, answers["peft_ties"]) < TOLERANCES[dtype]


def test_the_threshold_counts_over_the_whole_model():
    """int(0.4 · 5) + 1 = 3 of five entries stay, wherever they lie."""
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    expert = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, -4, -5])}
    merged = TIES(density=0.4)([expert], base)
    assert merged["a"].tolist() == [0.0, 0.0]
    assert merged["b"].tolist() == [3.0, -4.0, -5.0]


def test_entries_equal_to_the_threshold_all_stay():
    base = {"w": torch.zeros(6)}
    expert = {"w": torch.tensor([1.0, 1, 1, 1, 0.5, 2])}
    for scope in ("model", "tensor"):
        merged = TIES(density=0.34, scope=scope)([expert], base)
        assert merged["w"].tolist() == [1, 1, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "rest, winner", [([5.0, 5.0], 1.0), ([-5.0, -5.0], -1.0)]
)
def test_where_votes_cancel_the_sign_of_most_of_the_model_wins(rest, winner):
    base = {"w": torch.zeros(3)}
    experts = [
        {"w": torch.tensor([1.0, *rest])},
        {"w": torch.tensor([-1.0, *rest])},
    ]
    merged = TIES(density=1)(experts, base)
    assert merged["w"].tolist() == [winner, *rest]
    merged = TIES(density=1, scope="tensor")(experts, base)
    assert merged["w"].tolist() == [1.0, *rest]


def test_dense_with_equal_signs_is_the_mean():
    base = {"w": torch.zeros(4)}
    experts = [{"w": torch.tensor([1.0, 2, -3, -4]) * k} for k in (1, 2, 3)]
    for scope in ("model", "tensor"):
        merged = TIES(density=1, scope=scope)(experts, base)
        assert merged["w"].tolist() == [2.0, 4.0, -6.0, -8.0]


def test_every_entry_has_the_elected_sign_and_few_are_left():
    generator = torch.Generator().manual_seed(3)
    base = {"w": torch.zeros(1000)}
    experts = [{"w": torch.randn(1000, generator=generator)} for _ in range(3)]
    merged = TIES(density=0.1, scope="tensor")(experts, base)["w"]
    trimmed = []
    for expert in experts:
        kept = torch.zeros(1000)
        top = expert["w"].abs().topk(100).indices
        kept[top] = expert["w"][top]
        trimmed.append(kept)
    elected = sum(trimmed).sign()
    assert bool((merged.sign() * elected >= 0).all())
    assert 100 < int(torch.count_nonzero(merged)) <= 300


def test_a_model_that_did_not_move_gives_the_base():
    base = {"w": torch.randn(5), "v": torch.randn(3, 2)}
    for method in (TIES(), TIES(scope="tensor"), TIES(density=1)):
        merged = method([dict(base), dict(base)], base)
        assert all(torch.equal(merged[name], base[name]) for name in base)


def test_stored_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(100, generator=generator)}
    experts = [
        {"w": base["w"] + torch.randn(100, generator=generator)}
        for _ in range(3)
    ]
    for dtype in (torch.float16, torch.bfloat16):
        low = [{"w": expert["w"].to(dtype)} for expert in experts]
        low_base = {"w": base["w"].to(dtype)}
        full = [{"w": expert["w"].float()} for expert in low]
        expected = TIES()(full, {"w": low_base["w"].float()})["w"].to(dtype)
        assert torch.equal(TIES()(low, low_base)["w"], expected)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"density": 0}, "`density` must be a number above 0 and at most 1"),
        ({"density": 20}, "above 0 and at most 1, got 20"),
        ({"density": "0.2"}, "got '0.2'"),
        ({"scope": "layer"}, "'model', 'tensor'; got 'layer'"),
        ({"aggregate": "median"}, "'mean', 'sum', 'max'"),
        ({"scale": "big"}, "`scale` must be"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        TIES(**parameters)
