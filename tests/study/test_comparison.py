"""Which differences of a study's models are told apart, and what is bold."""

from types import SimpleNamespace

import pytest

from speechbrain_merge.evaluation import score_utterances, write_scores
from speechbrain_merge.report import markdown_table
from speechbrain_merge.study.compared import Compared, groups_of, read_compared
from speechbrain_merge.study.comparison import compare_models
from speechbrain_merge.study.results import flat
from speechbrain_merge.study.tables import comparison_rows, cost_rows, main_rows

UTTERANCES = [f"u{number:02d}" for number in range(40)]
SPEAKERS = {name: f"s{number % 8}" for number, name in enumerate(UTTERANCES)}
SAID = dict.fromkeys(UTTERANCES, "one two three four five")


def heard(wrong):
    """Hypotheses with one wrong word in so many utterances."""
    return {
        name: "one two three four" if number < wrong else SAID[name]
        for number, name in enumerate(UTTERANCES)
    }


@pytest.fixture
def study(tmp_path):
    """Makes the results of models with so many errors, by seed and set."""
    (tmp_path / "scores").mkdir()

    def make(models, compare=(), reference=None, bounds=(), speakers=SPEAKERS):
        rows = []
        for name, seeds in models.items():
            sets = {}
            for seed, wrong in seeds.items():
                place = f"scores/digits-{name}-{seed}.jsonl"
                scores = score_utterances(
                    SAID, heard(wrong), durations=dict.fromkeys(UTTERANCES, 2.0)
                )
                write_scores(tmp_path / place, scores)
                sets[seed] = {
                    "usual": {
                        "digits": {
                            "errors": wrong,
                            "words": 200,
                            "utterances": 40,
                            "scores": place,
                        }
                    }
                }
            rows.append(
                {
                    "name": name,
                    "title": name.upper(),
                    "group": "merge",
                    "domains": [],
                    "trainings": [],
                    "bound": name in bounds,
                    "sets": sets,
                    "about": {seed: {} for seed in seeds},
                }
            )
        results = {
            "metric": "WER",
            "domains": ["digits"],
            "tests": ["digits"],
            "retention": None,
            "modes": ["usual"],
            "seeds": [int(seed) for seed in rows[0]["sets"]],
            "rows": rows,
        }
        asked = SimpleNamespace(
            folder=tmp_path,
            compare=[Compared(*pair) for pair in compare],
            reference=reference,
        )
        results["comparisons"] = compare_models(
            results, asked, {"digits": speakers}
        )
        return results

    return make


def test_a_clear_difference_is_told_apart_and_a_small_one_is_not(study):
    results = study(
        {"a": {"1": 30}, "b": {"1": 29}, "c": {"1": 4}},
        compare=[("a", "b"), ("a", "c")],
    )
    small, large = results["comparisons"]["pairs"]
    assert small["difference"] == pytest.approx(-0.5)
    assert large["difference"] == pytest.approx(-13.0)
    assert large["high"] < 0 and large["holm"] < 0.05 < small["holm"]
    # two tests: the smaller p-value counts twice
    assert large["holm"] == pytest.approx(2 * large["p"])
    # all utterances of a speaker go together
    assert large["blocks"] == 8
    table = markdown_table(*comparison_rows(results))
    assert "| B against A | -0.50 |" in table and table.count("| yes |") == 1


def test_seeds_are_added_up_and_stay_in_the_blocks_of_their_speakers(study):
    one = {"1": 30, "2": 28, "3": 29}
    other = {"1": 20, "2": 16, "3": 12}
    results = study({"a": one, "b": other}, compare=[("a", "b")])
    [pair] = results["comparisons"]["pairs"]
    assert pair["difference"] == pytest.approx(100 * (48 - 87) / 600)
    assert pair["blocks"] == 8
    header, rows = main_rows(results, "usual", {})
    assert rows[0][1] == "14.5 ± 0.5"
    assert rows[1][1] == "**8.0 ± 2.0**"
    assert "40 utterances" in header[1]
    pooled = flat(results)["rows"]
    assert [row["sets"]["digits"]["errors"] for row in pooled] == [87, 48]


