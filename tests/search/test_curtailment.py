"""Trials that are stopped because they will hardly win."""

import math
from fractions import Fraction

import numpy
import pytest

from speechbrain_merge.search import (
    DecodingOrder,
    GreedySearch,
    Journal,
    Savings,
    Tally,
)
from speechbrain_merge.search.curtailment import LEVEL, chance_of_fewer
from speechbrain_merge.stage.selection import Scoring


def test_it_is_a_bound_and_not_a_useless_one():
    generator = numpy.random.default_rng(0)
    for gap, count, mean, errors, foreseen in [
        (2, 40, 0.5, 30, 30.0),
        (5, 60, 0.3, 10, 12.0),
        (0, 30, 0.2, 40, 20.0),
        (9, 50, 0.2, 5, 10.0),
    ]:
        means = generator.uniform(0, 2 * mean, count)
        costs = generator.uniform(0.5, 2, count)
        level = generator.gamma(
            LEVEL + errors, 1 / (LEVEL + foreseen), (100_000, 1)
        )
        drawn = generator.poisson(level * means) @ costs
        true = float((drawn <= gap).mean())
        bound = chance_of_fewer(gap, means, costs, errors, foreseen)
        assert true <= bound + 4 * math.sqrt(bound / 100_000)
        if 0.3 > true > 1e-3:
            assert bound < 1.5 * true
    assert chance_of_fewer(-0.1, [1.0], [1.0], 0, 0) == 0
    assert chance_of_fewer(3.0, [], [], 0, 0) == 1
    assert chance_of_fewer(3.0, [0.0], [1.0], 0, 0) == 1


def test_few_winners_are_stopped_and_many_losers_earlier():
    """New trials, each a little better or worse than those before."""
    generator, allowed = numpy.random.default_rng(0), 0.05
    stopped = missed = won = sooner = 0
    for _ in range(400):
        means = generator.exponential(0.4, 160) * (generator.random(160) < 0.7)

        def drawn(means=means):
            level = generator.gamma(100, 1 / 100)
            return generator.poisson(level * means)

        order = DecodingOrder([range(at, at + 8) for at in range(0, 160, 8)])
        earlier = [drawn() for _ in range(5)]
        for errors in earlier:
            order.learn(dict(enumerate(errors)))
        incumbent, own = sorted(map(sum, earlier))[1], drawn()
        wins = own.sum() < incumbent
        won += wins
        done, rest = [], order.batches()
        while rest:
            done += rest.pop(0)
            seen = own[done].sum()
            sure = seen >= incumbent
            left = [u for batch in rest for u in batch]
            chance = chance_of_fewer(
                incumbent - seen,
                [order.expected(u, cautious=True) for u in left],
                [1.0] * len(left),
                seen,
                sum(map(order.expected, done)),
            )
            if sure or chance <= allowed:
                stopped += 1
                missed += wins
                sooner += not sure
                break
    assert won > 60 and stopped > 200
    assert sooner > 50
    # every look at every trial counts, and still it is within the promise
    assert missed <= allowed * stopped


def test_such_a_stop_is_stored_and_believed_by_who_allows_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    given_up = Tally(
        8, 60, False, utterances=30, against=Fraction(1, 10), chance=0.004
    )
    journal = Journal(path)
    journal.record("trial", given_up, Tally(10, 100))
    journal = Journal(path)
    assert journal.find("trial", Tally(10, 100)) is None
    assert journal.find("trial", Tally(10, 100), error=0.01) == given_up
    assert journal.find("trial", Tally(9, 100), error=0.01) == given_up
    assert journal.find("trial", Tally(11, 100), error=0.01) is None
    assert journal.find("trial", Tally(10, 100), error=0.001) is None
    assert journal.find("trial", Tally(8, 100)) == given_up
    assert journal.find("trial", None, error=0.01) is None
    savings = Savings(error=0.01)
    savings.add(given_up, Tally(10, 100, utterances=60))
    assert savings.given_up == 1 and savings.fraction_of_rejected == 0.5
    assert "1 of them as hardly winning" in str(savings)


def test_settings_are_checked(make_pool):
    assert Scoring(racing="statistical").racing_rule == 0.01
    assert Scoring(racing=False).racing_rule is False
    for wrong in ({"racing": "maybe"}, {"racing_error": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Scoring(**wrong)
    with pytest.raises(ValueError, match="racing=1.5"):
        GreedySearch().run(make_pool("a"), None, racing=1.5)
