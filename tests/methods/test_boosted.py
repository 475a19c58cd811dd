"""Boosting after any method."""

import pytest
import torch

from speechbrain_merge.methods import Boosted, BoostedTSVM, TaskArithmetic


def models(dtype=torch.float64):
    """A base and three experts, with a fused projection."""
    draw = torch.Generator().manual_seed(5)

    def one():
        shapes = {"fc.weight": (9, 7), "att.in_proj_weight": (12, 4)}
        return {
            name: torch.randn(shape, generator=draw, dtype=dtype)
            for name, shape in shapes.items()
        }

    return one(), [one() for _ in range(3)]


@pytest.mark.parametrize("energy", ["l1", "l2"])
@pytest.mark.parametrize("orthogonalizer", ["svd", "newton_schulz"])
def test_after_tsv_m_it_is_the_lift_of_the_merge(energy, orthogonalizer):
    base, experts = models()
    how = {"orthogonalizer": orthogonalizer}
    merged = Boosted({"method": "tsv_m", **how}, boost=0.5, energy=energy)(
        experts, base
    )
    expected = BoostedTSVM(
        boost=0.5, energy=energy, boost_stage="merged", **how
    )(experts, base)
    for name in base:
        torch.testing.assert_close(merged[name], expected[name])


def test_weak_values_are_raised_and_the_others_stay():
    base, experts = models()
    plain = TaskArithmetic(0.3)(experts, base)["fc.weight"]
    boosted = Boosted(TaskArithmetic(0.3), boost=0.5)(experts, base)
    before, after = (
        torch.linalg.svdvals(merged - base["fc.weight"])
        for merged in (plain, boosted["fc.weight"])
    )
    floor = before[before.cumsum(0) >= 0.5 * before.sum()][0]
    torch.testing.assert_close(after, before.clamp_min(floor))
    assert before[-1] < floor


def test_one_raises_nothing():
    base, experts = models(torch.float32)
    merged = Boosted("ties", boost=1)(experts, base)
    expected = Boosted("ties", boost=1).method(experts, base)
    for name in base:
        torch.testing.assert_close(merged[name], expected[name])


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_noise_of_folded_adapters_is_not_raised(stored):
    """Three adapters of rank 2: six directions, whatever rounding adds."""
    draw = torch.Generator().manual_seed(6)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    base = normal(40, 32).to(stored)
    experts = [
        {"w": (base.double() + normal(40, 2) @ normal(2, 32)).to(stored)}
        for _ in range(3)
    ]
    models = [{"w": one["w"].float()} for one in experts]
    merged = Boosted(TaskArithmetic(0.3), boost=0.3)(
        models, {"w": base.float()}
    )["w"]
    values = torch.linalg.svdvals(merged.double() - base.double())
    assert values[5] > 0.3 * values[0]
    assert values[6] < 1e-2 * values[5]


def test_wrong_parameters():
    with pytest.raises(ValueError, match="`boost` must be a number above 0"):
        Boosted("ties", boost=0)
    with pytest.raises(ValueError, match="`energy`"):
        Boosted("ties", energy="l3")
