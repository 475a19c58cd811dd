"""Task analogies."""

import pytest
import torch

from speechbrain_merge.methods import Analogy


def draws(*names, dtype=torch.float32):
    """Models with one weight each."""
    draw = torch.Generator().manual_seed(7)
    return [
        {"layers.0.w": torch.randn(5, 4, generator=draw).to(dtype)}
        for _ in names
    ]


@pytest.mark.parametrize("scale", [1.0, 0.4, -1.0])
def test_by_hand(scale):
    base, real, synthetic = (m["layers.0.w"] for m in draws(*"abc"))
    merged = Analogy(scale)(
        [{"layers.0.w": real}, {"layers.0.w": synthetic}],
        {"layers.0.w": base},
    )["layers.0.w"]
    expected = base.double() + scale * (real.double() - synthetic.double())
    assert torch.equal(merged, expected.float())


def test_identities():
    base, one, other = draws(*"abc")
    assert torch.equal(
        Analogy()([one, one], base)["layers.0.w"], base["layers.0.w"]
    )
    torch.testing.assert_close(Analogy()([one, base], base), one)
    torch.testing.assert_close(Analogy()([one, other], other), one)


def test_two_experts_and_a_base():
    base, one, other = draws(*"abc")
    with pytest.raises(ValueError, match="at least 2 experts, got 1"):
        Analogy()([one], base)
    with pytest.raises(ValueError, match="at most 2 experts, got 3"):
        Analogy()([one, other, one], base)
    with pytest.raises(ValueError, match="one number.*not one for each"):
        Analogy(scale=[1, 2])
