"""OPCM: the authors' steps, and a merge that goes on from another."""

import logging
import math
import re

import pytest
import torch
from methods.reference_answers import TOLERANCES, assert_answers, later_answers

from speechbrain_merge import merge
from speechbrain_merge.methods import OPCM
from speechbrain_merge.weights import open_weights, write_weights


def task_vector(model, base):
    """What a model changed, in one long vector."""
    return torch.cat([(model[name] - base[name]).reshape(-1) for name in base])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("answer, alpha", [("opcm", 0.5), ("opcm_most", 0.9)])
def test_agrees_with_the_authors(answer, alpha, dtype):
    base, experts, answers = later_answers(dtype)
    merged = OPCM(alpha=alpha)(experts, base)
    assert_answers(merged, answers[answer], dtype)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_length_is_the_mean_of_the_experts(number):
    base, experts, _ = later_answers(torch.float64)
    merged = OPCM()(experts[:number], base)
    lengths = [float(task_vector(e, base).norm()) for e in experts[:number]]
    assert float(task_vector(merged, base).norm()) == pytest.approx(
        sum(lengths) / number
    )


def test_experts_in_directions_of_their_own_are_added():
    base = {"fc.weight": torch.zeros(4, 4, dtype=torch.float64)}
    experts = [{"fc.weight": base["fc.weight"].clone()} for _ in range(2)]
    experts[0]["fc.weight"][0, 0] = 2.0
    experts[1]["fc.weight"][1, 1] = 2.0
    merged = OPCM()(experts, base)["fc.weight"]
    expected = sum(e["fc.weight"] for e in experts) / math.sqrt(2.0)
    torch.testing.assert_close(merged, expected)


def test_what_is_merged_is_not_disturbed():
    """The strongest directions of the first expert are as after it alone,
    but for the length."""
    base, experts, _ = later_answers(torch.float64)
    name = "square.weight"
    first = experts[0][name] - base[name]
    left, values, right = torch.linalg.svd(first)
    block = int((values.cumsum(0) <= 0.9 * values.sum()).sum())
    merged = OPCM(alpha=0.9)(experts[:2], base)[name] - base[name]
    seen = (left.T @ merged @ right.T)[:block, :block]
    seen = seen * (values[0] / seen[0, 0])
    torch.testing.assert_close(seen, torch.diag(values[:block]))


def test_a_merge_goes_on_without_the_experts_it_was_made_of(caplog):
    base, experts, _ = later_answers(torch.float64)
    with caplog.at_level(logging.INFO, "speechbrain_merge.methods.opcm"):
        first = OPCM()(experts[:2], base)
    said = re.search(r"\{experts: (\d+), growth: ([\d.e+-]+)\}", caplog.text)
    previous = {"experts": int(said[1]), "growth": float(said[2])}
    merged = OPCM(previous=previous)([first, experts[2]], base)
    expected = OPCM()(experts, base)
    for name in base:
        torch.testing.assert_close(
            merged[name], expected[name], rtol=0, atol=1e-7
        )


def test_a_growth_that_nobody_knows_is_that_of_right_angles():
    base = {"b": torch.zeros(3, dtype=torch.float64)}
    experts = [{"b": row} for row in torch.eye(3, dtype=torch.float64)]
    first = OPCM()(experts[:2], base)
    merged = OPCM(previous={"experts": 2})([first, experts[2]], base)
    torch.testing.assert_close(merged, OPCM()(experts, base))


def test_experts_that_stood_still_or_cancel():
    base = {"fc.weight": torch.randn(4, 4), "fc.bias": torch.zeros(4)}
    assert all(
        torch.equal(tensor, base[name])
        for name, tensor in OPCM()([base, base], base).items()
    )
    bias = {**base, "fc.bias": torch.ones(4)}
    opposite = {**base, "fc.bias": -torch.ones(4)}
    merged = OPCM()([bias, opposite], base)
    assert torch.equal(merged["fc.bias"], base["fc.bias"])


@pytest.mark.parametrize(
    "previous",
    [3, {}, {"experts": 0}, {"experts": 2, "growth": 0}, {"expert": 2}],
)
def test_wrong_previous(previous):
    with pytest.raises(ValueError, match="previous"):
        OPCM(previous=previous)


def test_a_merged_file_says_how_to_go_on_from_it(tmp_path):
    base, experts, _ = later_answers(torch.float64)
    first = merge(
        OPCM(), experts[:2], base, tmp_path / "12.safetensors", progress=False
    )
    goes_on = OPCM(previous="recorded")
    expected = OPCM()(experts, base)
    for road in (
        goes_on([first, experts[2]], base),
        merge(goes_on, [first, experts[2]], base, progress=False),
    ):
        for name in base:
            torch.testing.assert_close(
                road[name], expected[name], rtol=0, atol=1e-9
            )
    scaled = merge(
        OPCM(scale=0.5),
        experts[:2],
        base,
        tmp_path / "half.safetensors",
        progress=False,
    )
    for other in (experts[0], scaled):
        with pytest.raises(ValueError, match="does not say that it is a merge"):
            goes_on([other, experts[2]], base)
    with open_weights(first) as weights:
        state = {name: weights[name].clone() for name in weights}
    short = write_weights(
        tmp_path / "short.safetensors", state, {"opcm": '{"experts": 2}'}
    )
    told = OPCM(previous={"experts": 2})
    for name, tensor in goes_on([short, experts[2]], base).items():
        assert torch.equal(tensor, told([first, experts[2]], base)[name])
