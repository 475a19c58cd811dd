"""TSV-M against FusionBench and against what it is to do."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import TSVM

ANSWERS = Path(__file__).parent / "references" / "spectral.pt"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def zeros_like(model):
    """A base of zeros: task vectors are the experts themselves."""
    return {name: torch.zeros_like(tensor) for name, tensor in model.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "answer, parameters",
    [
        ("tsv_m", {"exclude": []}),
        ("tsv_m_excluded", {}),
        ("tsv_m_eigh", {"exclude": [], "orthogonalizer": "eigh"}),
        ("tsv_m_lossless", {"exclude": [], "rank_fraction": 1}),
    ],
)
def test_agrees_with_fusionbench(dtype, answer, parameters):
    stored = torch.load(ANSWERS)[dtype]
    if answer not in stored:
        pytest.skip("the reference computes this in float32 only")
    vectors = stored["vectors"]
    merged = TSVM(**parameters)(vectors, zeros_like(vectors[0]))
    for name, expected in stored[answer].items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCE[dtype], msg=name
        )


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7), (1, 5)])
def test_one_expert_of_full_rank_is_given_back_scaled(shape):
    base = torch.randn(shape, dtype=torch.float64)
    expert = torch.randn(shape, dtype=torch.float64)
    merged = TSVM(scale=0.4, rank_fraction=1)([{"w": expert}], {"w": base})["w"]
    torch.testing.assert_close(
        merged, base + 0.4 * (expert - base), rtol=0, atol=1e-13
    )


def test_orthogonal_experts_keep_their_own():
    """Experts on different directions do not disturb each other."""
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    strength = torch.tensor(
        [[5, 4, 0, 0, 0, 0, 0, 0], [0, 0, 3, 2, 0, 0, 0, 0]]
    )
    experts = [{"w": (basis * each) @ basis.T} for each in strength.double()]
    merged = TSVM(rank_fraction=0.25)(experts, zeros_like(experts[0]))["w"]
    torch.testing.assert_close(merged, experts[0]["w"] + experts[1]["w"])


def test_more_experts_than_rows():
    """The reference keeps int(r/T) = 0 directions, and so nothing at all."""
    experts = [{"w": torch.randn(2, 6)} for _ in range(3)]
    merged = TSVM()(experts, zeros_like(experts[0]))["w"]
    assert torch.linalg.matrix_rank(merged) == 2
    assert merged.norm() > 0.5 * experts[0]["w"].norm()


def test_equal_experts_give_their_strongest_directions():
    """No noise of LAPACK fills the place of the second expert."""
    expert = {"w": torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5]))}
    merged = TSVM()([expert, expert], zeros_like(expert))["w"]
    expected = torch.diag(torch.tensor([4.0, 2.0, 0.0, 0.0]))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("orthogonalizer", ["svd", "newton_schulz"])
def test_expert_that_did_not_move_changes_nothing_but_the_rank(orthogonalizer):
    experts = [{"w": torch.randn(6, 6)} for _ in range(2)]
    still = zeros_like(experts[0])
    method = TSVM(rank_fraction=0.25, orthogonalizer=orthogonalizer)
    torch.testing.assert_close(
        method([*experts, still], still)["w"], method(experts, still)["w"]
    )


def test_experts_that_all_stood_still():
    base = {"w": torch.randn(4, 5)}
    for name in ("svd", "eigh", "newton_schulz"):
        merged = TSVM(orthogonalizer=name)([base, base], base)["w"]
        assert torch.equal(merged, base["w"])


def test_expert_of_low_rank_beside_a_full_one():
    """Fewer directions than it may keep: the others are not made up."""
    thin = torch.randn(8, 1) @ torch.randn(1, 8)
    experts = [{"w": thin}, {"w": torch.randn(8, 8)}]
    merged = TSVM()(experts, zeros_like(experts[0]))["w"]
    assert torch.isfinite(merged).all()
    assert torch.linalg.matrix_rank(merged) == 5


def test_noise_of_storage_is_not_zero():
    """float32 rounding of a rank-2 product: small directions, but there."""
    low = torch.randn(32, 2) @ torch.randn(2, 24)
    base = {"w": torch.randn(32, 24)}
    experts = [{"w": base["w"] + low}, {"w": base["w"] + torch.randn(32, 24)}]
    merged = TSVM()(experts, base)["w"]
    assert torch.isfinite(merged).all()


@pytest.mark.parametrize("fraction, rank", [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_rank_fraction(fraction, rank):
    expert = {"w": torch.randn(10, 12)}
    method = TSVM(rank_fraction=fraction)
    merged = method([expert], zeros_like(expert))["w"]
    assert torch.linalg.matrix_rank(merged) == rank


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"rank_fraction": 0}, "above 0 and at most 1"),
        ({"rank_fraction": 1.5}, "above 0 and at most 1"),
        ({"orthogonalizer": "qr"}, "'svd', 'eigh', 'newton_schulz'"),
        ({"steps": 0}, "at least 1"),
        ({"polynomials": "cubic"}, "quintic, muon, classical"),
        ({"polynomials": [[1, 2]]}, r"\[a, b, c\]"),
        ({"polynomials": [[1, 2, "3"]]}, "finite number"),
        ({"scale": float("inf")}, "finite"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        TSVM(**parameters)
