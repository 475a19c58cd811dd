"""MonoSoup: by hand, against the authors' code, and on folded adapters."""

import math

import pytest
import torch
from methods.reference_answers import TOLERANCES, assert_answers, later_answers

from speechbrain_merge.methods import MonoSoup


def soup(values, **parameters):
    """The singular values that a task vector with some others gets."""
    draw = torch.Generator().manual_seed(0)
    number = len(values)
    left, right = (
        torch.linalg.qr(
            torch.randn(8, number, generator=draw, dtype=torch.float64)
        )[0]
        for _ in range(2)
    )
    values = torch.tensor(values, dtype=torch.float64)
    base = torch.randn(8, 8, generator=draw, dtype=torch.float64)
    expert = base + (left * values) @ right.T
    merged = MonoSoup(**parameters)(
        [{"fc.weight": expert}], {"fc.weight": base}
    )
    return (left.T @ (merged["fc.weight"] - base) @ right).diagonal()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_agrees_with_the_authors(dtype):
    base, experts, answers = later_answers(dtype)
    merged = MonoSoup(energy=0.8)(experts[:1], base)
    assert_answers(merged, answers["monosoup_energy"], dtype)
    assert torch.equal(merged["tall.bias"], experts[0]["tall.bias"])


def test_the_formula_by_hand():
    """Energies 16, 9, 4 and 1 of 30: the effective rank is e^1.07 = 2.9."""
    values = [4.0, 3.0, 2.0, 1.0]
    parts = [value**2 / 30 for value in values]
    entropy = -sum(part * math.log(part) for part in parts)
    assert math.ceil(math.exp(entropy)) == 3
    ratio, outside = (1.0 / 4.0) ** 2, 1.0 / 30
    low = ratio + (1 - ratio) * math.sqrt(outside)
    expected = [4 * (1 - low), 3 * (1 - low), 2 * (1 - low), low]
    torch.testing.assert_close(
        soup(values), torch.tensor(expected, dtype=torch.float64)
    )


def test_equal_singular_values_are_all_strong():
    expected = torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(soup([0.5] * 4), expected)


def test_energy_is_the_smallest_number_of_directions():
    """16, 9 and 4 of 29: a part of 0.8 takes two directions, 0.5 takes one."""
    two = 4 / 16 + 12 / 16 * math.sqrt(4 / 29)
    torch.testing.assert_close(
        soup([4.0, 3.0, 2.0], energy=0.8),
        torch.tensor([4 - 4 * two, 3 - 3 * two, 2 * two], dtype=torch.float64),
    )
    one = 9 / 16 + 7 / 16 * math.sqrt(13 / 29)
    torch.testing.assert_close(
        soup([4.0, 3.0, 2.0], energy=0.5),
        torch.tensor([4 - 4 * one, 3 * one, 2 * one], dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rank_one_gives_the_expert_back(dtype):
    """Also where rounding made a full rank of it."""
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(40, 30, generator=draw)
    step = torch.outer(*(torch.randn(n, generator=draw) for n in (40, 30)))
    base = base.to(dtype)
    expert = (base.double() + step).to(dtype)
    merged = MonoSoup()([{"w": expert}], {"w": base})["w"]
    far = (merged.double() - expert.double()).norm() / step.norm()
    assert far < 3 * torch.finfo(dtype).eps


def test_one_expert_only():
    base = {"w": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="at most 1 experts, got 2"):
        MonoSoup()([base, base], base)
    with pytest.raises(ValueError, match="`energy` must be a number above 0"):
        MonoSoup(energy=0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_that_leave_float32(size):
    base = torch.zeros(3, 3, dtype=torch.float64)
    expert = size * torch.diag(torch.tensor([2.0, 1.0, 1.0]).double())
    merged = MonoSoup(energy=0.6)([{"w": expert}], {"w": base})["w"]
    one = 0.25 + 0.75 * math.sqrt(2 / 6)
    expected = torch.tensor([2 * (1 - one), one, one]).double()
    torch.testing.assert_close(merged.diagonal() / size, expected)
