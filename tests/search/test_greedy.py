import random
from fractions import Fraction

import pytest

from speechbrain_merge.search import GreedySearch, Journal, SearchResult, Tally


class Listed:
    """Scores from a list: ``{"ab": errors}``, of 100 words."""

    def __init__(self, errors):
        self.errors = errors
        self.calls = []

    def __call__(self, selection, incumbent):
        name = "".join(candidate.name for candidate in selection)
        self.calls.append(name)
        return Tally(self.errors[name], 100)


def smact(candidates, wer):
    """Algorithm 1 of arXiv:2505.20477, line by line."""
    selected = [candidates[0]]
    previous = wer(selected)
    for candidate in candidates[1:]:
        current = wer([*selected, candidate])
        if current < previous:
            selected.append(candidate)
            previous = current
    return selected, previous


def run(search, pool, score, **options):
    return search.run(pool, score, progress=False, **options)


def outcome(result):
    """What must not depend on how much was decoded."""
    return (
        result.selected,
        result.tally,
        [trial["accepted"] for trial in result.trials],
        [trial["best"] for trial in result.trials],
    )


def test_by_hand(make_pool):
    score = Listed({"a": 20, "ab": 20, "ac": 18, "acd": 19, "ace": 17})
    result = run(GreedySearch(), make_pool("abcde"), score)
    assert isinstance(result, SearchResult)
    # the tie of ab is a rejection; N - 1 merges and the first
    assert score.calls == ["a", "ab", "ac", "acd", "ace"]
    assert result.selected == ["a", "c", "e"]
    assert [member.digest for member in result.members] == [
        "digest of a",
        "digest of c",
        "digest of e",
    ]
    assert result.tally == Tally(17, 100)
    columns = ["kind", "candidate", "merged", "kept", "step", "value", "best"]
    rows = [[trial[column] for column in columns] for trial in result.trials]
    assert rows == [
        ["single", "a", 1, 1, 1, 20.0, 20.0],
        ["merge", "b", 2, 1, 2, 20.0, 20.0],
        ["merge", "c", 2, 2, 3, 18.0, 18.0],
        ["merge", "d", 3, 2, 4, 19.0, 18.0],
        ["merge", "e", 3, 3, 5, 17.0, 17.0],
    ]
    accepted = [trial["accepted"] for trial in result.trials]
    assert accepted == [True, False, True, False, True]
    assert result.trials[4]["members"] == ["a", "c", "e"]
    assert all(
        (trial["total"], trial["complete"], trial["reused"])
        == (100, True, False)
        for trial in result.trials
    )


def test_ties_are_accepted_where_asked(make_pool):
    score = Listed({"a": 20, "ab": 20, "abc": 18})
    result = run(GreedySearch(accept="le"), make_pool("abc"), score)
    assert result.selected == ["a", "b", "c"]


def test_sorted_order_scores_each_single_candidate_once(make_pool):
    errors = {"a": 20, "b": 18, "c": 20, "d": 15}
    score = Listed({**errors, "db": 14, "dba": 14, "dbc": 13})
    result = run(GreedySearch(order="sorted"), make_pool("abcd"), score)
    # a before c: equal scores stay in the given order
    assert score.calls == ["a", "b", "c", "d", "db", "dba", "dbc"]
    assert result.selected == ["d", "b", "c"]
    singles = [t for t in result.trials if t["kind"] == "single"]
    assert [t["accepted"] for t in singles] == [None, None, None, True]
    assert [t["value"] for t in singles] == [20.0, 18.0, 20.0, 15.0]


def test_sorted_by_the_scores_of_the_pool(make_pool):
    pool = make_pool("abc", scores=[3.0, 1.0, 2.0])
    score = Listed({"b": 20, "bc": 19, "bca": 21})
    search = GreedySearch(order="sorted", sort_by="pool")
    assert run(search, pool, score).selected == ["b", "c"]
    assert score.calls == ["b", "bc", "bca"]
    with pytest.raises(ValueError, match=r"\['b'\].*selection"):
        run(search, make_pool("ab", scores=[1.0, None]), score)


