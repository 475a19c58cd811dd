"""Significance tests against hand computation and an independent MAPSSWE."""

import dataclasses
import itertools
import math
import random
import re

import numpy
import pytest
from scipy import stats

from speechbrain_merge.evaluation import (
    ErrorCounts,
    UtteranceScore,
    confidence_interval,
    holm,
    macro_bootstrap,
    mapsswe,
    paired_bootstrap,
    score_utterances,
    sign_flip_p_value,
)


def systems(count=80, seed=11, keep=(0.8, 0.9)):
    """Two systems of different quality on the same utterances."""
    draw = random.Random(seed)
    words = "abcdefghij"
    said = {
        f"u{i}": draw.choices(words, k=draw.randint(3, 25))
        for i in range(count)
    }

    def hear(text, share):
        heard = []
        for word in text:
            if draw.random() < share:
                heard.append(word)
            elif draw.random() < 0.5:
                heard.append("x")
            if draw.random() > share + 0.05:
                heard.append("y")
        return heard

    return [
        score_utterances(said, {n: hear(t, share) for n, t in said.items()})
        for share in keep
    ]


def straightforward_mapsswe(first, second):
    """The test written another way: by splitting strings.

    Every word and every gap between words is a letter: ``e`` where a system
    errs, ``c`` for a word correct in both. Two ``c`` or more part segments.
    Scores of an utterance by several trainings are next to each other.
    """
    differences = []
    for _, pairs in itertools.groupby(
        zip(first, second), lambda pair: pair[0].id.partition("@")[0]
    ):
        columns, reference = [], ()
        for score in itertools.chain(*zip(*pairs)):
            reference = score.reference
            gaps, marks = [0], []
            for operation in score.operations:
                if operation == "I":
                    gaps[-1] += 1
                else:
                    marks.append(int(operation != "="))
                    gaps.append(0)
            columns.append((gaps, marks))
        half = len(columns) // 2

        def amount(counts):
            return sum(counts[half:]) - sum(counts[:half])

        letters, amounts = "", []
        for i in range(len(reference) + 1):
            inserted = [gaps[i] for gaps, _ in columns]
            if any(inserted):
                letters += "e"
                amounts.append(amount(inserted))
            if i < len(reference):
                wrong = [marks[i] for _, marks in columns]
                letters += "e" if any(wrong) else "c"
                amounts.append(amount(wrong))
        start = 0
        for good in [*re.finditer("cc+", letters), None]:
            stop = good.start() if good else len(letters)
            if "e" in letters[start:stop]:
                differences.append(sum(amounts[start:stop]))
            start = good.end() if good else stop
    t = stats.ttest_1samp(differences, 0).statistic
    return t, 2 * stats.norm.cdf(-abs(t)), differences


@pytest.mark.parametrize("seed", range(5))
def test_mapsswe_agrees_with_another_implementation(seed):
    first, second = systems(count=250, seed=seed)
    found = mapsswe(first, second)
    z, p, differences = straightforward_mapsswe(first, second)
    assert found.segments == len(differences)
    assert found.differing == numpy.count_nonzero(differences) >= 100
    assert found.z == pytest.approx(z)
    assert (found.p_value, found.test) == (pytest.approx(p), "normal")
    back = mapsswe(second, first)
    assert (back.z, back.p_value) == (-found.z, found.p_value)


def trained_again(trainings):
    """Scores of several trainings in one list, and the utterance of each.

    Those of an utterance are next to each other.
    """
    scores = [
        dataclasses.replace(score, id=f"{score.id}@{number}")
        for one in zip(*trainings)
        for number, score in enumerate(one)
    ]
    return scores, {s.id: s.id.partition("@")[0] for s in scores}


