"""Scores of utterances as a file that a person can open.

One JSON object a line, in plain words: what was said, what was recognised, how
they align. Keep it beside the table of a run, and any two systems can be tested
against each other later, without decoding anything again.

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
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import parse_json


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
    >>> path = getfixture("tmp_path") / "scores.jsonl"
    >>> write_scores(path, [])
    >>> path.read_text()
    ''
    """
    lines = [
        json.dumps(dataclasses.asdict(score), ensure_ascii=False) + "\n"
        for score in scores
    ]
    write_whole(path, "".join(lines))


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
        Where a line is not a score; the message says which.

    Example
    -------
    >>> path = getfixture("tmp_path") / "scores.jsonl"
    >>> write_scores(path, [])
    >>> read_scores(path)
    []
    """
    scores = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                fields = parse_json(line, "it")
                fields["counts"] = ErrorCounts(**fields["counts"])
                fields["reference"] = tuple(fields["reference"])
                fields["hypothesis"] = tuple(fields["hypothesis"])
                scores.append(UtteranceScore(**fields))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {number} is not the score of an utterance: "
                    f"{error}"
                ) from error
    return scores