def test_single_scores_for_the_picture(make_pool):
    score = Listed({"a": 20, "b": 12, "c": 30, "ab": 18, "abc": 19})
    result = run(GreedySearch(score_singles=True), make_pool("abc"), score)
    assert score.calls == ["a", "b", "c", "ab", "abc"]
    crosses = {
        trial["candidate"]: trial["value"]
        for trial in result.trials
        if trial["kind"] == "single"
    }
    assert crosses == {"a": 20.0, "b": 12.0, "c": 30.0}
    assert result.selected == ["a", "b"]


def test_shuffles_are_drawn_from_the_seed(make_pool, error_table):
    names = [f"m{index}" for index in range(8)]
    orders = set()
    for seed in range(5):
        calls = []
        for _ in range(2):
            table = error_table(1)
            run(
                GreedySearch(order="shuffled", seed=seed),
                make_pool(names),
                table,
            )
            calls.append(tuple(table.calls))
        assert calls[0] == calls[1]
        orders.add(calls[0])
    assert len(orders) > 1


def test_limit_and_patience(make_pool):
    falling = Listed({"abcde"[:k]: 20 - k for k in range(1, 6)})
    result = run(GreedySearch(limit=3), make_pool("abcde"), falling)
    assert result.selected == ["a", "b", "c"] and len(falling.calls) == 3
    assert run(GreedySearch(limit=1), make_pool("abcde"), falling).selected == [
        "a"
    ]
    errors = {"a": 20, "ab": 21, "ac": 19, "acd": 30, "ace": 30, "acf": 1}
    score = Listed(errors)
    result = run(GreedySearch(patience=2), make_pool("abcdef"), score)
    # the rejections of b and d are not in a row
    assert result.selected == ["a", "c"]
    assert score.calls == ["a", "ab", "ac", "acd", "ace"]


def test_one_candidate_and_none(make_pool):
    assert run(GreedySearch(), make_pool("a"), Listed({"a": 5})).selected == [
        "a"
    ]
    with pytest.raises(ValueError, match="no candidates"):
        run(GreedySearch(), [], Listed({}))


def test_equal_names_of_two_runs_stay_apart(make_pool):
    pool = make_pool(["x", "x"])
    result = run(GreedySearch(), pool, Listed({"x": 9, "xx": 8}))
    assert result.members[0] is pool[0] and result.members[1] is pool[1]


def test_racing_never_changes_the_outcome(make_pool, error_table):
    saved = ties = 0
    for seed in range(200):
        generator = random.Random(seed)
        names = [f"m{index}" for index in range(generator.randint(1, 7))]
        for average in ("micro", "macro"):
            for accept in ("lt", "le"):
                search = GreedySearch(
                    order=generator.choice(["given", "sorted", "shuffled"]),
                    accept=accept,
                    patience=generator.choice([None, 2]),
                    seed=seed,
                )
                results = []
                for racing in (True, False):
                    table = error_table(seed, average=average, accept=accept)
                    result = run(search, make_pool(names), table, racing=racing)
                    results.append(result)
                raced, full = results
                assert outcome(raced) == outcome(full)
                assert raced.tally == full.tally and raced.tally.complete
                assert full.savings.skipped_utterances == 0
                assert raced.savings.all_utterances == full.savings.utterances
                saved += raced.savings.skipped_utterances
                for stopped, whole in zip(raced.trials, full.trials):
                    # what is shown of a stopped trial is a floor
                    assert stopped["value"] <= whole["value"]
                    assert stopped["complete"] or not stopped["accepted"]
                    ties += whole["value"] == whole["best"] and not bool(
                        whole["accepted"]
                    )
    assert saved > 1000
    assert ties > 10  # the random tables hold the delicate case


def test_equals_the_published_algorithm(make_pool, error_table):
    for seed in range(200):
        pool = make_pool([f"m{index}" for index in range(6)])
        table = error_table(seed, average=("micro", "macro")[seed % 2])
        result = run(GreedySearch(), pool, table)
        oracle = error_table(seed, average=table.average)
        selected, cost = smact(
            pool, lambda members: oracle.full(oracle.name_of(members)).cost
        )
        assert result.members == selected
        assert result.tally.cost == cost
        assert result.tally.cost <= oracle.full("m0").cost
        assert len(table.calls) == len(pool)