def test_seeds_that_hear_alike_are_no_more_evidence_than_one(study):
    """MAPSSWE took an utterance of each seed for an utterance more: p went
    from 0.03 to 8e-6, and the better model became bold."""
    wrong = {"a": 24, "b": 18}
    alone = study({n: {"1": k} for n, k in wrong.items()}, [("a", "b")])
    often = study(
        {n: dict.fromkeys("123", k) for n, k in wrong.items()}, [("a", "b")]
    )
    [one], [three] = (each["comparisons"]["pairs"] for each in (alone, often))
    assert one["p"] == 2 / 2**6  # six utterances, all in favour of b
    for key in ("p", "low", "high", "blocks", "segments"):
        assert three[key] == pytest.approx(one[key])
    best = often["comparisons"]["best"]["usual"]["digits"]
    assert (best["name"], best["p"]) == ("b", pytest.approx(2 / 2**6))


def test_only_what_is_told_apart_from_the_next_best_is_bold(study):
    close = study({"a": {"1": 6}, "b": {"1": 5}, "c": {"1": 30}})
    best = close["comparisons"]["best"]["usual"]["digits"]
    assert (best["name"], best["next"]) == ("b", "a")
    assert not best["significant"]
    assert "**" not in markdown_table(*main_rows(close, "usual", {}))
    clear = study({"a": {"1": 30}, "b": {"1": 2}})
    assert "**1.0**" in markdown_table(*main_rows(clear, "usual", {}))


def test_a_bound_is_no_best_model(study):
    results = study(
        {"a": {"1": 30}, "b": {"1": 10}, "oracle": {"1": 1}}, bounds=["oracle"]
    )
    best = results["comparisons"]["best"]["usual"]["digits"]
    assert (best["name"], best["next"]) == ("b", "a")


def test_a_reference_is_compared_with_every_row(study):
    results = study(
        {"a": {"1": 9}, "b": {"1": 8}, "c": {"1": 7}}, reference="b"
    )
    names = [pair["names"] for pair in results["comparisons"]["pairs"]]
    assert names == [["b", "a"], ["b", "c"]]


def test_one_speaker_is_no_block(study):
    """Drawn again and again, it would show no spread."""
    alone = dict.fromkeys(UTTERANCES, "the same")
    results = study(
        {"a": {"1": 9}, "b": {"1": 5}}, compare=[("a", "b")], speakers=alone
    )
    [pair] = results["comparisons"]["pairs"]
    assert pair["blocks"] == 40
    assert pair["low"] < pair["difference"] < pair["high"]


def test_a_pair_may_be_compared_on_some_sets_only(study):
    """As the benchmark's reference, it stays compared on all of them."""
    models = {"a": {"1": 30}, "b": {"1": 10}}
    pairs = [("a", "b", ("digits",)), ("a", "b", ("read",)), ("a", "b", ())]
    results = study(models, compare=pairs, reference="a")
    narrow, whole = results["comparisons"]["pairs"]
    assert narrow["on"] == ["digits"] and "on" not in whole
    assert narrow["difference"] == whole["difference"]
    table = markdown_table(*comparison_rows(results))
    assert "| B against A, on digits | -10.00 |" in table
    assert "| B against A | -10.00 |" in table
    shown = markdown_table(*cost_rows(results, {}))
    assert "-10.0" in shown


@pytest.mark.parametrize(
    "entry, expected",
    [
        (["a", "b"], None),
        ({"models": ["a", "b"], "sets": "retention"}, ("read", "stories")),
        ({"models": ["a", "b"], "sets": "domains"}, ("calls",)),
        ({"models": ["a", "b"], "sets": ["read", "speech"]}, ("read", "calls")),
    ],
)
def test_sets_are_named_by_what_they_are(entry, expected):
    asked = SimpleNamespace(
        domains=["calls"],
        tests=["calls", "read", "stories"],
        means={"speech": ["calls", "read"]},
        retention=None,
    )
    pair = read_compared(entry, ["a", "b"], groups_of(asked))
    assert pair == Compared("a", "b", expected)


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="`sets` of `compare`.*'rea'.*read"):
        read_compared(
            {"models": ["a", "b"], "sets": "rea"}, "ab", {"read": ["read"]}
        )
