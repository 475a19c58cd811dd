"""Where mergekit reads a paper in another way, a parameter gives its reading."""

from pathlib import Path

import pytest
import torch
from methods.reference_answers import largest_difference
from safetensors.torch import load_file

from speechbrain_merge.methods import SCE, TIES, ModelStock

ANSWERS = Path(__file__).parent / "references/mergekit_readings.safetensors"
WEIGHTS = [0.5, 1.0, -0.25, 2.0]

# Of weights of about 1: also task vectors of 1e-5 have ten digits in float64.
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14}
SIZES = (1.0, 1e-3, 1e-5)

READINGS = {
    "sce": (SCE(), SCE(equal_below=1e-6)),
    "sce_half": (SCE(0.5), SCE(0.5, equal_below=1e-6)),
    "model_stock": (ModelStock(), ModelStock(clamp=False, length_floor=1e-6)),
    "model_stock_filter_wise": (
        ModelStock(filter_wise=True),
        ModelStock(
            filter_wise=True, clamp=False, length_floor=1e-6, filters="last"
        ),
    ),
    "ties_weighted": (
        TIES(0.3, scope="tensor", scale=[0.8 * w for w in WEIGHTS]),
        TIES(0.3, scope="tensor", scale=0.8, vote_weights=WEIGHTS),
    ),
    "ties_weighted_sum": (
        TIES(0.3, scope="tensor", scale=WEIGHTS, aggregate="sum"),
        TIES(0.3, scope="tensor", vote_weights=WEIGHTS, aggregate="sum"),
    ),
}
every_answer = pytest.mark.parametrize("answer", READINGS)


def stored(dtype, size):
    """Base, experts and answers."""
    start = f"{str(dtype).removeprefix('torch.')}/{size:g}/"
    found = {}
    for key, tensor in load_file(ANSWERS).items():
        if key.startswith(start):
            what, name = key.removeprefix(start).split("/")
            found.setdefault(what, {})[name] = tensor
    experts = [found.pop(f"expert{index}") for index in range(4)]
    return found.pop("base"), experts, found


def relative_difference(merged, answer, base):
    """The largest, relative to how far the answer is from the base."""
    return max(
        float(
            (merged[name].double() - answer[name].double()).abs().max()
            / (answer[name].double() - base[name].double()).abs().max()
        )
        for name in answer
    )


@every_answer
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mergekits_reading_is_a_parameter(answer, size, dtype):
    base, experts, answers = stored(dtype, size)
    merged = READINGS[answer][1](experts, base)
    difference = largest_difference(merged, answers[answer])
    assert difference < TOLERANCES[dtype]


@every_answer
def test_the_default_is_another_reading(answer):
    """Else there would be nothing to choose, and the tests above no tests."""
    size = 1e-5 if "sce" in answer or answer == "model_stock" else 1.0
    base, experts, answers = stored(torch.float64, size)
    merged = READINGS[answer][0](experts, base)
    assert relative_difference(merged, answers[answer], base) > 0.1


def test_weights_that_are_all_one_change_nothing():
    base, experts, _ = stored(torch.float64, 1.0)
    for scope in ("model", "tensor"):
        for aggregate in ("mean", "sum", "max"):
            plain = TIES(0.3, scope=scope, aggregate=aggregate)
            weighted = TIES(
                0.3, scope=scope, aggregate=aggregate, vote_weights=1.0
            )
            expected = plain(experts, base)
            merged = weighted(experts, base)
            for name in base:
                assert torch.equal(merged[name], expected[name])


def test_heavy_votes_elect_the_sign():
    base = {"w": torch.zeros(1)}
    experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([-1.0])}]
    for scope in ("model", "tensor"):
        merged = TIES(1, scope=scope, vote_weights=[1, 3])(experts, base)["w"]
        assert merged.tolist() == [-1.0]
        merged = TIES(1, scope=scope)(experts, base)["w"]
        assert merged.tolist() == [2.0]
    # of the whole model, minus wins by weight where votes cancel
    names = ("a", "b", "c")
    base = {name: torch.zeros(1) for name in names}
    experts = [
        {name: torch.tensor([1.0]) for name in names},
        {name: torch.tensor([-1.0]) for name in names},
    ]
    experts[1]["a"] *= 0.5  # with weights 1 and 2 the votes cancel in `a`
    merged = TIES(1, vote_weights=[1, 2])(experts, base)
    assert [merged[name].item() for name in names] == [-0.5, -1.0, -1.0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SCE(equal_below=-1), "`equal_below`"),
        (lambda: ModelStock(length_floor="x"), "`length_floor`"),
        (lambda: ModelStock(filters="rows"), "'output', 'last'"),
        (lambda: TIES(vote_weights="x"), "vote_weights"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
