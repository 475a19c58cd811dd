"""Model Stock against mergekit and FusionBench, and its geometry."""

import math
from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import ModelStock

ANSWERS = Path(__file__).parent / "references" / "spherical.pt"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_agrees_with_mergekit(dtype, filter_wise):
    stored = torch.load(ANSWERS)[dtype]
    answer = stored["model_stock" + ("_filter_wise" if filter_wise else "")]
    method = ModelStock(filter_wise=filter_wise, clamp=False)
    merged = method(stored["experts"], stored["base"])
    for name, expected in answer.items():
        if filter_wise and expected.dim() > 2:
            continue  # mergekit's filters there are single kernels
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCE[dtype], msg=name
        )


def test_agrees_with_the_angles_of_fusionbench():
    stored = torch.load(ANSWERS)[torch.float64]
    experts, base = stored["experts"], stored["base"]
    merged = ModelStock(average="angle", clamp=False)(experts, base)
    for name, ratio in stored["angles"].items():
        mean = sum(expert[name] for expert in experts) / len(experts)
        expected = ratio * mean + (1 - ratio) * base[name]
        # it takes angles in float32
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=1e-5, msg=name
        )


def at_angles(*degrees):
    """Task vectors of length 1 in a plane, from a base of zeros."""
    return [
        {
            "w": torch.tensor(
                [math.cos(math.radians(each)), math.sin(math.radians(each))],
                dtype=torch.float64,
            )
        }
        for each in degrees
    ], {"w": torch.zeros(2, dtype=torch.float64)}


def test_one_direction_gives_the_mean():
    base = {"w": torch.randn(3, 4)}
    step = torch.randn(3, 4)
    experts = [{"w": base["w"] + size * step} for size in (0.5, 1.0, 3.0)]
    torch.testing.assert_close(
        ModelStock()(experts, base)["w"], base["w"] + 1.5 * step
    )


def test_right_angle_gives_the_base():
    experts, base = at_angles(0, 90)
    assert ModelStock()(experts, base)["w"].abs().max() < 1e-15


def test_two_experts_in_closed_form():
    experts, base = at_angles(-30, 30)
    ratio = 2 * 0.5 / (1 + 0.5)
    expected = torch.tensor([ratio * math.cos(math.pi / 6), 0.0])
    torch.testing.assert_close(
        ModelStock()(experts, base)["w"], expected.double()
    )


@pytest.mark.parametrize("angle", [100, 150, 179.9, 180])
def test_obtuse_angles_stay_between_base_and_mean(angle):
    experts, base = at_angles(0, angle)
    assert torch.equal(ModelStock()(experts, base)["w"], base["w"])


def test_formula_as_it_stands_leaves_the_segment():
    experts, base = at_angles(0, 120)
    cosine = -0.5
    ratio = 2 * cosine / (1 + cosine)
    mean = (experts[0]["w"] + experts[1]["w"]) / 2
    torch.testing.assert_close(
        ModelStock(clamp=False)(experts, base)["w"], ratio * mean
    )


def test_three_experts_around_the_singularity():
    """Vectors at 120° cancel, and 1 + 2c is zero: both forms give the base."""
    experts, base = at_angles(0, 120, 240)
    for clamp in (True, False):
        merged = ModelStock(clamp=clamp)(experts, base)["w"]
        assert merged.abs().max() < 1e-9


def test_past_the_singularity_is_not_taken_for_acute():
    """With c < −1/(T−1), averaged over few pairs by rounding, t > 1 again."""
    method = ModelStock()
    products = torch.full((1, 3, 3), -0.6, dtype=torch.float64)
    products[0].fill_diagonal_(1.0)
    assert method._ratio(products).tolist() == [0.0]


def test_rows_apart():
    base = {"w": torch.zeros(2, 2)}
    experts = [
        {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0]])},
        {"w": torch.tensor([[1.0, 0.0], [0.0, 1.0]])},
    ]
    merged = ModelStock(filter_wise=True)(experts, base)["w"]
    assert merged.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_small_task_vectors_are_not_taken_for_zero():
    """A floor under the lengths, as in mergekit, would give the base here."""
    base = {"w": torch.zeros(3, dtype=torch.float64)}
    experts = [{"w": 1e-6 * torch.ones(3, dtype=torch.float64)}] * 2
    torch.testing.assert_close(
        ModelStock()(experts, base)["w"], experts[0]["w"], rtol=1e-12, atol=0
    )


def test_long_rows_are_summed_in_blocks():
    base = {"w": torch.zeros(2, 300_000)}
    experts = [{"w": torch.randn(2, 300_000)} for _ in range(2)]
    experts[1]["w"] += experts[0]["w"]
    cosine = torch.nn.functional.cosine_similarity(
        experts[0]["w"].double(), experts[1]["w"].double(), dim=1
    )
    ratio = (2 * cosine / (1 + cosine))[:, None]
    mean = (experts[0]["w"].double() + experts[1]["w"].double()) / 2
    torch.testing.assert_close(
        ModelStock(filter_wise=True)(experts, base)["w"],
        (ratio * mean).float(),
    )


def test_wrong_use():
    with pytest.raises(ValueError, match="True or False"):
        ModelStock(filter_wise="yes")
    with pytest.raises(ValueError, match="'cosine', 'angle'"):
        ModelStock(average="median")
    with pytest.raises(ValueError, match="at least 2"):
        ModelStock()([{"w": torch.ones(2)}], {"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="give `base`"):
        ModelStock()([{"w": torch.ones(2)}, {"w": torch.ones(2)}])
