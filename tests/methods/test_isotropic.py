"""Iso-C and Iso-CTS against FusionBench, and their equal singular values."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import IsoC, IsoCTS
from speechbrain_merge.methods.isotropic import shared_out

ANSWERS = Path(__file__).parent / "references" / "spectral.pt"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "answer, method",
    [
        ("iso_c", IsoC(exclude=[])),
        ("iso_c_excluded", IsoC()),
        ("iso_cts", IsoCTS(exclude=[])),
        ("iso_cts_half", IsoCTS(common_fraction=0.5, exclude=[])),
    ],
)
def test_agrees_with_fusionbench(dtype, answer, method):
    stored = torch.load(ANSWERS)[dtype]
    vectors = stored["vectors"]
    base = {name: torch.zeros_like(t) for name, t in vectors[0].items()}
    merged = method(vectors, base)
    for name, expected in stored[answer].items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCE[dtype], msg=name
        )


def experts_of(number, shape):
    """Experts, and a base of zeros."""
    experts = [
        {"w": torch.randn(shape, dtype=torch.float64)} for _ in range(number)
    ]
    return experts, {"w": torch.zeros(shape, dtype=torch.float64)}


@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (10, 10)])
@pytest.mark.parametrize(
    "method", [IsoC(), IsoCTS(), IsoCTS(common_fraction=0)]
)
def test_all_singular_values_are_equal(method, shape):
    experts, base = experts_of(3, shape)
    values = torch.linalg.svdvals(method(experts, base)["w"])
    torch.testing.assert_close(values, values.mean().expand_as(values))


def test_they_are_the_mean_of_those_of_the_sum():
    experts, base = experts_of(3, (8, 6))
    values = torch.linalg.svdvals(IsoC(scale=2)(experts, base)["w"])
    total = sum(expert["w"] for expert in experts)
    assert float(values[0]) == pytest.approx(
        2 * float(torch.linalg.svdvals(total).mean())
    )


def test_all_common_is_iso_c():
    experts, base = experts_of(3, (8, 6))
    torch.testing.assert_close(
        IsoCTS(common_fraction=1)(experts, base)["w"],
        IsoC()(experts, base)["w"],
    )


def test_direction_of_one_expert_survives_among_many():
    """Four experts agree; the fifth moved one more direction, where the sum
    of all is weak."""
    experts, base = experts_of(1, (10, 10))
    agreed = experts[0]["w"].clone()
    agreed[9], agreed[:, 9] = 0, 0
    values = torch.linalg.svdvals(agreed)
    alone = torch.zeros(10, 10, dtype=torch.float64)
    alone[9, 9] = 1.1 * values[5]
    assert alone[9, 9] < 5 * values[4]  # not among the five common
    many = [{"w": agreed}] * 4 + [{"w": agreed + alone}]
    merged = IsoCTS(common_fraction=0.5)(many, base)["w"]
    assert merged[9, 9] > 0.9 * torch.linalg.svdvals(merged)[0]


def test_directions_of_zero_stay_zero():
    thin = torch.randn(8, 2, dtype=torch.float64)
    thin = thin @ torch.randn(2, 8, dtype=torch.float64)
    base = {"w": torch.zeros(8, 8, dtype=torch.float64)}
    values = torch.linalg.svdvals(IsoC()([{"w": thin}], base)["w"])
    expected = torch.linalg.svdvals(thin).sum() / 8
    torch.testing.assert_close(values[:2], expected.expand(2))
    assert values[2:].max() < 1e-12
    for number in (1, 2, 5):
        merged = IsoCTS()([{"w": thin}] * number, base)["w"]
        assert torch.isfinite(merged).all()


def test_experts_that_all_stood_still():
    base = {"w": torch.randn(4, 5)}
    for method in (IsoC(), IsoCTS(), IsoCTS(orthogonalizer="newton_schulz")):
        assert torch.equal(method([base, base], base)["w"], base["w"])


def test_experts_that_cancel():
    expert, base = torch.randn(4, 5), torch.zeros(4, 5)
    pair = [{"w": expert}, {"w": -expert}]
    for method in (IsoC(), IsoCTS()):
        merged = method(pair, {"w": base})["w"]
        assert torch.isfinite(merged).all()
    assert torch.equal(IsoC()(pair, {"w": base})["w"], base)


@pytest.mark.parametrize("number", [1, 3, 4, 9, 20])
@pytest.mark.parametrize("fraction", [0, 0.3, 0.8, 1])
def test_directions_are_shared_out_evenly(number, fraction):
    for rank in (1, 2, 7, 64):
        of_each = shared_out(rank, number, fraction)
        assert 0 <= of_each * number <= rank
        experts, base = experts_of(number, (rank, rank + 1))
        merged = IsoCTS(common_fraction=fraction)(experts, base)["w"]
        assert torch.isfinite(merged).all()


def test_wrong_parameters():
    with pytest.raises(ValueError, match="at least 0 and at most 1"):
        IsoCTS(common_fraction=1.2)
    with pytest.raises(ValueError, match="at least 0 and at most 1"):
        IsoCTS(common_fraction=-0.1)
    with pytest.raises(ValueError, match="'svd', 'eigh', 'newton_schulz'"):
        IsoCTS(orthogonalizer="procrustes")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (48, 96)])
def test_changes_of_low_rank_have_no_directions_of_noise(shape, dtype):
    """Folded LoRA: all singular values of what is added are one."""
    rows, columns = shape
    rank, number = 3, 3
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)

        def draw(*size, generator=generator):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        base = draw(rows, columns) / columns**0.5
        changes = [
            draw(rows, rank) @ draw(rank, columns) / columns**0.5
            for _ in range(number)
        ]
        experts = [{"w": (base + each).to(dtype)} for each in changes]
        merged = IsoCTS()(experts, {"w": base.to(dtype)})["w"]
        values = torch.linalg.svdvals(merged.double() - base.to(dtype))
        strongest = values[: rank * number]
        assert strongest[-1] > 0.99 * strongest[0], values
        assert values[rank * number] < 1e-3 * strongest[0], values
