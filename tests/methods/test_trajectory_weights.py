"""Weights of a training's checkpoints that equal a decay of its rate."""

import math

import pytest
import torch

from speechbrain_merge import engine
from speechbrain_merge.methods import Average, create, trajectory_weights
from speechbrain_merge.methods.trajectory_weights import DECAYS
from speechbrain_merge.weights import open_weights, write_weights


def test_by_hand():
    assert trajectory_weights("linear", 3) == [1 / 3] * 3
    # w = 3/4, 1/4
    found = trajectory_weights("cosine", 3)
    assert found == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=1e-15)
    # w = 1/2, 1 − 1/√2, 1 − √3/2
    expected = [1 / 2, math.sqrt(1 / 2) - 1 / 2]
    expected += [math.sqrt(3 / 4) - math.sqrt(1 / 2), 1 - math.sqrt(3 / 4)]
    found = trajectory_weights("inverse_square_root", 4)
    assert found == pytest.approx(expected, abs=1e-15)
    assert trajectory_weights([0.5, 0.5, 0.125], 4) == [0.5, 0, 0.375, 0.125]
    # no decay at all, and none of the learning rate from the start
    assert trajectory_weights([1, 1], 3) == [0, 0, 1]
    assert trajectory_weights([0, 0], 3) == [1, 0, 0]


@pytest.mark.parametrize("number", [1, 2, 5, 10, 37])
@pytest.mark.parametrize("shape", [*DECAYS, "given"])
def test_the_sum_of_checkpoints_is_that_of_decayed_steps(shape, number):
    generator = torch.Generator().manual_seed(number)
    start = torch.randn(50, dtype=torch.float64, generator=generator)
    steps = torch.randn(
        number - 1, 50, dtype=torch.float64, generator=generator
    )
    path = [start, *(start + steps.cumsum(0))]
    if shape == "given":
        decay = sorted(torch.rand(number - 1).tolist(), reverse=True)
        shape = decay
    else:
        decay = [DECAYS[shape](j / number) for j in range(1, number)]
    weights = trajectory_weights(shape, number)
    assert min(weights) >= 0 and math.fsum(weights) == pytest.approx(1, 1e-14)
    merged = sum(c * theta for c, theta in zip(weights, path))
    decayed = start + sum(w * step for w, step in zip(decay, steps))
    torch.testing.assert_close(merged, decayed, rtol=1e-12, atol=1e-12)


def test_a_training_with_a_constant_gradient_would_have_come_to_the_same():
    # then the gradients of the decayed training are those of the other
    gradient = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def train(rates):
        weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        path = [weight.detach().clone()]
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (weight @ gradient).backward()
            optimizer.step()
            path.append(weight.detach().clone())
        return path

    for shape, decay in DECAYS.items():
        path = train([0.25] * 5)
        merged = Average(shape)([{"w": theta} for theta in path])["w"]
        decayed = train([0.25 * decay(j / 6) for j in range(1, 6)])[-1]
        torch.testing.assert_close(merged, decayed, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("number", range(1, 13))
def test_linear_is_the_mean_to_the_bit(number, dtype):
    path = [{"w": torch.randn(999).to(dtype)} for _ in range(number)]
    assert torch.equal(Average("linear")(path)["w"], Average()(path)["w"])


def test_in_files_as_in_memory(tmp_path):
    start = torch.randn(64, 3)
    path = [{"model.w": start + 0.1 * torch.randn(64, 3)} for _ in range(4)]
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file, weights in zip(files, path):
        write_weights(file, weights, {"format": "pt"})
    method = create("average", weights="cosine")
    merged = engine.merge(method, files, None, tmp_path / "merged.safetensors")
    with open_weights(merged) as weights:
        assert torch.equal(weights["model.w"], method(path)["model.w"])
    explicit = Average(trajectory_weights("cosine", 4))
    assert torch.equal(method(path)["model.w"], explicit(path)["model.w"])


@pytest.mark.parametrize(
    "shape, number, message",
    [
        ("cosin", 4, "no decay 'cosin': expected one of linear, cosine"),
        ("cosine", 0, "`number` is 0"),
        ("cosine", 2.0, "`number` is 2.0"),
        ([0.5, 0.6], 3, "none larger than the one before"),
        ([1.5, 0.6], 3, "from 1 down to 0"),
        ([0.5, -0.1], 3, "from 1 down to 0"),
        ([0.5, math.nan], 3, "from 1 down to 0"),
        ([0.5, 0.1], 4, "2 values for 4 checkpoints: expected 3"),
    ],
)
def test_what_is_no_decay_is_refused(shape, number, message):
    with pytest.raises(ValueError, match=message):
        trajectory_weights(shape, number)


def test_an_average_names_the_decays():
    with pytest.raises(ValueError, match="no decay 'exponential'"):
        create("average", weights="exponential")
