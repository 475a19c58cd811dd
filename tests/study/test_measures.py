"""Measures beside the error rate, and named columns of means."""

import json
from types import SimpleNamespace

import pytest

from speechbrain_merge.evaluation import (
    BERTScore,
    SemanticScore,
    score_utterances,
    write_scores,
)
from speechbrain_merge.study.measures import (
    add_measures,
    check_measures,
    described,
    measure_rows,
    require_measures,
)
from speechbrain_merge.study.sections import check_sections
from speechbrain_merge.study.tables import main_rows


class Length:
    """The share of words that were recognised; counts its calls."""

    def __init__(self, floor=0.0):
        self.floor, self._calls = floor, 0

    def __call__(self, references, hypotheses):
        self._calls += 1
        return [
            max(self.floor, min(1.0, len(h.split()) / len(r.split())))
            for r, h in zip(references, hypotheses)
        ]


@pytest.fixture
def results(tmp_path):
    """Results of two seeds on two sets, one of which a row lacks."""
    said = {"a": "x y", "b": "x y z w"}
    heard = {"7": {"a": "x", "b": "x y z w"}, "8": {"a": "x y", "b": ""}}
    sets = {}
    for seed, texts in heard.items():
        sets[seed] = {"usual": {}}
        for name in ("phone", "read"):
            path = tmp_path / f"scores/{name}-{seed}.jsonl"
            path.parent.mkdir(exist_ok=True)
            scores = score_utterances(said, texts)
            write_scores(path, scores)
            sets[seed]["usual"][name] = {
                "errors": sum(score.errors for score in scores),
                "words": 6,
                "utterances": 2,
                "scores": f"scores/{path.name}",
            }
    row = {"name": "m", "title": "M", "sets": sets, "trainings": []}
    row.update(group="merge", domains=[], about={"7": {}, "8": {}})
    return {
        "metric": "WER",
        "domains": [],
        "tests": ["phone", "read"],
        "seeds": ["7", "8"],
        "modes": ["usual"],
        "retention": [],
        "means": {},
        "rows": [row],
        "comparisons": {"best": {}},
    }


def test_what_contradicts_the_scores_is_refused(results, tmp_path):
    """Counts, kept means, and numbers that are none."""
    study = SimpleNamespace(folder=tmp_path, measures={"length": Length()})
    add_measures(study, results)
    record = tmp_path / "scores/phone-7.length.json"
    kept = json.loads(record.read_text())
    kept["outcome"]["mean"] = 0.99
    del kept["check"]  # as of a version that wrote none
    record.write_text(json.dumps(kept))
    with pytest.raises(
        ValueError, match=r"phone-7\.length\.json.* not that of"
    ):
        add_measures(study, results)
    record.unlink()
    add_measures(study, results)
    counts = results["rows"][0]["sets"]["8"]["usual"]["read"]
    counts["errors"] += 1
    with pytest.raises(ValueError, match="read-8.jsonl: .* add up to 4 errors"):
        add_measures(study, results)
    counts["errors"] -= 1

    def broken(references, hypotheses):
        return [float("nan")] * len(references)

    study = SimpleNamespace(folder=tmp_path, measures={"broken": broken})
    with pytest.raises(ValueError, match="broken gave nan for utterance a"):
        add_measures(study, results)


def test_rows_are_measured_once_for_their_settings(results, tmp_path):
    measure = Length()
    study = SimpleNamespace(folder=tmp_path, measures={"length": measure})
    add_measures(study, results)
    sets = results["rows"][0]["sets"]
    assert sets["7"]["usual"]["phone"]["measures"] == {"length": 0.75}
    assert sets["8"]["usual"]["read"]["measures"] == {"length": 0.5}
    header, rows = measure_rows(results, "usual", "length")
    assert header == ["length", "phone", "read", "mean"]
    assert rows == [["M", "62.5 ± 17.7", "62.5 ± 17.7", "62.5 ± 17.7"]]
    stored = json.loads((tmp_path / "scores/phone-7.length.json").read_text())
    assert stored["outcome"]["utterances"] == {"a": 0.5, "b": 1.0}
    assert measure._calls == 4
    add_measures(study, results)
    assert measure._calls == 4  # nothing is measured twice
    other = Length(floor=0.6)
    study.measures["length"] = other
    add_measures(study, results)
    assert other._calls == 4
    assert sets["8"]["usual"]["read"]["measures"] == {"length": 0.8}
    # other scores of the same name are measured again
    write_scores(
        tmp_path / "scores/phone-7.jsonl",
        score_utterances({"a": "x"}, {"a": ""}),
    )
    sets["7"]["usual"]["phone"].update(errors=1, words=1, utterances=1)
    add_measures(study, results)
    assert other._calls == 5


def test_a_measure_is_known_by_its_settings():
    first = SemanticScore(BERTScore("folder", 3, None))
    same = SemanticScore(BERTScore("folder", 3, None))
    assert described(first) == described(same)
    for other in (
        SemanticScore(BERTScore("another", 3, None)),
        SemanticScore(BERTScore("folder", 2, None)),
        SemanticScore(
            BERTScore("folder", 3, None),
            weights={"entailment": 1, "bert_score": 0, "phonetic": 0},
        ),
    ):
        assert described(other) != described(first)
    json.dumps(described(first))


def test_wrong_measures_are_told():
    with pytest.raises(ValueError, match="SemScore is 'roberta'"):
        check_measures({"SemScore": "roberta"})
    with pytest.raises(ValueError, match="the name 'a/b'"):
        check_measures({"a/b": Length()})
    missing = SemanticScore(BERTScore("nowhere/at-all"))
    with pytest.raises(ValueError, match="SemScore: `model` is 'nowhere/at"):
        require_measures({"SemScore": missing, "length": Length()})
    require_measures({"length": Length()})


def test_columns_of_means(results):
    results["means"] = {"noisy": ["phone"], "all": ["phone", "read"]}
    header, [row] = main_rows(results, "usual", {})
    titles = [title.partition("\n")[0] for title in header]
    assert titles == ["WER %", "phone", "read", "noisy", "all", "mean"] + [
        "trainings",
        "training",
    ]
    # one error of six with the first seed, four with the second
    assert row[3] == row[4] == "41.7 ± 35.4"


def test_tests_may_be_columns_and_nothing_else():
    wanted = {"models": {"m": {}}, "tests": {"noisy": ["phone"], "all": []}}
    check_sections(wanted)
    check_sections({**wanted, "tests": ["phone"], "measures": None})
    for wrong in ({"noisy": "phone"}, "phone", 7):
        with pytest.raises(ValueError, match="key 'tests'"):
            check_sections({**wanted, "tests": wrong})
    with pytest.raises(ValueError, match="key 'measures'"):
        check_sections({**wanted, "measures": ["SemScore"]})
