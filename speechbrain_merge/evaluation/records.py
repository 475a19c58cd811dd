"""Scores of utterances as a file that a person can open.

One JSON object a line, in plain words: what was said, what was recognised, how
they align. Keep it beside the table of a run, and any two systems can be tested
against each other later, without decoding anything again.

Each line says how many there are (``of``) and has a check of itself and of the
one before it, so that a file that was cut, or a word that was changed, is no
other error rate. Files of earlier versions have neither, and are read all the
same.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> scores = score_utterances({"u1": "a b"}, {"u1": "a"}, durations={"u1": 1.5})
>>> folder = getfixture("tmp_path")
>>> write_scores(folder / "phone.jsonl", scores)
>>> read_scores(folder / "phone.jsonl") == scores
True

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import json
from collections.abc import Iterable

from speechbrain_merge.evaluation.error_rates import ErrorCounts, UtteranceScore
from speechbrain_merge.records.checked import (
    fields,
    listed,
    number,
    optional,
    text,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import parse_json, read_text
from speechbrain_merge.records.written_check import check_of

_ANEW = "Score the set anew."

LIMIT = 1 << 30
"""Bytes of a file of scores: about a million utterances."""


def _words(value, where):
    return tuple(listed(text())(value, where))


_counts = fields(
    {},
    {
        "insertions": number(0),
        "deletions": number(0),
        "substitutions": number(0),
        "words": number(0),
        "utterances": whole(0),
        "wrong_sentences": whole(0),
    },
    unknown="refuse",
)
_score = fields(
    {
        "id": text(),
        "counts": _counts,
        "reference": _words,
        "hypothesis": _words,
        "operations": text(),
    },
    {
        "duration": optional(number(0)),
        "references": whole(1),
        "of": whole(1),
        "check": text(16),
    },
    unknown="refuse",
)


def write_scores(path, scores: Iterable[UtteranceScore]) -> None:
    """Write scores, whole or not at all.

    Arguments
    ---------
    path : str or Path
        File to write; one that is there is replaced.
    scores : iterable of UtteranceScore
        Scores of one system on one set.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> path = getfixture("tmp_path") / "scores.jsonl"
    >>> write_scores(path, score_utterances({"u": "a"}, {"u": "a"}))
    >>> sorted(json.loads(path.read_text()))
    ['check', 'counts', 'duration', 'hypothesis', 'id', 'of', 'operations', ...]
    """
    rows = [dataclasses.asdict(score) for score in scores]
    lines, check = [], ""
    for row in rows:
        row["of"] = len(rows)
        check = row["check"] = _check_after(check, row)
        lines.append(json.dumps(row, ensure_ascii=False))
    # One of no utterances has a line all the same: an emptied file has none
    write_whole(path, "\n".join(lines) + "\n")


def _check_after(before, row):
    """The check of a line, and of all lines before it."""
    plain = {key: value for key, value in row.items() if key != "check"}
    return check_of([before, plain])


def read_scores(path) -> list[UtteranceScore]:
    """Read what ``write_scores`` wrote.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    list of UtteranceScore

    Raises
    ------
    ValueError
        Where a line is not a score, is one of an utterance that an earlier
        line has, or its counts are not those of its alignment; the message
        says which. Where the file is empty, or lines are missing or changed.

    Example
    -------
    >>> path = getfixture("tmp_path") / "scores.jsonl"
    >>> write_scores(path, [])
    >>> read_scores(path)
    []
    """
    scores, seen = [], set()
    content, check, count = read_text(path, LIMIT), "", None
    if not content:
        raise RecordError(f"{path} is empty. {_ANEW}")
    lines = content.removesuffix("\n").split("\n")
    for place, line in enumerate(lines if any(lines) else [], start=1):
        where = f"{path}, line {place}"
        try:
            row = parse_json(line, where)
            found = _score(row, where)
        except RecordError as error:
            raise RecordError(
                f"{where} is not the score of an utterance: {error}"
            ) from None
        here, known = found.pop("of", None), found.pop("check", None)
        if here != count and place > 1:
            raise RecordError(
                f"{where} says that there are {here} lines, and those before "
                f"it say {count}. {_ANEW}"
            )
        count = here
        if count is not None:
            check = _check_after(check, row)
            if known != check:
                raise RecordError(
                    f"{where}: this line, or one before it, was changed: it "
                    f"does not have the check that it holds. {_ANEW}"
                )
        found["counts"] = ErrorCounts(**found["counts"])
        score = UtteranceScore(**found)
        _check_counts(score, where)
        if score.id in seen:
            raise RecordError(
                f"{where}: utterance {shown(score.id)} is there twice. "
                "Remove one of the two lines."
            )
        seen.add(score.id)
        scores.append(score)
    if count not in (None, len(scores)):
        raise RecordError(
            f"{path} has {len(scores)} lines of {count}: it was cut. {_ANEW}"
        )
    return scores


def _check_counts(score, where):
    """Refuses counts that are not those of the alignment beside them."""
    steps = {name: score.operations.count(name) for name in "=IDS"}
    edits = len(score.operations) - steps["="]
    said = len(score.operations) - steps["I"]
    heard = len(score.operations) - steps["D"]
    fits = (
        sum(steps.values()) == len(score.operations)
        and said == len(score.reference)
        and heard == len(score.hypothesis)
        and score.counts.utterances == 1
    )
    if score.references == 1:  # else averaged over equally good ones
        counts = score.counts
        clipped = steps["I"] - max(0, edits - said)
        fits = fits and (
            counts.insertions in (steps["I"], clipped)
            and (counts.deletions, counts.substitutions)
            == (steps["D"], steps["S"])
            and counts.words == said
            and counts.wrong_sentences == (edits > 0)
        )
    if not fits:
        raise RecordError(
            f"{where}: the counts of utterance {shown(score.id)} are not "
            f"those of its words and of their alignment, "
            f"{shown(score.operations)}. The line was changed or damaged: "
            "score the set anew."
        )