@pytest.mark.parametrize("trainings", [2, 3])
def test_several_trainings_agree_with_another_implementation(trainings):
    """The same utterances, heard by systems of each quality several times."""
    _, other = systems(seed=5)
    heard: tuple = ([], [])
    for number in range(trainings):
        for kept, share in zip(heard, (0.8, 0.9)):
            draw = random.Random(f"{number} {share}")
            kept.append(
                score_utterances(
                    {score.id: score.reference for score in other},
                    {
                        score.id: [
                            w for w in score.reference if draw.random() < share
                        ]
                        for score in other
                    },
                )
            )
    first, utterances = trained_again(heard[0])
    second, _ = trained_again(heard[1])
    found = mapsswe(first, second, utterances=utterances)
    z, _, differences = straightforward_mapsswe(first, second)
    assert found.segments == len(differences)
    assert found.z == pytest.approx(z)
    errors = [sum(score.errors for score in one) for one in (first, second)]
    assert sum(differences) == errors[1] - errors[0]
    # in whatever order the trainings come
    back = mapsswe(first[::-1], second, utterances=utterances)
    assert back.p_value == pytest.approx(found.p_value)


def test_the_same_training_again_is_no_evidence():
    """Three copies made p = 0.0004 of p = 0.06."""
    first, second = systems(count=20, keep=(0.84, 0.87))
    alone = mapsswe(first, second)
    assert alone.p_value > 0.05
    one, utterances = trained_again([first] * 3)
    other, _ = trained_again([second] * 3)
    again = mapsswe(one, other, utterances=utterances)
    assert again.segments == alone.segments
    assert again.z == pytest.approx(alone.z)
    assert again.p_value == pytest.approx(alone.p_value)
    assert mapsswe(one, other).p_value < alone.p_value / 5


def test_equal_systems_that_were_trained_often_are_rarely_called_different():
    """An utterance is hard for all trainings of a system. At 0.05, each score
    by itself called 16 % of equal systems different."""
    draw, trials, count = random.Random(7), 400, 40
    right = score_utterances({"u": "a b"}, {"u": "a b"})[0]
    wrong = score_utterances({"u": "a b"}, {"u": "a x"})[0]
    called = 0
    for _ in range(trials):
        pair = []
        for _ in range(2):
            hard = [draw.choice((0.1, 0.9)) for _ in range(count)]
            trained = [
                [
                    dataclasses.replace(
                        wrong if draw.random() < chance else right, id=f"u{i}"
                    )
                    for i, chance in enumerate(hard)
                ]
                for _ in range(3)
            ]
            scores, utterances = trained_again(trained)
            pair.append(scores)
        called += mapsswe(*pair, utterances=utterances).p_value <= 0.05
    # three standard deviations of a share of 0.05
    assert called / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_score_of_no_utterance_is_refused():
    first, second = systems(count=3)
    with pytest.raises(ValueError, match="2 scores are of no utterance"):
        mapsswe(first, second, utterances={"u0": "u0"})


@pytest.mark.parametrize("seed", range(20))
def test_exact_p_value_by_listing_all_swaps(seed):
    """With errors of several words in a segment, and with draws."""
    first, second = systems(count=seed % 3 + 1, seed=seed)
    found = mapsswe(first, second)
    _, _, differences = straightforward_mapsswe(first, second)
    differing = [each for each in differences if each]
    sums = [
        sum(sign * each for sign, each in zip(signs, differing))
        for signs in itertools.product((1, -1), repeat=len(differing))
    ]
    far = sum(abs(each) >= abs(sum(differing)) for each in sums)
    assert found.test == "exact"
    assert found.p_value == pytest.approx(far / len(sums), rel=1e-12)


def test_exact_and_normal_meet_where_one_takes_over():
    generator = random.Random(3)
    for count in (80, 99, 100, 120):
        differences = [
            generator.choice((-1, -1, 1, 2, -2)) for _ in range(count)
        ]
        z = stats.ttest_1samp(differences, 0).statistic
        exact = sign_flip_p_value(differences)
        normal = 2 * stats.norm.sf(abs(z))
        assert exact == pytest.approx(normal, rel=0.5)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10, 40])
