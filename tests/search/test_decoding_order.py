"""Which utterances are decoded together, and which of them first."""

import random
from fractions import Fraction

import pytest

from speechbrain_merge.search import DecodingOrder, GreedySearch, Race, Tally


def test_batches_stay_as_they_came_while_nothing_is_known():
    batches = [[3, 1], [0], [2, 4]]
    assert DecodingOrder(batches, ["a"] * 5).batches() == batches


def test_utterances_are_exchanged_within_a_padding_only():
    generator = random.Random(0)
    for _ in range(50):
        utterances = list(range(30))
        generator.shuffle(utterances)
        sizes = [generator.randint(1, 5) for _ in range(8)]
        batches = [[utterances.pop() for _ in range(min(s, 3))] for s in sizes]
        paddings = [generator.choice(["a", "b", None]) for _ in range(30)]
        order = DecodingOrder(
            batches, {u: paddings[u] for b in batches for u in b}
        )
        errors = {u: generator.randint(0, 4) for b in batches for u in b}
        order.learn(errors)
        found = order.batches()

        def kinds(batch, paddings=paddings):
            """What stays in it, and how it is padded."""
            return [(paddings[u], paddings[u] or u) for u in batch]

        assert sorted(map(str, map(kinds, found))) == sorted(
            map(str, map(kinds, batches))
        )
        density = [sum(errors[u] for u in b) / len(b) for b in found]
        assert density == sorted(density, reverse=True)
        assert {u for b in found for u in b} == set(errors)


def test_what_an_error_costs_and_what_decoding_takes_count():
    order = DecodingOrder([[0], [1], [2]], efforts=[1.0, 1.0, 4.0])
    order.learn({0: 1, 1: 2, 2: 4})
    assert order.batches() == [[1], [0], [2]]
    order.costs = [3.0, 1.0, 1.0]
    assert order.batches() == [[0], [1], [2]]
    # a trial that was stopped tells of what it decoded
    order.learn({2: 40})
    assert order.expected(2) == 22 and order.expected(1) == 2
    assert order.expected(1, cautious=True) == 1
    with pytest.raises(ValueError, match="3 utterances but 1 paddings"):
        DecodingOrder([[0], [1], [2]], ["a"])


def decoding(errors, order, accept):
    """A scorer that decodes batches of eight as they are ordered."""

    def score(selection, incumbent):
        own = errors["+".join(candidate.name for candidate in selection)]
        race, done = Race(incumbent, accept), []
        for batch in order.batches():
            done += batch
            total = sum(own[u] for u in done)
            part = Tally(total, len(done), False, utterances=len(done))
            if len(done) < len(own) and race.lost(part):
                break
        order.learn({u: own[u] for u in done})
        whole = len(done) == len(own)
        return part.completed() if whole else part

    return score


def test_exchanging_utterances_finds_losers_earlier_and_picks_the_same(
    make_pool,
):
    saved = {}
    for seed in range(20):
        generator = random.Random(seed)
        hard = [generator.random() < 0.3 for _ in range(128)]

        class Errors(dict):
            """Merges stumble over the same words, more or less."""

            def __missing__(self, name, hard=hard):
                own = random.Random(f"{name}{len(hard)}{sum(hard)}")
                self[name] = [h * own.choice([0, 1, 1, 2]) for h in hard]
                return self[name]

        pool, errors = make_pool("abcdefgh"), Errors()
        picks = set()
        for paddings in (None, ["all"] * 128):
            for racing in (True, False):
                order = DecodingOrder(
                    [list(range(at, at + 8)) for at in range(0, 128, 8)],
                    paddings,
                )
                result = GreedySearch().run(
                    pool,
                    decoding(errors, order, "lt"),
                    progress=False,
                    racing=racing,
                )
                picks.add((tuple(result.selected), result.tally.errors))
                if racing:
                    found = saved.setdefault(paddings is None, [])
                    found.append(result.savings.fraction_of_rejected)
        assert len(picks) == 1
    as_they_came, exchanged = (sum(saved[kind]) / 20 for kind in (True, False))
    assert exchanged > 0.4 > as_they_came + Fraction(1, 10)
