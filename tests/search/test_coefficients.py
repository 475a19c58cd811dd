import io
import itertools
import json
import random
import sys

import numpy as np
import pytest

from speechbrain.utils.hpopt import hyperparameter_optimization
from speechbrain_merge.search import (
    CMAES,
    CoordinateSearch,
    GoldenSection,
    GridSearch,
    Journal,
    Race,
    Tally,
)

BOX = {"a": (0.0, 1.0, 0.2), "b": (-1.0, 1.0, 0.0)}

SEARCHES = {
    "grid": lambda: GridSearch("a", [0.1 * k for k in range(8)]),
    "product": lambda: GridSearch(grid={"a": [0, 1], "b": [3, 4, 5]}),
    "golden": lambda: GoldenSection("a", 0, 2, tolerance=0.01),
    "coordinate": lambda: CoordinateSearch(BOX, rounds=4),
    "cma": lambda: CMAES(BOX, evaluations=15, seed=0),
}


def run(search, score, **options):
    return search.run(score, progress=False, **options)


def outcome(result):
    return (
        result.parameters,
        result.tally,
        [trial["parameters"] for trial in result.trials],
        [trial["accepted"] for trial in result.trials],
        [trial["best"] for trial in result.trials],
    )


def bowl(a, b=0.0, words=10**6):
    """Errors with a single valley at a, b."""

    def score(parameters, incumbent):
        distance = (parameters["a"] - a) ** 2
        distance += (parameters.get("b", 0.0) - b) ** 2
        return Tally(round(words * distance / 10), words)

    return score


def test_grid_by_hand_first_of_ties_wins():
    errors = {1: 9, 2: 7, 3: 7, 4: 8}
    result = run(
        GridSearch("scale", [1, 2, 3, 4]),
        lambda p, incumbent: Tally(errors[p["scale"]], 100),
    )
    assert result.parameters == {"scale": 2}
    assert result.tally == Tally(7, 100)
    assert [t["accepted"] for t in result.trials] == [True, True, False, False]
    assert [t["best"] for t in result.trials] == [9.0, 7.0, 7.0, 7.0]


def test_grid_of_several_tries_every_combination():
    tried = []

    def score(parameters, incumbent):
        tried.append((parameters["a"], parameters["b"]))
        return Tally(parameters["a"] * parameters["b"], 100)

    result = run(GridSearch(grid={"a": [2, 1], "b": [3, 4, 5]}), score)
    assert tried == list(itertools.product([2, 1], [3, 4, 5]))
    assert result.parameters == {"a": 1, "b": 3}


def test_golden_section_finds_a_valley_with_few_evaluations():
    generator = random.Random(0)
    for _ in range(50):
        valley = generator.uniform(0.05, 1.95)
        search = GoldenSection("a", 0, 2, tolerance=0.01, evaluations=50)
        result = run(search, bowl(valley))
        assert abs(result.parameters["a"] - valley) <= 0.01
        # 2 * 0.618 ** 11 > 0.01 >= 2 * 0.618 ** 12: twelve steps, a point
        # each, after the first point
        assert result.evaluations == 13
        values = [trial["parameters"]["a"] for trial in result.trials]
        assert len(set(values)) == len(values)
        assert all(0 < value < 2 for value in values)


def test_golden_section_by_hand():
    result = run(
        GoldenSection("a", 0.0, 1.0, tolerance=1e-3, evaluations=4), bowl(0.0)
    )
    golden = (5**0.5 - 1) / 2
    expected = [1 - golden, golden, (1 - golden) * golden, golden**4]
    values = [trial["parameters"]["a"] for trial in result.trials]
    assert values == pytest.approx(expected, abs=1e-12)


