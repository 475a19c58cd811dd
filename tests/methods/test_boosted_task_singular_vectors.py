"""BoostedTSV-M: which values are raised, and what stays as in TSV-M."""

import pytest
import torch

from speechbrain_merge.methods import TSVM, BoostedTSVM
from speechbrain_merge.methods.boosted_task_singular_vectors import floor_of


def experts_of(number=3, shape=(24, 16)):
    """Experts, and a base of zeros."""
    experts = [
        {"w": torch.randn(shape, dtype=torch.float64)} for _ in range(number)
    ]
    return experts, {"w": torch.zeros(shape, dtype=torch.float64)}


def diagonal(*values):
    """A task vector with these singular values."""
    return {"w": torch.diag(torch.tensor(values, dtype=torch.float64))}


@pytest.mark.parametrize("orthogonalizer", ["svd", "eigh", "newton_schulz"])
@pytest.mark.parametrize("stage", ["expert", "merged"])
def test_boost_of_one_is_tsv_m(orthogonalizer, stage):
    experts, base = experts_of()
    same = {"orthogonalizer": orthogonalizer, "scale": 0.7}
    boosted = BoostedTSVM(boost=1, boost_stage=stage, **same)(experts, base)
    assert torch.equal(boosted["w"], TSVM(**same)(experts, base)["w"])


def test_default_is_the_papers():
    method = BoostedTSVM()
    assert method.boost == 0.3 and method.orthogonalizer == "newton_schulz"
    assert method.steps == 5 and method.boost_stage == "expert"
    experts, base = experts_of()
    assert not torch.allclose(
        method(experts, base)["w"],
        TSVM(orthogonalizer="newton_schulz")(experts, base)["w"],
    )


@pytest.mark.parametrize(
    "boost, energy, floor",
    [
        # sums: 5 9 12 14 15
        (0.3, "l1", 5.0),
        (0.34, "l1", 4.0),
        (0.6, "l1", 4.0),
        (0.61, "l1", 3.0),
        (0.99, "l1", 1.0),
        (1, "l1", 0.0),
        (1e-6, "l1", 5.0),
        # sums: 25 41 50 54 55
        (0.3, "l2", 5.0),
        (0.6, "l2", 4.0),
        (0.9, "l2", 3.0),
    ],
)
def test_what_values_are_raised_to(boost, energy, floor):
    spectrum = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert floor_of(spectrum, boost, energy) == floor


def test_exponential_spectrum():
    """papers.md 1.3: 12 of 16 kept values are raised; more rank, more gain."""
    spectrum = torch.exp(-torch.arange(128, dtype=torch.float64) / 8.5)
    floor = floor_of(spectrum, 0.3, "l1")
    assert floor == float(spectrum[3])
    kept = spectrum[:16]
    assert int((kept < floor).sum()) == 12
    raised = kept.clamp_min(floor).norm() / kept.norm()
    assert float(raised) == pytest.approx(1.377, abs=1e-3)
    raised = spectrum.clamp_min(floor).norm() / spectrum.norm()
    assert float(raised) == pytest.approx(3.667, abs=1e-3)
    # values near one per cent of the energy: all become the strongest
    assert floor_of(spectrum, 0.01, "l1") == 1.0
    # half of the squares is about as far as a third of the values
    assert floor_of(spectrum, 0.5, "l2") == float(spectrum[2])


def test_singular_values_of_one_boosted_expert():
    expert = {"w": torch.randn(12, 9, dtype=torch.float64)}
    base = {"w": torch.zeros(12, 9, dtype=torch.float64)}
    merged = BoostedTSVM(rank_fraction=1, orthogonalizer="svd")([expert], base)
    values = torch.linalg.svdvals(expert["w"])
    raised = values.clamp_min(floor_of(values, 0.3, "l1"))
    torch.testing.assert_close(torch.linalg.svdvals(merged["w"]), raised)
    left, _, right = torch.linalg.svd(expert["w"], full_matrices=False)
    torch.testing.assert_close(merged["w"], (left * raised) @ right)


def test_each_expert_is_boosted_by_its_own_values():
    experts = [diagonal(8, 1, 0, 0, 0, 0), diagonal(0, 0, 2, 1, 0, 0)]
    base = {"w": torch.zeros(6, 6, dtype=torch.float64)}
    merged = BoostedTSVM(boost=0.5, orthogonalizer="svd")(experts, base)["w"]
    expected = diagonal(8, 8, 2, 2, 0, 0)["w"]
    torch.testing.assert_close(merged, expected)


