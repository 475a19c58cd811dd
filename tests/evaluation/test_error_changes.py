"""What changed between two systems."""

import jiwer
import pytest

from speechbrain_merge.evaluation import (
    changed_utterance_rows,
    changed_utterances,
    error_change_rows,
    error_changes,
    read_scores,
    score_utterances,
    write_scores,
)
from speechbrain_merge.report import markdown_table

# each with one alignment only, so that every tool counts the same
SAID = {
    "a": "the cat sat on the mat",
    "b": "one two three four five",
    "c": "yes",
    "d": "no more | of this",
    "e": "hello world",
}
BEFORE = {
    "a": "the bat sat the mat now",
    "b": "one two three four five",
    "c": "yes yes yes",
    "d": "no more | of that",
    "e": "hallo world",
}
AFTER = {
    "a": "the cat sat on the mat",
    "b": "one three four five six",
    "c": "yes yes",
    "d": "no more | of thus",
    "e": "hallo world",
}


@pytest.fixture
def systems(tmp_path):
    """Both systems, as they come back from their files."""
    for name, hypotheses in (("before", BEFORE), ("after", AFTER)):
        write_scores(
            tmp_path / f"{name}.jsonl", score_utterances(SAID, hypotheses)
        )
    return [read_scores(tmp_path / f"{n}.jsonl") for n in ("before", "after")]


def test_kinds_of_errors_are_those_that_jiwer_counts(systems):
    changes = {change.kind: change for change in error_changes(*systems)}
    for hypotheses, moment in ((BEFORE, "before"), (AFTER, "after")):
        counted = jiwer.process_words(
            list(SAID.values()), [hypotheses[name] for name in SAID]
        )
        for kind in ("insertions", "deletions", "substitutions"):
            assert getattr(changes[kind], moment) == getattr(counted, kind)
    assert changes["insertions"].improved == pytest.approx(100 * 1 / 3)
    assert changes["deletions"].improved == 0
    assert changes["substitutions"].improved == pytest.approx(100 * 1 / 3)
    # of all, a and c are better, b is worse
    assert changes["errors"][1:] == (7, 5, 2, 1)
    # the order of utterances does not matter
    assert error_changes(systems[0], systems[1][::-1]) == error_changes(
        *systems
    )


def test_table_of_kinds(systems):
    table = markdown_table(*error_change_rows(*systems))
    assert table.splitlines()[2:] == [
        "| insertions | 3 | 2 | -1 | 33.3 % | 2 | 1 |",
        "| deletions | 1 | 1 | 0 | 0.0 % | 1 | 1 |",
        "| substitutions | 3 | 2 | -1 | 33.3 % | 1 | 0 |",
        "| all | 7 | 5 | -2 | 28.6 % | 2 | 1 |",
    ]
    perfect = score_utterances(SAID, SAID)
    rows = error_change_rows(perfect, systems[1])[1]
    assert rows[0][4] == "–" and rows[0][3] == "+2"


def test_utterances_from_the_best_to_the_worst(systems):
    assert [pair[0].id for pair in changed_utterances(*systems)] == [
        "a",
        "c",
        "d",
        "b",
    ]

    def named(**counts):
        return [pair[0].id for pair in changed_utterances(*systems, **counts)]

    assert named(best=1, worst=1) == ["a", "b"]
    # d changed without a gain or a loss
    assert named(best=9, worst=9) == ["a", "c", "b"]
    assert named(best=1) == ["a"] and named(worst=1) == ["b"]
    # and the other way round
    pairs = changed_utterances(systems[1], systems[0], best=1, worst=1)
    assert [pair[0].id for pair in pairs] == ["b", "a"]


def test_table_of_utterances(systems):
    table = markdown_table(
        *changed_utterance_rows(*systems, best=None, worst=None)
    )
    lines = table.splitlines()[2:]
    assert lines[0] == (
        "| a | -3 | the cat sat on the mat | "
        "the **bat** sat (…) the mat **now** | the cat sat on the mat |"
    )
    # a bar in a transcript does not end a cell
    assert lines[2].startswith(r"| d | 0 | no more \| of this |")
    assert lines[3].split(" | ")[4] == "one (…) three four five **six** |"


def test_systems_of_other_utterances(systems):
    with pytest.raises(ValueError, match="scored for one system only"):
        error_changes(systems[0], systems[1][1:])
