import pytest

from speechbrain_merge.search import Journal, PrefixSearch, Tally


def run(search, pool, score, **options):
    return search.run(pool, score, progress=False, **options)


def by_count(errors, calls=None):
    def score(selection, incumbent):
        if calls is not None:
            calls.append((len(selection), incumbent))
        return Tally(errors[len(selection) - 1], 100)

    return score


def test_all_gives_the_whole_curve_and_keeps_everything(make_pool):
    calls = []
    result = run(
        PrefixSearch(), make_pool("abcd"), by_count([20, 25, 14, 14], calls)
    )
    assert result.selected == ["a", "b", "c", "d"]
    assert result.tally.errors == 14
    # the curve wants every value, so that nothing is raced
    assert calls == [(1, None), (2, None), (3, None), (4, None)]
    assert [t["merged"] for t in result.trials] == [1, 2, 3, 4]
    assert [t["value"] for t in result.trials] == [20.0, 25.0, 14.0, 14.0]
    assert all(t["accepted"] for t in result.trials)


def test_best_is_the_shortest_of_the_best(make_pool):
    result = run(
        PrefixSearch(pick="best"),
        make_pool("abcd"),
        by_count([20, 25, 14, 14]),
    )
    assert result.selected == ["a", "b", "c"]
    assert [t["best"] for t in result.trials] == [20.0, 20.0, 14.0, 14.0]
    assert [t["kept"] for t in result.trials] == [1, 1, 3, 3]


def test_racing_changes_nothing_but_the_work(make_pool, error_table):
    saved = 0
    for seed in range(100):
        average = ("micro", "macro")[seed % 2]
        pool = make_pool([f"m{index}" for index in range(6)])
        raced = run(
            PrefixSearch(pick="best"), pool, error_table(seed, average=average)
        )
        full = run(
            PrefixSearch(pick="best"),
            pool,
            error_table(seed, average=average),
            racing=False,
        )
        assert (raced.selected, raced.tally) == (full.selected, full.tally)
        oracle = error_table(seed, average=average)
        costs = [
            oracle.full(oracle.name_of(pool[:count])).cost
            for count in range(1, 7)
        ]
        assert raced.tally.cost == min(costs)
        assert len(raced.selected) == 1 + costs.index(min(costs))
        saved += raced.savings.skipped_utterances
    assert saved > 100


def test_sorted_with_crosses_and_a_journal(make_pool, error_table, tmp_path):
    pool = make_pool([f"m{index}" for index in range(4)])
    search = PrefixSearch(order="sorted")
    table = error_table(2)
    first = run(search, pool, table, journal=Journal(tmp_path / "j"))
    singles = [t for t in first.trials if t["kind"] == "single"]
    assert len(singles) == 4 and len(first.trials) == 7
    best = min(singles, key=lambda trial: trial["value"])
    assert first.selected[0] == best["candidate"]
    again = run(search, pool, table, journal=Journal(tmp_path / "j"))
    assert again.evaluations == 0 and again.selected == first.selected
    assert len(table.calls) == 7


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="pick"):
        PrefixSearch(pick="shortest")
    with pytest.raises(ValueError, match="order"):
        PrefixSearch(order="best")
