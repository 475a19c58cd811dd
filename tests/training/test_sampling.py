"""The sampler of training runs: a draw that stays."""

import pytest

from speechbrain_merge.training import RunSampler

RANGES = {
    "lr": [3e-6, 8e-6],
    "weight_decay": [0.07, 0.2],
    "dropout": [0.0, 0.1],
    "augment": ["none", "spec", "speed"],
}


def test_values_lie_in_their_ranges():
    runs = list(RunSampler(RANGES, runs=200, seed=1))
    for name in ("lr", "weight_decay", "dropout"):
        low, high = RANGES[name]
        values = [run[name] for run in runs]
        assert low <= min(values) and max(values) <= high
        # uniform: the mean of 200 draws is within 5 standard errors
        width = (high - low) / 12**0.5 / 200**0.5
        assert abs(sum(values) / 200 - (low + high) / 2) < 5 * width
    assert {run["augment"] for run in runs} == set(RANGES["augment"])
    assert len({run["seed"] for run in runs}) == 200


def test_neither_more_runs_nor_more_ranges_move_a_draw():
    few = list(RunSampler(RANGES, runs=3, seed=5))
    assert list(RunSampler(RANGES, runs=9, seed=5))[:3] == few
    only = list(RunSampler({"lr": RANGES["lr"]}, runs=3, seed=5))
    assert [run["lr"] for run in only] == [run["lr"] for run in few]
    assert list(RunSampler(RANGES, runs=3, seed=6)) != few


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(ranges={"lr": 1e-5}, runs=1), "ranges.lr"),
        (dict(ranges={"lr": [2, 1]}, runs=1), "above high"),
        (dict(ranges={}, runs=0), "at least 1"),
    ],
)
def test_wrong_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunSampler(**arguments)
