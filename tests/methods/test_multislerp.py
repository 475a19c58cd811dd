"""Multi-SLERP against mergekit and against its closed form."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.methods import MultiSlerp

ANSWERS = Path(__file__).parent / "references" / "spherical.pt"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "answer, parameters",
    [
        ("multislerp", {}),
        ("multislerp_weighted", {"weights": [0.5, 1.0, 2.0, 0.25]}),
        (
            "multislerp_base",
            {"weights": [0.5, 1.0, 2.0, 0.25], "reference": "base"},
        ),
    ],
)
def test_agrees_with_mergekit(dtype, answer, parameters):
    stored = torch.load(ANSWERS)[dtype]
    merged = MultiSlerp(**parameters)(stored["experts"], stored["base"])
    for name, expected in stored[answer].items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCE[dtype], msg=name
        )


def test_tangent_plane_steps_lead_nowhere():
    """As published, step by step, it ends where the closed form is."""
    experts = [torch.randn(30, dtype=torch.float64) for _ in range(4)]
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    lengths = torch.stack([expert.norm() for expert in experts])
    units = torch.stack(experts) / lengths[:, None]
    centre = shares @ units
    centre = centre / centre.norm()
    tangents = units - (units @ centre)[:, None] * centre
    assert (shares @ tangents).norm() < 1e-15
    torch.testing.assert_close(
        MultiSlerp(shares.tolist())([{"w": expert} for expert in experts])["w"],
        (shares @ lengths) * centre,
        rtol=0,
        atol=1e-13,
    )


def test_experts_that_cancel_have_their_plain_mean():
    experts = [
        {"w": torch.tensor([1.0, 0.0])},
        {"w": torch.tensor([-0.5, 0.75**0.5])},
        {"w": torch.tensor([-0.5, -(0.75**0.5)])},
    ]
    merged = MultiSlerp()(experts)["w"]
    torch.testing.assert_close(merged, torch.zeros(2), rtol=0, atol=1e-7)


def test_expert_that_did_not_move_shortens_only():
    base = {"w": torch.tensor([1.0, 1.0])}
    experts = [{"w": torch.tensor([3.0, 1.0])}, base]
    merged = MultiSlerp(reference="base")(experts, base)
    assert merged["w"].tolist() == [2.0, 1.0]


def test_wrong_parameters():
    with pytest.raises(ValueError, match="'zero', 'base'"):
        MultiSlerp(reference="origin")
    with pytest.raises(ValueError, match="must be finite"):
        MultiSlerp(weights=[1.0, float("nan")])
    with pytest.raises(ValueError, match="give `base`"):
        MultiSlerp(reference="base")([{"w": torch.ones(1)}])
