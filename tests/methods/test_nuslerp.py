"""NuSLERP against mergekit, and where the arc is a line."""

import math

import pytest
import torch
from methods.reference_answers import TOLERANCES, assert_answers, later_answers

from speechbrain_merge.methods import NuSlerp, Slerp


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "answer, method",
    [
        ("nuslerp_tensor", NuSlerp(t=0.3)),
        ("nuslerp_output", NuSlerp(t=0.3, by="output")),
        ("nuslerp_input", NuSlerp(weights=[7, 3], by="input")),
        ("nuslerp_base", NuSlerp(weights=[1, 3], reference="base")),
    ],
)
def test_agrees_with_mergekit(answer, method, dtype):
    base, experts, answers = later_answers(dtype)
    assert_answers(method(experts[:2], base), answers[answer], dtype)


def test_a_tensor_as_a_whole_is_slerp():
    _, experts, _ = later_answers(torch.float64)
    merged, expected = NuSlerp(0.3)(experts[:2]), Slerp(0.3)(experts[:2])
    torch.testing.assert_close(merged, expected)


def test_each_output_has_its_own_arc():
    """Right angles in the first row, one direction in the second, and a row
    of zeros: an arc, and lines."""
    first = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    second = torch.tensor([[0.0, 2.0], [3.0, 3.0], [4.0, 0.0]])
    merged = NuSlerp(t=0.5, by="output")([{"w": first}, {"w": second}])["w"]
    half = math.sqrt(2.0)
    expected = torch.tensor([[half, half], [2.0, 2.0], [2.0, 0.0]])
    torch.testing.assert_close(merged, expected)
    turned = NuSlerp(t=0.5, by="input")([{"w": first.T}, {"w": second.T}])
    torch.testing.assert_close(turned["w"], expected.T)


def test_only_the_ratio_of_the_weights_counts():
    experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
    expected = NuSlerp(t=0.75)(experts)["w"]
    for weights in ([1, 3], [0.1, 0.3], [-1, -3]):
        assert torch.equal(NuSlerp(weights=weights)(experts)["w"], expected)
    half = NuSlerp(weights=[1, -1])(experts)["w"]  # no ratio: half way
    assert torch.equal(half, NuSlerp()(experts)["w"])


def test_wrong_parameters():
    with pytest.raises(ValueError, match="`t` and `weights` say the same"):
        NuSlerp(t=0.5, weights=[1, 1])
    with pytest.raises(ValueError, match="`by`"):
        NuSlerp(by="row")
    with pytest.raises(ValueError, match="needs the model that the experts"):
        one = {"w": torch.ones(2)}
        NuSlerp(reference="base")([one, one])


@pytest.mark.parametrize("by", ["tensor", "output", "input"])
def test_opposite_vectors_are_interpolated_along_the_line(by):
    """Rounding leaves some of their cosines a little above -1."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(8, 4, generator=generator)
        second = -2 * first
        merged = NuSlerp(t=0.3, by=by)([{"w": first}, {"w": second}])["w"]
        torch.testing.assert_close(merged, 0.7 * first + 0.3 * second)
