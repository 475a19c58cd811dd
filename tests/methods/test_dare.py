"""DARE."""

import pytest
import torch

from speechbrain_merge.methods import DARE, TIES, TaskArithmetic
from speechbrain_merge.methods.randomness import uniform

NAMES = {"fc.weight": (40, 50), "fc.bias": (50,), "conv.weight": (4, 5, 3)}


def models(number=3, seed=0):
    """A base and experts."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        name: torch.randn(shape, generator=generator)
        for name, shape in NAMES.items()
    }
    experts = [
        {
            name: tensor + torch.randn(tensor.shape, generator=generator)
            for name, tensor in base.items()
        }
        for _ in range(number)
    ]
    return base, experts


def dropped(base, experts, rate, seed, rescale=True):
    """Task vectors with entries dropped, by the masks that are documented."""
    vectors = []
    for index, expert in enumerate(experts):
        vector = {}
        for name, tensor in expert.items():
            draw = uniform(seed, index, name, slice(0, tensor.numel()))
            kept = (draw >= rate).reshape(tensor.shape)
            vector[name] = (tensor - base[name]) * kept
            if rescale:
                vector[name] /= 1 - rate
        vectors.append(vector)
    return vectors


@pytest.mark.parametrize("rescale", [True, False])
def test_linear_adds_what_is_left(rescale):
    base, experts = models()
    method = DARE(drop_rate=0.7, rescale=rescale, scale=0.5, seed=3)
    merged = method(experts, base)
    vectors = dropped(base, experts, 0.7, 3, rescale)
    for name, tensor in merged.items():
        total = sum(vector[name] for vector in vectors)
        torch.testing.assert_close(tensor, base[name] + 0.5 * total)


def test_with_votes_it_is_ties_of_what_is_left():
    base, experts = models()
    vectors = dropped(base, experts, 0.5, 3)
    sparse = [
        {name: base[name] + vector[name] for name in base} for vector in vectors
    ]
    for density in (1.0, 0.2):
        method = DARE(0.5, combine="ties", density=density, scale=0.8, seed=3)
        expected = TIES(density=density, scale=0.8)(sparse, base)
        merged = method(experts, base)
        # base + (base + τ − base) is τ only to rounding
        for name, tensor in merged.items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=0, atol=2e-6
            )


def test_nothing_dropped_is_task_arithmetic_or_ties():
    base, experts = models()
    for dense, plain in (
        (DARE(0, scale=0.3), TaskArithmetic(0.3)),
        (DARE(0, combine="ties"), TIES(density=1)),
        (DARE(0, combine="ties", density=0.2), TIES()),
    ):
        merged, expected = dense(experts, base), plain(experts, base)
        assert all(torch.equal(merged[name], expected[name]) for name in base)


def test_share_and_expectation():
    base = {"w": torch.zeros(200_000)}
    expert = {"w": torch.ones(200_000)}
    merged = DARE(drop_rate=0.9)([expert], base)["w"]
    kept = merged != 0
    assert abs(float(kept.float().mean()) - 0.1) < 0.004
    torch.testing.assert_close(merged[kept], torch.full_like(merged[kept], 10))


def test_experts_and_seeds_drop_different_entries():
    base = {"w": torch.zeros(10_000)}
    expert = {"w": torch.ones(10_000)}
    one = DARE(drop_rate=0.5, seed=0)([expert, base], base)["w"] != 0
    two = DARE(drop_rate=0.5, seed=0)([base, expert], base)["w"] != 0
    three = DARE(drop_rate=0.5, seed=1)([expert, base], base)["w"] != 0
    for other in (two, three):
        assert 0.45 < float((one == other).float().mean()) < 0.55


def test_tensors_do_not_depend_on_their_neighbours():
    """The same entries go, whatever else is merged and in which order."""
    base, experts = models()
    method = DARE(drop_rate=0.5, seed=1)
    merged = method(experts, base)
    alone = method(
        [{"fc.bias": expert["fc.bias"]} for expert in experts],
        {"fc.bias": base["fc.bias"]},
    )
    assert torch.equal(merged["fc.bias"], alone["fc.bias"])


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"drop_rate": 1}, "`drop_rate` must be a number at least 0 and below"),
        ({"drop_rate": -0.1}, "got -0.1"),
        ({"rescale": "yes"}, "`rescale` must be True or False"),
        ({"combine": "mean"}, "'linear', 'ties'; got 'mean'"),
        ({"density": 0, "combine": "ties"}, "`density` must be"),
        ({"density": 0.5}, "it must stay 1, got 0.5"),
        ({"seed": 1.5}, "`seed` must be a whole number of at least 0"),
        ({"seed": True}, "got True"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        DARE(**parameters)
