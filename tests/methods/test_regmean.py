"""RegMean: least squares, also where the data do not span the inputs."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import RegMean
from speechbrain_merge.methods.regmean import solve_symmetric

ANSWERS = Path(__file__).parent / "references" / "data_driven.pt"


def normal(*shape, seed=0):
    """Reproducible numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layers(number, out=4, size=6):
    """Linear layers of some experts."""
    return [
        {"fc.weight": normal(out, size, seed=10 + i)} for i in range(number)
    ]


@pytest.mark.parametrize(
    "dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize("off_diagonal", [1.0, 0.9, 0.5])
def test_as_fusion_bench(off_diagonal, dtype, limit):
    """fusion_bench.method.regmean, 0.2.33, where Grams have full rank."""
    known = torch.load(ANSWERS)[str(dtype)]
    grams = [{"fc.weight": gram["fc"]} for gram in known["grams"]]
    merged = RegMean(grams, off_diagonal)(known["experts"])
    for name, answer in known["regmean"][off_diagonal].items():
        assert merged[name].dtype == dtype
        assert (merged[name] - answer).abs().max() < limit, name


def test_identity_grams_give_the_mean():
    experts = layers(3)
    grams = [{"fc.weight": torch.eye(6)}] * 3
    merged = RegMean(grams)(experts)["fc.weight"]
    average = sum(expert["fc.weight"] for expert in experts) / 3
    assert torch.allclose(merged, average, rtol=0, atol=1e-14)


def test_the_joint_least_squares_solution_is_recovered():
    """Each expert solves its own regression; merged, they solve both."""
    inputs = [normal(40, 6, seed=i) * (1 + i) for i in range(2)]
    targets = [normal(40, 4, seed=20 + i) for i in range(2)]
    experts, grams = [], []
    for x, y in zip(inputs, targets):
        experts.append({"fc.weight": torch.linalg.lstsq(x, y).solution.T})
        grams.append({"fc.weight": x.T @ x / len(x)})
    merged = RegMean(grams, off_diagonal=1)(experts)["fc.weight"]
    joint = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution
    assert torch.allclose(merged, joint.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_grams_without_full_rank(scale):
    """Fewer frames than inputs, and an input that is always zero."""
    inputs = [normal(2, 6, seed=i) * scale for i in range(2)]
    for x in inputs:
        x[:, 5] = 0
    experts = layers(2)
    grams = [{"fc.weight": x.T @ x / 2} for x in inputs]
    merged = RegMean(grams, off_diagonal=1)(experts)["fc.weight"]
    assert torch.isfinite(merged).all()
    # the normal equations hold: outputs are as close as can be
    left = sum(g["fc.weight"] for g in grams) @ merged.T
    right = sum(
        g["fc.weight"] @ e["fc.weight"].T for g, e in zip(grams, experts)
    )
    assert (left - right).abs().max() < 1e-9 * right.abs().max()
    # and what the data say nothing of stays at the mean
    average = (experts[0]["fc.weight"] + experts[1]["fc.weight"]) / 2
    assert torch.allclose(merged[:, 5], average[:, 5], rtol=0, atol=1e-12)


def test_no_data_at_all_is_the_mean():
    experts = layers(2)
    merged = RegMean([{"fc.weight": torch.zeros(6, 6)}] * 2)(experts)
    average = (experts[0]["fc.weight"] + experts[1]["fc.weight"]) / 2
    assert torch.equal(merged["fc.weight"], average)


def test_inputs_of_very_different_size():
    """A small input is no missing one."""
    sizes = torch.logspace(-6, 6, 6, dtype=torch.float64)
    inputs = [normal(40, 6, seed=i) * sizes for i in range(2)]
    target = normal(6, 4, seed=9)
    grams = [{"fc.weight": x.T @ x / 40} for x in inputs]
    merged = RegMean(grams, off_diagonal=1)([{"fc.weight": target.T}] * 2)
    assert torch.allclose(merged["fc.weight"], target.T, rtol=1e-12, atol=0)
    other = [{"fc.weight": target.T}, {"fc.weight": target.T + 1}]
    left = sum(g["fc.weight"] for g in grams)
    merged = RegMean(grams, off_diagonal=1)(other)["fc.weight"]
    right = sum(g["fc.weight"] @ e["fc.weight"].T for g, e in zip(grams, other))
    residual = (left @ merged.T - right) / sizes[:, None]
    assert residual.abs().max() < 1e-9 * (right / sizes[:, None]).abs().max()


def test_solution_of_a_singular_system_is_the_pseudoinverse():
    x = normal(3, 6)
    matrix = x.T @ x
    # of equal sizes, so that "measured by size" says the same
    sizes = matrix.diagonal().rsqrt()
    matrix = matrix * sizes[:, None] * sizes
    right = matrix @ normal(6, 2, seed=1)
    expected = torch.linalg.pinv(matrix) @ right
    assert torch.allclose(solve_symmetric(matrix, right), expected, atol=1e-9)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RegMean(), "needs statistics"),
        (lambda: RegMean(off_diagonal=2), "`off_diagonal` must be"),
        (
            lambda: RegMean([{"fc.weight": torch.eye(4)}] * 2),
            r"expected \[in, in\]",
        ),
        (
            lambda: RegMean([{"fc.weight": -torch.eye(6)}] * 2),
            "negative on its diagonal",
        ),
    ],
)
def test_wrong_use(make, message):
    with pytest.raises(ValueError, match=message):
        make()(layers(2))