def test_golden_section_reaches_for_the_bounds_and_stops_in_time():
    for valley in (0.0, 2.0):
        search = GoldenSection("a", 0, 2, tolerance=1e-3, evaluations=99)
        result = run(search, bowl(valley, words=10**15))
        assert abs(result.parameters["a"] - valley) < 1e-3
    # finer than floating point: ends, and ends within the bounds
    search = GoldenSection("a", 0, 2, tolerance=1e-300, evaluations=500)
    result = run(search, bowl(1.3, words=10**15))
    assert result.evaluations < 200
    assert abs(result.parameters["a"] - 1.3) < 1e-6


def test_coordinate_search_by_hand():
    errors = {0.5: 10, 0.75: 8, 1.0: 9, 0.25: 12, 0.625: 8, 0.875: 7}
    result = run(
        CoordinateSearch({"a": (0, 1)}, step=0.25, rounds=3),
        lambda p, incumbent: Tally(errors[p["a"]], 100),
    )
    tried = [trial["parameters"]["a"] for trial in result.trials]
    # up twice; a round without gain; the half step up, which helps
    assert tried == [0.5, 0.75, 1.0, 0.875]
    assert result.parameters == {"a": 0.875}


def test_coordinate_search_finds_a_valley():
    generator = random.Random(1)
    for _ in range(20):
        a, b = generator.uniform(0, 1), generator.uniform(-1, 1)
        search = CoordinateSearch(BOX, step=0.25, rounds=16)
        result = run(search, bowl(a, b))
        assert abs(result.parameters["a"] - a) < 0.02
        assert abs(result.parameters["b"] - b) < 0.04


def test_coordinate_search_stays_in_its_box_and_budget():
    search = CoordinateSearch(BOX, step=0.4, rounds=50, evaluations=9)
    result = run(search, bowl(5.0, -5.0))
    assert result.parameters == {"a": 1.0, "b": -1.0}
    assert len(result.trials) <= 9
    points = [tuple(t["parameters"].values()) for t in result.trials]
    assert len(set(points)) == len(points)


def test_cma_finds_a_valley_that_is_not_along_the_axes():
    def score(parameters, incumbent):
        assert incumbent is None  # ranks losers too
        a, b = parameters["a"], parameters["b"]
        assert 0 <= a <= 1 and -1 <= b <= 1
        cost = 10 * (a - b - 0.1) ** 2 + (a + b - 0.7) ** 2
        return Tally(round(1e8 * cost), 10**8)

    result = run(CMAES(BOX, evaluations=200, seed=5), score)
    assert result.parameters["a"] == pytest.approx(0.4, abs=0.02)
    assert result.parameters["b"] == pytest.approx(0.3, abs=0.02)


def test_cma_keeps_its_budget_and_starts_from_the_initial_point():
    for evaluations in (1, 4, 7, 13):
        result = run(CMAES(BOX, evaluations=evaluations), bowl(0.2, 0.0))
        assert len(result.trials) == evaluations
        assert result.trials[0]["parameters"] == {"a": 0.2, "b": 0.0}
        assert result.parameters == {"a": 0.2, "b": 0.0}


def test_cma_draws_from_its_seed_alone():
    def trials(seed, disturbance):
        np.random.seed(disturbance)
        state = np.random.get_state()[1].copy()
        result = run(CMAES(BOX, evaluations=40, seed=seed), bowl(0.9, 0.4))
        assert (np.random.get_state()[1] == state).all()
        return [trial["parameters"] for trial in result.trials]

    assert trials(0, 1) == trials(0, 2)
    assert trials(0, 1) != trials(1, 1)


def test_cma_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ImportError, match="pip install cma"):
        CMAES(BOX)


@pytest.mark.parametrize("name", SEARCHES)
def test_racing_never_changes_the_outcome(name, error_table):
    saved = 0
    for seed in range(10 if name == "cma" else 100):
        for average in ("micro", "macro"):
            raced, full = [
                run(
                    SEARCHES[name](),
                    error_table(seed, average=average),
                    racing=racing,
                )
                for racing in (True, False)
            ]
            assert outcome(raced) == outcome(full)
            assert raced.tally.complete
            best = min(
                error_table(seed, average=average)
                .full(str(sorted(trial["parameters"].items())))
                .cost
                for trial in raced.trials
            )
            assert raced.tally.cost == best
            saved += raced.savings.skipped_utterances
    assert (saved > 100) is (name != "cma")


