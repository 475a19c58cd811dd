"""Singular value calibration: the authors' code, and experts that agree."""

import pytest
import torch
from methods.reference_answers import assert_answers, later_answers

from speechbrain_merge.methods import TIES, Calibrated, TaskArithmetic, create

NAMES = ("fc.weight", "fc.bias", "conv.weight", "decoder.embed_tokens.weight")


def models(number, dtype=torch.float64):
    """A base and experts that have nothing in common."""
    draw = torch.Generator().manual_seed(3)

    def one():
        shapes = ((9, 7), (9,), (4, 3, 2), (11, 5))
        return {
            name: torch.randn(shape, generator=draw, dtype=dtype)
            for name, shape in zip(NAMES, shapes)
        }

    return one(), [one() for _ in range(number)]


@pytest.mark.parametrize(
    "answer, alpha", [("calibrated", 1.0), ("calibrated_half", 0.5)]
)
def test_agrees_with_the_authors(answer, alpha):
    base, experts, answers = later_answers(torch.float32)
    merged = Calibrated(TaskArithmetic(0.4), alpha)(experts, base)
    assert_answers(merged, answers[answer], torch.float32)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_equal_experts_under_a_sum_are_the_one_expert(number):
    base, (expert,) = models(1)
    merged = Calibrated("task_arithmetic")([expert] * number, base)
    torch.testing.assert_close(merged["fc.weight"], expert["fc.weight"])
    for name in NAMES[1:]:  # no matrices: the sum
        torch.testing.assert_close(
            merged[name], base[name] + number * (expert[name] - base[name])
        )


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_a_mean_of_equal_experts_stays(alpha):
    base, (expert,) = models(1)
    merged = Calibrated(TaskArithmetic(1 / 3), alpha)([expert] * 3, base)
    torch.testing.assert_close(merged["fc.weight"], expert["fc.weight"])


def test_experts_in_directions_of_their_own_stay():
    """Nothing is shared, and nothing is taken away."""
    base = {"fc.weight": torch.zeros(4, 4, dtype=torch.float64)}
    experts = [{"fc.weight": base["fc.weight"].clone()} for _ in range(2)]
    experts[0]["fc.weight"][0, 0] = 3.0
    experts[1]["fc.weight"][1, 1] = 2.0
    merged = Calibrated("task_arithmetic")(experts, base)["fc.weight"]
    torch.testing.assert_close(merged, sum(e["fc.weight"] for e in experts))


def test_alpha_bounds_how_much_longer_a_direction_gets():
    base, experts = models(3)
    plain = TIES()(experts, base)["fc.weight"] - base["fc.weight"]
    before = torch.linalg.svdvals(plain)
    for alpha in (0.25, 1.0):
        merged = Calibrated("ties", alpha)(experts, base)["fc.weight"]
        left, _, right = torch.linalg.svd(plain, full_matrices=False)
        after = (left.T @ (merged - base["fc.weight"]) @ right.T).diagonal()
        assert (after <= before / alpha + 1e-12).all()
        assert (after > 0).all()
    assert (after <= before + 1e-12).all()  # alpha of 1


def test_it_can_be_made_from_its_configuration():
    method = Calibrated(TaskArithmetic(0.3), alpha=0.7)
    again = create("calibrated", **method.configuration())
    base, experts = models(2)
    merged, expected = again(experts, base), method(experts, base)
    assert all(torch.equal(merged[name], expected[name]) for name in NAMES)


def test_wrong_parameters():
    with pytest.raises(ValueError, match="`alpha` must be a number above 0"):
        Calibrated("ties", alpha=0)
    with pytest.raises(ValueError, match="no merge method 'tie'"):
        Calibrated("tie")
    base, experts = models(1)
    with pytest.raises(ValueError, match="'slerp' needs at least 2 experts"):
        Calibrated("slerp")(experts, base)