def test_equal_systems_are_rarely_called_different(count):
    """At 0.05 it was 49, 25, 13, 22 and 10 % for 2, 3, 4, 6 and 10."""
    said = {f"u{i}": "a b" for i in range(count)}
    draw = random.Random(count)
    trials, called = 500, 0
    right = score_utterances({"u": "a b"}, {"u": "a b"})[0]
    wrong = score_utterances({"u": "a b"}, {"u": "a x"})[0]
    for _ in range(trials):
        pair = [
            [
                dataclasses.replace(wrong if bad else right, id=name)
                for name, bad in zip(said, draw.choices((0, 1), k=count))
            ]
            for _ in range(2)
        ]
        found = mapsswe(*pair)
        assert found.test == "exact"
        assert found.p_value >= 2**-found.differing
        called += found.p_value <= 0.05
    # three standard deviations of a share of 0.05
    assert called / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    if count < 6:
        assert called == 0


def test_sctk_test_case():
    """sclite's file1 and file2: 13 words of reference segments, 9 and 7
    errors in 3 segments, mean 0.667, standard deviation 0.577, Z 2.000."""
    words = tuple(f"word{place}" for place in range(11))

    def scored(*rows):
        return [
            UtteranceScore(
                name,
                ErrorCounts(
                    insertions=operations.count("I"),
                    deletions=operations.count("D"),
                    substitutions=operations.count("S"),
                    words=len(reference),
                ),
                reference,
                (),
                operations,
            )
            for name, reference, operations in rows
        ]

    mono = scored(("000", (), "I"), ("123", words, "=DS=SSS==D=II"))
    word = scored(("000", (), ""), ("123", words, "=DS=SSS==SS"))
    found = mapsswe(word, mono)
    assert (found.segments, found.differing) == (3, 2)
    assert found.mean_difference == pytest.approx(0.667, abs=5e-4)
    assert found.z == pytest.approx(2.0, abs=5e-4)
    # sclite calls this different at 0.05; of four swaps two are as far
    assert (found.p_value, found.test) == (0.5, "exact")


def test_sign_flips_of_thousands():
    draw = random.Random(5)
    differences = [draw.choice((-1, 0, 1, 2)) for _ in range(3000)]
    z = sum(differences) / math.sqrt(sum(each**2 for each in differences))
    found = sign_flip_p_value(differences)
    assert 0 < found == pytest.approx(2 * stats.norm.sf(z), rel=0.5)
    with pytest.raises(TypeError, match="0.123 is not a whole number"):
        sign_flip_p_value([1, 0.123])
    assert sign_flip_p_value([]) == sign_flip_p_value([0, 0]) == 1


def test_mapsswe_by_hand():
    said = {"u1": "a b c d e f g h", "u2": "a b c"}
    # u1: a wrong; b c correct in both part it from d..f, where one word e
    # correct in both does not part d from f. u2: nothing correct apart.
    first = score_utterances(said, {"u1": "x b c x e f g h", "u2": "a x c"})
    second = score_utterances(said, {"u1": "a b c d e x g h", "u2": "a x c d"})
    # segments: (1, 0), (1, 1), (1, 2) errors of (first, second)
    found = mapsswe(first, second)
    assert found.segments == 3
    assert found.mean_difference == 0
    assert (found.z, found.p_value) == (0, 1)
    # with one correct word parting them, u2 and d..f fall in two each
    assert mapsswe(first, second, minimum_correct=1).segments == 5


def test_mapsswe_where_luck_has_no_say():
    said = {f"u{i}": "a b" for i in range(4)}
    right = score_utterances(said, said)
    wrong = score_utterances(said, dict.fromkeys(said, "a x"))
    assert mapsswe(right, right).p_value == 1
    # every segment differs by one error: no spread at all, and still a p
    found = mapsswe(wrong, right)
    assert (found.z, found.p_value) == (-math.inf, 0.125)
    two = mapsswe(wrong[:2], right[:2])
    assert (two.z, two.p_value, two.test) == (-math.inf, 0.5, "exact")
    one = {"u0": "a b"}
    alone = mapsswe(
        score_utterances(one, {"u0": "a"}), score_utterances(one, one)
    )
    assert (alone.segments, alone.p_value) == (1, 1)


