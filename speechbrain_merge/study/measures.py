"""Measures beside the error rate, of what a study has decoded.

A measure looks at transcripts alone: what was said and what was recognised in
each utterance. So it needs no decoding, and can be added to a study that is
done::

    study: !new:speechbrain_merge.study.Study
        measures:
            SemScore: !new:speechbrain_merge.evaluation.SemanticScore

It is any callable ``(references, hypotheses) -> list of float`` that gives each
utterance a number from 0 to 1 (see ``evaluation/measured.py``), and is shown
times 100, as the mean over the utterances of a set. What was measured stands
beside the scores, in ``scores/<set>-<key>.<measure>.json``, and is measured
again when the measure has other settings.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger
from speechbrain_merge.evaluation import measured
from speechbrain_merge.evaluation.error_rates import UtteranceScore
from speechbrain_merge.records.checked import fields, mapped, number
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.file_hashes import file_fingerprint
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.once import known_record
from speechbrain_merge.records.written_check import with_check
from speechbrain_merge.study.counted import ADVICE
from speechbrain_merge.study.tables import spread
from speechbrain_merge.study.testing import scores_of, scores_path

logger = get_logger(__name__)

_outcome = fields({"mean": number(), "utterances": mapped(number())})


def check_measures(measures: Mapping) -> dict:
    """The measures of a YAML, checked.

    Arguments
    ---------
    measures : dict
        Name to callable.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Where one is not callable, or a name cannot be that of a file.
    """
    for name, measure in measures.items():
        if not callable(measure):
            raise ValueError(
                f"`measures`: {name} is {measure!r}; expected a callable, such "
                "as !new:speechbrain_merge.evaluation.SemanticScore."
            )
        if not str(name).replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"`measures`: the name {name!r} may have letters, digits, - "
                "and _."
            )
    return dict(measures)


def require_measures(measures: Mapping) -> None:
    """Raises where a measure has a model that is not there.

    Arguments
    ---------
    measures : dict
        Name to measure. One with a method ``require`` is asked.

    Raises
    ------
    ValueError
        Before anything is trained.
    """
    for name, measure in measures.items():
        if hasattr(measure, "require"):
            try:
                measure.require()
            except (ImportError, ValueError) as error:
                raise ValueError(f"`measures`: {name}: {error}") from error


def add_measures(study, results: Mapping) -> None:
    """Measures all rows of the results, and notes the means in them.

    Arguments
    ---------
    study : Study
        With ``measures``.
    results : dict
        See ``study/results.py``. The counts of each set get ``measures``, name
        to mean.
    """
    for row in results["rows"] if study.measures else ():
        for modes in row["sets"].values():
            for sets in modes.values():
                for counts in sets.values():
                    scores = scores_of(study.folder, counts)
                    path = scores_path(study.folder, counts)
                    found = counts.setdefault("measures", {})
                    for name, measure in study.measures.items():
                        found[name] = mean_of(name, measure, path, scores)


def measure_rows(results: Mapping, mode: str, name: str) -> tuple:
    """Header and cells of a measure beside the error rate.

    Arguments
    ---------
    results : dict
        See ``study/results.py``.
    mode : str
        One of its modes.
    name : str
        The measure.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Times 100; means over the seeds, with their standard deviation. The
        last column is the mean over the sets.

    Example
    -------
    >>> sets = {"a": {"measures": {"Sem": 0.9}}, "b": {"measures": {"Sem": 1}}}
    >>> row = {"title": "aode", "sets": {"7": {"usual": sets}}}
    >>> results = {"tests": ["a", "b"], "seeds": [7], "rows": [row]}
    >>> measure_rows(results, "usual", "Sem")
    (['Sem', 'a', 'b', 'mean'], [['aode', '90.0', '100.0', '95.0']])
    """
    rows = []
    for row in results["rows"]:
        by_set = []
        for one in results["tests"]:
            counts = [
                row["sets"][str(seed)][mode].get(one)
                for seed in results["seeds"]
            ]
            known = [each["measures"][name] for each in counts if each]
            by_set.append([100 * value for value in known])
        means = [statistics.fmean(values) for values in zip(*by_set)]
        rows.append([row["title"], *map(spread, by_set), spread(means)])
    return [name, *results["tests"], "mean"], rows


def mean_of(
    name: str,
    measure: Callable,
    path: Path,
    scores: Sequence[UtteranceScore],
) -> float:
    """The mean of a measure over the utterances of one file of scores.

    Arguments
    ---------
    name : str
        The measure's name.
    measure : callable
        ``(references, hypotheses) -> list of float``.
    path : Path
        The file; what was measured is kept beside it.
    scores : list of UtteranceScore
        What the file holds.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Where the measure gives other than one number for each utterance, or
        what is kept is no mean of the numbers beside it.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances, write_scores
    >>> path = getfixture("tmp_path") / "phone.jsonl"
    >>> said, heard = {"a": "x y", "b": "z"}, {"a": "x y", "b": "w"}
    >>> scores = score_utterances(said, heard)
    >>> write_scores(path, scores)
    >>> def exact(references, hypotheses):
    ...     return [float(r == h) for r, h in zip(references, hypotheses)]
    >>> mean_of("exact", exact, path, scores)
    0.5
    """
    record = path.with_name(f"{path.stem}.{name}.json")
    settings = {"measure": described(measure), "scores": file_fingerprint(path)}
    known = known_record(record)
    if known is not None and known["settings"] == settings:
        return _kept_mean(known["outcome"], scores, record)
    logger.info(f"{name} of {path.name}: {len(scores)} utterances")
    values = measured(name, measure, scores)
    mean = statistics.fmean(values.values())
    outcome = {"mean": mean, "utterances": values}
    found = with_check({"settings": settings, "outcome": outcome})
    write_whole(record, json.dumps(found, indent=1) + "\n")
    return mean


def _kept_mean(outcome, scores, record):
    """The mean that a record keeps, if it is that of its utterances."""
    where = f"{record}, key 'outcome'"
    found = _outcome(outcome, where)
    values = found["utterances"]
    if set(values) != {score.id for score in scores} or not math.isclose(
        found["mean"], statistics.fmean(values.values()), abs_tol=1e-9
    ):
        raise RecordError(
            f"{where}: 'mean' is not that of the utterances of "
            f"{record.name.partition('.')[0]}.jsonl. {ADVICE}"
        )
    return found["mean"]


def described(value: Any) -> Any:
    """An object as plain data: its class and its public attributes.

    Arguments
    ---------
    value : object
        A measure, or a part of one.

    Returns
    -------
    object
        Plain data, by which the measure is known again.

    Example
    -------
    >>> from speechbrain_merge.evaluation import BERTScore
    >>> described(BERTScore(model="folder", layer=3))["layer"]
    3
    """
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    if hasattr(value, "__qualname__"):  # a function or class
        return f"{value.__module__}.{value.__qualname__}"
    public = {
        name: described(entry)
        for name, entry in vars(value).items()
        if not name.startswith("_")
    }
    return {"class": described(type(value)), **public}