def test_boosting_what_was_merged_sees_all_experts():
    """Values 8 2 1 1: half of their sum is reached at 8, which all become."""
    experts = [diagonal(8, 1, 0, 0, 0, 0), diagonal(0, 0, 2, 1, 0, 0)]
    base = {"w": torch.zeros(6, 6, dtype=torch.float64)}
    method = BoostedTSVM(boost=0.5, boost_stage="merged", orthogonalizer="svd")
    expected = diagonal(8, 8, 8, 8, 0, 0)["w"]
    torch.testing.assert_close(method(experts, base)["w"], expected)


def test_directions_of_zero_stay_zero():
    thin = torch.randn(8, 2, dtype=torch.float64)
    thin = thin @ torch.randn(2, 8, dtype=torch.float64)
    base = {"w": torch.zeros(8, 8, dtype=torch.float64)}
    for stage in ("expert", "merged"):
        method = BoostedTSVM(
            boost=0.01,
            boost_stage=stage,
            rank_fraction=1,
            orthogonalizer="svd",
        )
        values = torch.linalg.svdvals(method([{"w": thin}], base)["w"])
        strongest = torch.linalg.svdvals(thin)[0]
        torch.testing.assert_close(values[:2], strongest.expand(2))
        assert values[2:].max() < 1e-10


def test_threshold_over_the_kept_values():
    expert = diagonal(4, 3, 2, 1)
    base = {"w": torch.zeros(4, 4, dtype=torch.float64)}
    common = {"boost": 0.9, "rank_fraction": 0.75, "orthogonalizer": "svd"}
    # of 10: 9 at the third; of 9: 8.1, also at the third
    assert (
        BoostedTSVM(boost_over="all", **common)([expert], base)["w"][2, 2] == 2
    )
    common["boost"] = 0.75
    # of 10: 7.5 at the third value; of 9: 6.75 at the second
    over_all = BoostedTSVM(boost_over="all", **common)([expert], base)["w"]
    over_kept = BoostedTSVM(boost_over="kept", **common)([expert], base)["w"]
    torch.testing.assert_close(over_all, diagonal(4, 3, 2, 0)["w"])
    torch.testing.assert_close(over_kept, diagonal(4, 3, 3, 0)["w"])


def test_smaller_boost_raises_more():
    experts, base = experts_of(shape=(20, 20))
    strength = [
        float(
            torch.linalg.svdvals(
                BoostedTSVM(boost=boost, orthogonalizer="svd")(experts, base)[
                    "w"
                ]
            ).sum()
        )
        for boost in (1, 0.6, 0.3, 0.1, 0.01)
    ]
    assert strength == sorted(strength)
    assert strength[-1] > 1.2 * strength[0]


def test_newton_schulz_damps_what_experts_share():
    """Two experts with nearly one direction: an exact factor splits it."""
    first = torch.zeros(16, 16, dtype=torch.float64)
    first[0, 0] = 1.0
    second = first.clone()
    second[1, 0] = second[0, 1] = 1e-4
    experts = [{"w": first}, {"w": second}]
    base = {"w": torch.zeros(16, 16, dtype=torch.float64)}
    common = {"rank_fraction": 1 / 16, "boost": 1}
    exact = BoostedTSVM(orthogonalizer="svd", **common)(experts, base)["w"]
    damped = BoostedTSVM(**common)(experts, base)["w"]
    # exact: both directions with strength 1, however near they were
    assert torch.linalg.svdvals(exact)[1] > 0.99
    assert torch.linalg.svdvals(damped)[1] < 0.01
    assert 0.5 < torch.linalg.svdvals(damped)[0] < 1.5


def test_experts_that_all_stood_still():
    base = {"w": torch.randn(4, 5)}
    for stage in ("expert", "merged"):
        merged = BoostedTSVM(boost_stage=stage)([base, base], base)["w"]
        assert torch.equal(merged, base["w"])


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"boost": 0}, "above 0 and at most 1"),
        ({"boost": 1.1}, "above 0 and at most 1"),
        ({"boost_stage": "task"}, "'expert', 'merged'"),
        ({"energy": "l3"}, "'l1', 'l2'"),
        ({"boost_over": "some"}, "'all', 'kept'"),
        ({"orthogonalizer": "muon"}, "newton_schulz"),
        ({"steps": 2.5}, "whole number"),
        ({"rank_fraction": 2}, "at most 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        BoostedTSVM(**parameters)
