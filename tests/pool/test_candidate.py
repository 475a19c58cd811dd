"""Narrowing lists of candidates."""

from pathlib import Path

import pytest

from speechbrain_merge.pool import Candidate, rank, select

NAN = float("nan")


def run(name, *rates, metric="WER"):
    return [
        Candidate(
            f"{name}/{epoch}", Path(name), name, epoch, meta={metric: rate}
        )
        for epoch, rate in enumerate(rates, start=1)
    ]


CANDIDATES = [*run("b", 9.0, 5.0, 7.0), *run("a", 6.0, NAN, 8.0)]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, "b/1 b/2 b/3 a/1 a/2 a/3"),
        ({"per_run": "best"}, "b/2 a/1"),
        ({"per_run": "best", "mode": "max"}, "b/1 a/3"),
        ({"per_run": "last"}, "b/3 a/3"),
        ({"last": 2}, "b/2 b/3 a/2 a/3"),
        ({"last": 9}, "b/1 b/2 b/3 a/1 a/2 a/3"),
        ({"best": 3}, "b/2 b/3 a/1"),
        ({"best": 9}, "b/1 b/2 b/3 a/1 a/3"),
        ({"last": 2, "best": 2}, "b/2 b/3"),
        ({"last": 2, "per_run": "best"}, "b/2 a/3"),
        ({"per_run": "best", "best": 1}, "b/2"),
    ],
)
def test_select(arguments, expected):
    chosen = select(CANDIDATES, **arguments)
    assert [candidate.name for candidate in chosen] == expected.split()


def test_select_nothing_from_nothing():
    assert select([], per_run="best", best=3) == []


def test_of_equal_ones_the_newer_is_best():
    [best] = select(run("a", 5.0, 5.0, 6.0), best=1)
    assert best.name == "a/2"
    assert [c.name for c in rank(run("a", 5.0, 5.0, 6.0), mode="max")] == [
        "a/3",
        "a/2",
        "a/1",
    ]


def test_no_metric_no_best():
    with pytest.raises(ValueError, match="run 'a' has a finite 'WER'.*ACC"):
        select(run("a", 0.5, metric="ACC"), per_run="best")
    with pytest.raises(ValueError, match="finite 'WER'"):
        select(run("a", NAN), best=1)


@pytest.mark.parametrize(
    "wrong", [{"per_run": "first"}, {"last": 0}, {"best": 0}, {"mode": "low"}]
)
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        select(CANDIDATES, **{"best": 1, **wrong})


def test_candidates_can_be_compared_and_kept_in_sets():
    assert run("a", 1.0) == run("a", 1.0)
    assert len({*run("a", 1.0), *run("a", 1.0), *run("b", 1.0)}) == 2
