"""The Karcher mean against mergekit and against its definition."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import Karcher, MultiSlerp

ANSWERS = Path(__file__).parent / "references" / "spherical.pt"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "answer, parameters",
    [
        ("karcher", {"max_iterations": 10, "tolerance": 1e-5}),
        ("karcher_long", {"max_iterations": 200, "tolerance": 1e-7}),
        (
            "karcher_weighted",
            {
                "weights": [0.5, 1.0, 2.0, 0.25],
                "max_iterations": 200,
                "tolerance": 1e-7,
            },
        ),
    ],
)
def test_agrees_with_mergekit(dtype, answer, parameters):
    stored = torch.load(ANSWERS)[dtype]
    merged = Karcher(**parameters)(stored["experts"])
    for name, expected in stored[answer].items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCE[dtype], msg=name
        )


def logs_at(point, experts):
    """The arcs from a point to each expert's direction."""
    point = point.double().flatten()
    point = point / point.norm()
    arcs = []
    for expert in experts:
        other = expert.double().flatten()
        other = other / other.norm()
        angle = torch.acos(torch.clamp(point @ other, -1, 1))
        arcs.append(
            angle / torch.sin(angle) * (other - (point @ other) * point)
        )
    return torch.stack(arcs)


def test_arcs_to_the_experts_sum_to_zero():
    experts = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)]
    shares = [0.5, 0.3, 0.2]
    merged = Karcher(shares, max_iterations=500, tolerance=1e-8)(
        [{"w": expert} for expert in experts]
    )["w"]
    arcs = logs_at(merged, experts)
    weighted = (torch.tensor(shares, dtype=torch.float64)[:, None] * arcs).sum(
        0
    )
    assert weighted.norm() < 1e-7
    assert arcs.norm(dim=1).min() > 0.1


def test_length_is_the_mean_length():
    experts = [torch.randn(30), 5 * torch.randn(30), torch.randn(30)]
    merged = Karcher(weights=[1, 2, 1])([{"w": each} for each in experts])["w"]
    lengths = [float(expert.norm()) for expert in experts]
    expected = (lengths[0] + 2 * lengths[1] + lengths[2]) / 4
    assert float(merged.norm()) == pytest.approx(expected, rel=1e-6)


def test_two_experts_meet_half_way_along_the_arc():
    first, second = torch.randn(20), torch.randn(20)
    second *= first.norm() / second.norm()
    merged = Karcher()([{"w": first}, {"w": second}])["w"]
    middle = first + second
    torch.testing.assert_close(merged, middle / middle.norm() * first.norm())


def test_no_step_is_multi_slerp():
    experts = [{"w": torch.randn(6, 4)} for _ in range(3)]
    weights = [1, 2, 5]
    torch.testing.assert_close(
        Karcher(weights, max_iterations=0)(experts)["w"],
        MultiSlerp(weights)(experts)["w"],
        rtol=0,
        atol=0,
    )


def test_turning_the_experts_turns_the_mean():
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    experts = [torch.randn(12, dtype=torch.float64) for _ in range(3)]
    method = Karcher(max_iterations=300, tolerance=1e-8)
    merged = method([{"w": expert} for expert in experts])["w"]
    turned = method([{"w": turn @ expert} for expert in experts])["w"]
    torch.testing.assert_close(turned, turn @ merged, rtol=0, atol=1e-7)


def test_zeros_have_no_direction_but_a_length():
    experts = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.zeros(2)}]
    assert Karcher()(experts)["w"].tolist() == [1.0, 0.0]
    zeros = [{"w": torch.zeros(2)}] * 2
    assert Karcher()(zeros)["w"].tolist() == [0.0, 0.0]


def test_opposite_experts_have_their_plain_mean():
    experts = [
        {"w": torch.tensor([3.0, 0.0])},
        {"w": torch.tensor([-1.0, 0.0])},
    ]
    assert Karcher()(experts)["w"].tolist() == [1.0, 0.0]


def test_one_of_three_opposite():
    """Two of a kind decide the direction; the third pulls nowhere."""
    experts = [{"w": torch.tensor([value, 0.0])} for value in (1.0, 2.0, -3.0)]
    torch.testing.assert_close(
        Karcher()(experts)["w"], torch.tensor([2.0, 0.0])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_large_values(dtype):
    """Squares of these overflow float16; sums are in float64."""
    expert = {"w": torch.full((100,), 500.0, dtype=dtype)}
    merged = Karcher()([expert, expert])["w"]
    assert merged.dtype == dtype and torch.equal(merged, expert["w"])


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"max_iterations": -1}, "max_iterations"),
        ({"max_iterations": 2.5}, "max_iterations"),
        ({"tolerance": 0}, "above 0"),
        ({"weights": "half"}, "weights"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Karcher(**parameters)


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1, 2, 3]])
def test_wrong_weights_stop_before_the_merge(weights):
    experts = [{"w": torch.ones(2)}, {"w": torch.ones(2)}]
    with pytest.raises(ValueError, match="negative|coefficients"):
        Karcher(weights)(experts)