def test_a_killed_search_resumes_without_scoring_twice(
    make_pool, error_table, killed_after, killed, tmp_path
):
    pool = make_pool([f"m{index}" for index in range(6)])
    search = GreedySearch(order="sorted")
    expected_table = error_table(7, utterances=30)
    expected = run(search, pool, expected_table)
    assert expected.savings.stopped
    for allowed in range(len(expected_table.calls)):
        path = tmp_path / f"{allowed}.jsonl"
        table = error_table(7, utterances=30)
        with pytest.raises(killed):
            run(
                search,
                pool,
                killed_after(table, allowed),
                journal=Journal(path),
            )
        assert len(table.calls) == allowed
        result = run(search, pool, table, journal=Journal(path))
        assert table.calls == expected_table.calls
        assert outcome(result) == outcome(expected)
        assert result.evaluations == len(expected_table.calls) - allowed
        again = run(search, pool, table, journal=Journal(path))
        assert again.evaluations == 0 and outcome(again) == outcome(expected)
        assert table.calls == expected_table.calls


def test_another_search_reuses_what_it_can(make_pool, error_table, tmp_path):
    """One journal for many orders and rules: outcomes as without a journal."""
    reused = 0
    for seed in range(40):
        journal = Journal(tmp_path / f"{seed}.jsonl")
        for variant in range(6):
            names = [f"m{index}" for index in range(5)]
            random.Random(variant % 3).shuffle(names)
            accept = ("lt", "le")[variant % 2]
            search = GreedySearch(accept=accept)
            # merges are averages here: the order of their members is nothing
            results = []
            for book in (journal, None):
                table = error_table(seed, accept=accept)
                table.name_of = lambda members: "+".join(
                    sorted(member.name for member in members)
                )
                pool = make_pool(names)
                results.append(run(search, pool, table, journal=book))
            assert outcome(results[0]) == outcome(results[1])
            reused += sum(trial["reused"] for trial in results[0].trials)
    assert reused > 100


def test_racing_off_wants_full_scores_from_the_journal_too(
    make_pool, error_table, tmp_path
):
    pool = make_pool([f"m{index}" for index in range(6)])
    path = tmp_path / "j.jsonl"
    raced = run(GreedySearch(), pool, error_table(5), journal=Journal(path))
    assert not all(trial["complete"] for trial in raced.trials)
    full = run(
        GreedySearch(),
        pool,
        error_table(5),
        journal=Journal(path),
        racing=False,
    )
    assert all(trial["complete"] for trial in full.trials)
    assert outcome(full) == outcome(raced)
    assert 0 < full.evaluations < len(pool)


def test_a_scorer_that_stops_too_early_is_found_out(make_pool, error_table):
    def stops_at_a_tie(selection, incumbent):
        if incumbent is None:
            return Tally(10, 100)
        return Tally(10, 50, complete=False)

    pool = make_pool("ab")
    assert run(GreedySearch(), pool, stops_at_a_tie).selected == ["a"]
    with pytest.raises(ValueError, match="accept='le'"):
        run(GreedySearch(accept="le"), pool, stops_at_a_tie)
    with pytest.raises(ValueError, match="in full"):
        run(GreedySearch(), pool, lambda *_: Tally(1, 10, complete=False))
    with pytest.raises(TypeError, match="float"):
        run(GreedySearch(), pool, lambda *_: 12.5)


def test_results_are_plain_data(make_pool, error_table):
    import json

    for seed in range(4):
        table = error_table(seed)
        result = run(GreedySearch(), make_pool("abc"), table)
        data = json.loads(json.dumps(result.to_dict()))
        assert data["selected"] == result.selected
        assert Tally.from_dict(data["tally"]) == result.tally
        errors = result.trials[0]["errors"]
        assert Fraction(errors) == table.full("a").errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(order="random"), "order"),
        (dict(accept="<="), "accept"),
        (dict(limit=0), "limit"),
        (dict(patience=-1), "patience"),
        (dict(patience=1.5), "patience"),
        (dict(sort_by="wer"), "sort_by"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        GreedySearch(**arguments)


def test_made_by_yaml():
    from hyperpyyaml import load_hyperpyyaml

    hparams = load_hyperpyyaml(
        "search: !new:speechbrain_merge.search.GreedySearch\n"
        "    order: shuffled\n"
        "    limit: 4\n",
        overrides="{search: {accept: le}}",
    )
    assert hparams["search"].accept == "le"
    assert hparams["search"].limit == 4