def test_paired_tests_need_the_same_utterances():
    first, second = systems(count=5)
    with pytest.raises(ValueError, match="1 utterances.*u4"):
        mapsswe(first, second[:-1])
    with pytest.raises(ValueError, match="scored twice"):
        paired_bootstrap(first + first[:1], second)
    other = score_utterances({"u": "a"}, {"u": "a"})
    longer = score_utterances({"u": "a b"}, {"u": "a"})
    with pytest.raises(ValueError, match="different references"):
        mapsswe(other, longer)


def test_bootstrap_of_two_utterances_is_exact():
    # u1: 1 of 2 words wrong, u2: none of 2. Of the four equally likely
    # test sets the rates are 50, 25, 25 and 0.
    said = {"u1": "a b", "u2": "c d"}
    heard = score_utterances(said, {"u1": "a x", "u2": "c d"})
    right = score_utterances(said, said)
    found = paired_bootstrap(heard, right, replicates=20_000)
    assert found.difference == -25
    assert found.probability_of_improvement == pytest.approx(0.75, abs=0.01)
    assert (found.low, found.high) == (-50, 0)
    assert found.standard_error == pytest.approx(math.sqrt(312.5), rel=0.02)
    interval = confidence_interval(heard, replicates=20_000)
    assert (interval.rate, interval.low, interval.high) == (25, 0, 50)


def test_bootstrap_agrees_with_the_central_limit():
    first, second = systems(count=400)
    found = paired_bootstrap(first, second)
    errors = numpy.array([b.errors - a.errors for a, b in zip(first, second)])
    words = numpy.array([a.words for a in first])
    ratio = errors.sum() / words.sum()
    # linearised standard error of a ratio estimate
    error = (errors - ratio * words).std(ddof=1) * math.sqrt(400) / words.sum()
    assert found.difference == pytest.approx(100 * ratio)
    assert found.standard_error == pytest.approx(100 * error, rel=0.05)
    assert found.low == pytest.approx(100 * (ratio - 1.96 * error), abs=0.3)
    assert found.high < 0 and found.probability_of_improvement > 0.999


def test_bootstrap_repeats_itself_and_ignores_order():
    first, second = systems(count=30)
    found = paired_bootstrap(first, second, replicates=500, seed=4)
    assert found == paired_bootstrap(first, second, replicates=500, seed=4)
    assert found == paired_bootstrap(
        first, second[::-1], replicates=500, seed=4
    )
    assert found != paired_bootstrap(first, second, replicates=500, seed=5)


def test_drawing_in_parts_changes_nothing(monkeypatch):
    import speechbrain_merge.evaluation.bootstrap as bootstrap

    first, second = systems(count=30)
    whole = paired_bootstrap(first, second, replicates=500)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 30 * 7)
    assert paired_bootstrap(first, second, replicates=500) == whole


def test_blocks_of_equal_fate_widen_the_interval():
    # ten speakers of twenty utterances, all right or all wrong
    said = {f"s{s}_{i}": "a b" for s in range(10) for i in range(20)}
    heard = {name: "a b" if int(name[1]) % 2 else "a" for name in said}
    scores = score_utterances(said, heard)
    speakers = {name: name[:2] for name in said}
    alone = confidence_interval(scores)
    blocks = confidence_interval(scores, blocks=speakers)
    assert (alone.units, blocks.units) == (200, 10)
    assert alone.rate == blocks.rate == 25
    # as 10 draws instead of 200: sqrt(20) as wide
    assert blocks.standard_error / alone.standard_error == pytest.approx(
        math.sqrt(20), rel=0.1
    )
    one = dict.fromkeys(said, "all")
    assert confidence_interval(scores, blocks=one).standard_error == 0