@pytest.mark.parametrize("name", SEARCHES)
def test_a_killed_search_resumes_without_scoring_twice(
    name, error_table, killed_after, killed, tmp_path
):
    expected_table = error_table(3)
    expected = run(SEARCHES[name](), expected_table)
    count = len(expected_table.calls)
    assert count == len(expected.trials) > 5
    for allowed in (0, 1, count // 2, count - 1):
        path = tmp_path / f"{allowed}.jsonl"
        context = {"method": "ties", "candidates": ["x", "y"]}
        table = error_table(3)
        with pytest.raises(killed):
            run(
                SEARCHES[name](),
                killed_after(table, allowed),
                journal=Journal(path, context),
            )
        result = run(SEARCHES[name](), table, journal=Journal(path, context))
        assert table.calls == expected_table.calls
        assert outcome(result) == outcome(expected)
        assert result.evaluations == count - allowed
        # another method reuses nothing
        other = Journal(path, {**context, "method": "average"})
        assert run(SEARCHES[name](), table, journal=other).evaluations == count


def test_a_scorer_cannot_change_the_result():
    def score(parameters, incumbent):
        return Tally(int(parameters.pop("a") * 10), 100)

    assert run(GridSearch("a", [3, 1, 2]), score).parameters == {"a": 1}


def test_best_value_reaches_speechbrain_hpopt():
    for name in SEARCHES:
        output = io.StringIO()
        with hyperparameter_optimization(
            objective_key="WER", reference_date=None, output=output
        ):
            search = SEARCHES[name]()
            search.objective_key = "WER"
            result = run(search, bowl(0.3, 0.1))
        report = json.loads(output.getvalue())
        assert report["objective"] == report["WER"] == result.tally.value
        assert report["a"] == result.parameters["a"]
    # nothing is active: nothing happens
    run(GridSearch("a", [0.1], objective_key="WER"), bowl(0.3))


def test_no_report_where_none_is_wanted():
    output = io.StringIO()
    with hyperparameter_optimization(
        objective_key="objective", output=output
    ) as context:
        run(GridSearch("a", [0.1], objective_key=None), bowl(0.3))
        assert context.result == {"objective": 0.0}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GridSearch("a"), "either"),
        (lambda: GridSearch(values=[1]), "either"),
        (lambda: GridSearch("a", [1], grid={"b": [1]}), "either"),
        (lambda: GridSearch("a", []), "no values for 'a'"),
        (lambda: GridSearch(grid={}), "no coefficient"),
        (lambda: GoldenSection("a", 1, 1), "a: expected finite"),
        (lambda: GoldenSection("a", 0, float("inf")), "finite"),
        (lambda: GoldenSection("a", 0, 1, tolerance=0), "tolerance"),
        (lambda: GoldenSection("a", 0, 1, evaluations=1), "evaluations"),
        (lambda: CoordinateSearch({}), "empty"),
        (lambda: CoordinateSearch({"a": (0, 1, 2)}), "a: the initial"),
        (lambda: CoordinateSearch({"a": (0,)}), "a: expected"),
        (lambda: CoordinateSearch(BOX, step=0), "step"),
        (lambda: CoordinateSearch(BOX, rounds=0), "rounds"),
        (lambda: CMAES({"a": (0, 1)}), "GoldenSection"),
        (lambda: CMAES(BOX, evaluations=0), "evaluations"),
        (lambda: CMAES(BOX, population=2), "population"),
        (lambda: CMAES(BOX, spread=2), "spread"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_search_says_what_it_searches_and_how_it_accepts():
    for make in SEARCHES.values():
        search = make()
        assert search.searches == "coefficients"
        Race(None, accept=search.accept)
