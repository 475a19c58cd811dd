"""SCE."""

import pytest
import torch
from methods.reference_answers import (
    TOLERANCES,
    largest_difference,
    task_vector_answers,
)

from speechbrain_merge.methods import SCE
from speechbrain_merge.methods.sce import _variance


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("select", [1.0, 0.5])
def test_it_is_mergekits(select, dtype):
    base, experts, answers = task_vector_answers(dtype)
    merged = SCE(select=select)(experts, base)
    answer = answers["mergekit_sce" if select == 1 else "mergekit_sce_half"]
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


def test_small_task_vectors_are_weighed_like_large_ones():
    """mergekit gives equal weights below a fixed size; we do not."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(40, 30, dtype=torch.float64)}
    vectors = [
        torch.randn(40, 30, dtype=torch.float64, generator=generator) * size
        for size in (1, 3)
    ]
    large = SCE(0.5)([{"w": vector} for vector in vectors], base)["w"]
    small = SCE(0.5)([{"w": vector * 1e-5} for vector in vectors], base)["w"]
    torch.testing.assert_close(small, large * 1e-5, rtol=1e-9, atol=0)


def test_half_of_the_entries_that_differ_are_selected():
    base = {"w": torch.zeros(6)}
    experts = [
        {"w": torch.tensor([1.0, 1, 5, 2, 2, 3])},
        {"w": torch.tensor([1.0, 1, 4, 5, 4, 1])},
    ]
    # variances 0, 0, .25, 2.25, 1, 1: of four that differ two, and of equals
    # both
    merged = SCE(select=0.5)(experts, base)["w"]
    assert (merged != 0).tolist() == [False, False, False, True, True, True]


def test_by_hand():
    """Weights 0.8 and 0.2; in the second entry minus is elected."""
    base = {"w": torch.zeros(2)}
    experts = [
        {"w": torch.tensor([2.0, -4.0])},
        {"w": torch.tensor([1.0, 2.0])},
    ]
    assert SCE()(experts, base)["w"].tolist() == pytest.approx([1.8, -4.0])


def test_nothing_to_select_gives_the_base():
    base = {"w": torch.randn(3, 4)}
    expert = {"w": base["w"] + 1}
    merged = SCE(select=0.5)([expert, expert], base)
    assert torch.equal(merged["w"], base["w"])


@pytest.mark.parametrize("select", [0, 1.1, "all"])
def test_wrong_parameters_say_what_is_allowed(select):
    with pytest.raises(ValueError, match="`select` must be a number above 0"):
        SCE(select=select)


def test_the_variance_that_selects_is_exact_where_all_agree():
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(1000, generator=generator) for _ in range(7)]
    for vector in vectors:
        vector[:500] = vectors[0][:500]
    found = _variance(vectors)
    assert bool((found[:500] == 0).all())
    expected = torch.stack(vectors).double().var(dim=0, correction=0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