def test_bootstrap_refuses():
    scores = score_utterances({"u1": "a", "u2": "b"}, {"u1": "a", "u2": "b"})
    with pytest.raises(ValueError, match="'u2'"):
        confidence_interval(scores, blocks={"u1": "s"})
    with pytest.raises(ValueError, match="between 0 and 1"):
        confidence_interval(scores, level=95)
    with pytest.raises(ValueError, match="at least 2"):
        confidence_interval(scores, replicates=1)
    with pytest.raises(ValueError, match="no scores"):
        confidence_interval([])
    silence = score_utterances({"u": ""}, {"u": "a"})
    with pytest.raises(ValueError, match="no reference words"):
        confidence_interval(silence)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    assert list(holm({"b": 0.2, "a": 0.01})) == ["b", "a"]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.5])


def test_macro_bootstrap_of_one_set_is_the_paired_one():
    first, second = systems()
    one = macro_bootstrap({"set": first}, {"set": second})
    pair = paired_bootstrap(first, second)
    assert one.difference == pytest.approx(pair.difference, abs=1e-12)
    assert one.low == pytest.approx(pair.low, abs=0.15)
    assert one.high == pytest.approx(pair.high, abs=0.15)
    assert one.units == pair.units


def test_macro_bootstrap_weighs_sets_alike():
    large, small = systems(count=300, seed=1), systems(count=20, seed=2)
    first = {"large": large[0], "small": small[0]}
    second = {"large": large[1], "small": small[1]}
    found = macro_bootstrap(first, second, replicates=20_000, seed=3)
    parts = [paired_bootstrap(first[k], second[k]) for k in first]
    assert found.difference == pytest.approx(
        sum(part.difference for part in parts) / 2
    )
    # errors of independent sets add up in squares
    expected = math.hypot(*(part.standard_error for part in parts)) / 2
    assert found.standard_error == pytest.approx(expected, rel=0.05)
    assert found == macro_bootstrap(first, second, replicates=20_000, seed=3)
    with pytest.raises(ValueError, match="same sets.*'large'.*'small'"):
        macro_bootstrap(first, {"large": large[1]})


def test_an_utterance_with_several_references_is_one_segment():
    """Each system may be the best match of another transcript."""
    spoken = {f"u{i}": "a a b c d e" for i in range(8)}
    fluent = {f"u{i}": "a b c d e" for i in range(8)}
    heard = dict.fromkeys(spoken, "a a b c d x")
    better = dict.fromkeys(spoken, "a b c d e")
    first = score_utterances([spoken, fluent], heard, clip=True)
    second = score_utterances([spoken, fluent], better, clip=True)
    assert first[0].reference != second[0].reference
    found = mapsswe(first, second)
    assert (found.segments, found.differing) == (8, 8)
    assert found.mean_difference == -1 and found.p_value == 2 / 2**8
    # other transcripts than the other system's are still refused
    with pytest.raises(ValueError, match="different references"):
        mapsswe(first, score_utterances(fluent, better))


def test_averages_of_equally_good_references_are_tested_exactly():
    spoken, fluent = {"u": "a b", "v": "c"}, {"u": "a b c d", "v": "c"}
    # one of two words and two of four are wrong: equally good, 1.5 of three
    first = score_utterances([spoken, fluent], {"u": "a c", "v": "c"})
    assert [score.errors for score in first] == [1.5, 0]
    right = score_utterances([spoken, fluent], fluent)
    found = mapsswe(first, right)
    assert (found.mean_difference, found.p_value) == (-1.5, 1)
    halves = sign_flip_p_value([0.5, -1.5, 1.0])
    assert halves == sign_flip_p_value([1, -3, 2])
    with pytest.raises(TypeError, match="0.123 is not a whole number"):
        sign_flip_p_value([0.123])


def test_clipped_errors_count_as_the_rate_counts_them():
    said = {"u": "a b"}
    loop = score_utterances(said, {"u": "a " * 30}, clip=True)
    right = score_utterances(said, said)
    found = mapsswe(right, loop)
    assert (found.segments, found.mean_difference) == (1, 2)
