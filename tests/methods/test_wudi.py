"""WUDI takes the reference's steps."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import WUDI

ANSWERS = Path(__file__).parent / "references" / "spectral.pt"


@pytest.mark.parametrize(
    "which, tolerance",
    [
        (torch.float32, 1e-6),
        # task vectors of 1e-4 and steps of 1e-5
        ("small", 1e-8),
        (torch.float64, 1e-10),
    ],
)
def test_agrees_with_fusionbench(which, tolerance):
    stored = torch.load(ANSWERS)[which]
    vectors = stored["vectors"]
    base = {name: torch.zeros_like(t) for name, t in vectors[0].items()}
    merged = WUDI(steps=60, exclude=[])(vectors, base)
    moved = 0.0
    for name, expected in stored["wudi"].items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=tolerance, msg=name
        )
        if name == "square.weight":
            total = sum(vector[name] for vector in vectors)
            moved = float((expected - total).abs().max())
    assert moved > 100 * tolerance


def loss(merged, vectors):
    """The interference that WUDI is to reduce."""
    return float(
        sum(
            ((merged - vector) @ vector.T).square().sum()
            / vector.square().sum()
            for vector in vectors
        )
    )


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (3, 40)])
def test_steps_by_autograd(shape):
    """The gradient in closed form is that of the loss; also for 3 x 40,
    where there are more inputs than rows of all experts."""
    vectors = [1e-3 * torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    merged = torch.nn.Parameter(sum(vectors))
    optimizer = torch.optim.Adam([merged], lr=2e-5)
    for _ in range(30):
        optimizer.zero_grad()
        total = 0
        for vector in vectors:
            product = (merged - vector) @ vector.T
            total = total + product.square().sum() / vector.square().sum()
        total.backward()
        optimizer.step()
    ours = WUDI(steps=30, learning_rate=2e-5)(
        [{"w": vector} for vector in vectors],
        {"w": torch.zeros(shape, dtype=torch.float64)},
    )["w"]
    torch.testing.assert_close(ours, merged.detach(), rtol=0, atol=1e-12)


def test_interference_falls():
    vectors = [1e-3 * torch.randn(10, 8) for _ in range(3)]
    losses = [
        loss(
            WUDI(steps=steps)(
                [{"w": vector} for vector in vectors], {"w": torch.zeros(10, 8)}
            )["w"],
            vectors,
        )
        for steps in (0, 10, 100, 300)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


def test_no_steps_is_the_sum():
    base = {"w": torch.randn(3, 4)}
    experts = [{"w": torch.randn(3, 4)} for _ in range(2)]
    merged = WUDI(steps=0)(experts, base)["w"]
    torch.testing.assert_close(
        merged, experts[0]["w"] + experts[1]["w"] - base["w"]
    )


def test_one_expert_is_given_back():
    """No gradient, and none made up by rounding."""
    base = {"w": torch.randn(6, 7)}
    expert = {"w": base["w"] + 0.01 * torch.randn(6, 7)}
    assert torch.equal(WUDI()([expert], base)["w"], expert["w"])


def test_expert_that_did_not_move_is_left_out():
    base = {"w": torch.randn(6, 7)}
    experts = [{"w": base["w"] + 0.01 * torch.randn(6, 7)} for _ in range(2)]
    method = WUDI(steps=20)
    merged = method([*experts, base], base)["w"]
    assert torch.equal(merged, method(experts, base)["w"])
    assert torch.equal(method([base, base], base)["w"], base["w"])


def test_rows_in_blocks_are_rows():
    """300 rows are two blocks; alone, each row takes the same way."""
    base = {"w": torch.zeros(300, 12, dtype=torch.float64)}
    experts = [
        {"w": 1e-3 * torch.randn(300, 12, dtype=torch.float64)}
        for _ in range(2)
    ]
    merged = WUDI(steps=15)(experts, base)["w"]
    grams = [expert["w"].T @ expert["w"] for expert in experts]
    sizes = [expert["w"].square().sum() for expert in experts]
    start = experts[0]["w"] + experts[1]["w"]
    descended = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([descended], lr=1e-5)
    for _ in range(15):
        descended.grad = sum(
            2 * (descended.detach() - expert["w"]) @ gram / size
            for expert, gram, size in zip(experts, grams, sizes)
        )
        optimizer.step()
    torch.testing.assert_close(merged, descended.detach(), rtol=0, atol=1e-12)


def test_wrong_parameters():
    with pytest.raises(ValueError, match="whole number of at least 0"):
        WUDI(steps=-1)
    with pytest.raises(ValueError, match="above 0"):
        WUDI(learning_rate=0)
