"""Tests by domain: the weights in use, on one set after the other.

A Brain that is tested here keeps the errors of a stage in an
``ErrorRateStats``, as SpeechBrain's recipes do; the metric's name in lower case
with ``_metric`` is the usual name of the attribute. Its ``test_name`` says which
set is being tested, for its log.

A recipe whose models can be tested in several ways, such as offline and
streaming, gives its Brain a method ``prepare_test(**settings)``, which is
called before each set with the settings of the mode.

Authors
 * The speechbrain_merge authors 2026
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.brain.decisive import while_running
from speechbrain_merge.evaluation import (
    UtteranceScore,
    from_tracker,
    measured,
    read_scores,
    summarize_scores,
    total,
    write_scores,
)
from speechbrain_merge.records.own_outputs import is_output, write_outputs
from speechbrain_merge.records.ownership import refuse_other
from speechbrain_merge.records.reading import read_json


@while_running
def evaluate_set(
    brain,
    test_set,
    loader_kwargs: Optional[Mapping] = None,
    name: str = "test",
    metric: str = "WER",
    mode: str = "min",
    tracker: Optional[str] = None,
    settings: Optional[Mapping] = None,
) -> list[UtteranceScore]:
    """Evaluates the weights in use on one set.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    test_set : DynamicItemDataset
        The utterances.
    loader_kwargs : dict, optional
        Options of the loader.
    name : str
        The name of the set, for the log.
    metric : str
        The entry of the checkpoints' meta by which the best is found, whose
        normaliser and counters are restored.
    mode : str
        "min" where a lower metric is better, else "max".
    tracker : str, optional
        The attribute that holds the ``ErrorRateStats``.
    settings : dict, optional
        How the set is tested: arguments of the Brain's ``prepare_test``.

    Returns
    -------
    list of UtteranceScore
        With durations, where the data have a column ``duration``.

    Raises
    ------
    ValueError
        When the Brain has no such tracker, or no ``prepare_test``.
    """
    prepare(brain, settings or {})
    brain.test_name = name
    brain.evaluate(
        test_set,
        **{f"{mode}_key": metric},
        test_loader_kwargs=dict(loader_kwargs or {}),
    )
    tracker = tracker or f"{metric.lower()}_metric"
    found = getattr(brain, tracker, None)
    if found is None:
        raise ValueError(
            f"The Brain keeps no `{tracker}` after evaluate(): name the "
            "attribute that holds its ErrorRateStats with `tracker`."
        )
    return from_tracker(found, durations_of(test_set))


@while_running
def prepare(brain, settings: Mapping) -> None:
    """Tells a Brain how its next set is tested.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``prepare_test``, unless there are no settings.
    settings : dict
        Arguments of ``prepare_test``.

    Raises
    ------
    ValueError
        When there are settings, and the Brain does not take them.
    """
    if not settings:
        return
    if not hasattr(brain, "prepare_test"):
        raise ValueError(
            f"`modes` ask for {', '.join(settings)}, and the Brain has no "
            "method `prepare_test(**settings)` that takes them."
        )
    brain.prepare_test(**settings)


def durations_of(test_set) -> Optional[dict]:
    """The seconds of each utterance, where the data tell them.

    Arguments
    ---------
    test_set : DynamicItemDataset
        The utterances.

    Returns
    -------
    dict or None
    """
    rows = getattr(test_set, "data", None)
    if not isinstance(rows, Mapping):
        return None
    if not all("duration" in row for row in rows.values()):
        return None
    return {name: float(row["duration"]) for name, row in rows.items()}


def rates_of(scores: list) -> dict:
    """The counts of one set, with those by duration where it is known.

    Arguments
    ---------
    scores : list of UtteranceScore
        Scores of the utterances.

    Returns
    -------
    dict
        ``errors``, ``words``, ``utterances``, perhaps ``wer`` and ``buckets``.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> rates_of(score_utterances({"a": "x y"}, {"a": "x"}))["errors"]
    1
    """
    if all(score.duration is not None for score in scores):
        return summarize_scores(scores)
    counts = total(scores)
    return {
        "wer": counts.rate,
        "errors": counts.errors,
        "words": counts.words,
        "utterances": counts.utterances,
    }


def evaluate_domains(
    brain,
    test_sets: Mapping,
    folder,
    loader_kwargs: Optional[Mapping] = None,
    measures: Optional[Mapping] = None,
    **options: Any,
) -> dict:
    """Evaluates the weights in use on every set, and writes what was found.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``.
    test_sets : dict
        Name to dataset.
    folder : str or Path
        Gets the errors of every utterance, ``<set>.jsonl``, the alignments
        ``wer_<set>.txt``, and the rates of all sets, ``wer.json``. Where the
        metric is not WER, its name in lower case stands for ``wer``.
    loader_kwargs : dict, optional
        Options of the loader.
    measures : dict, optional
        Name to a measure of transcripts (``evaluation/measured.py``), whose
        mean over the utterances stands beside the rate.
    **options
        Of ``evaluate_set``.

    Returns
    -------
    dict
        Set to its rates: see ``rates_of``; the rate is under the name of the
        metric in lower case.

    Raises
    ------
    FileExistsError
        When ``<set>.jsonl`` or the file of rates is there and holds anything
        but scores, such as the data, or the alignments are those of a recipe;
        before anything is evaluated.
    """
    folder, rates = Path(folder), {}
    metric = options.get("metric", "WER").lower()
    run_on_main(_refuse_foreign, args=[folder, metric, test_sets])
    run_on_main(folder.mkdir, kwargs={"parents": True, "exist_ok": True})
    for name, test_set in test_sets.items():
        label = f"{folder.name} on {name}"
        scores = evaluate_set(brain, test_set, loader_kwargs, label, **options)
        counts = rates_of(scores)
        rates[name] = {metric: counts.pop("wer"), **counts}
        for one, measure in (measures or {}).items():
            values = measured(one, measure, scores)
            rates[name][one] = sum(values.values()) / max(len(values), 1)
        run_on_main(write_scores, args=[folder / f"{name}.jsonl", scores])
        stats = getattr(brain, options.get("tracker") or f"{metric}_metric")
        text = alignments_text(stats)
        run_on_main(
            write_outputs, args=[folder, {f"{metric}_{name}.txt": text}]
        )
    text = json.dumps(rates, indent=2) + "\n"
    run_on_main(write_outputs, args=[folder, {f"{metric}.json": text}])
    return rates


def _refuse_foreign(folder, metric, names):
    """Refuses to replace files that hold no scores, such as data."""
    for file in (f"{metric}.json", *(f"{name}.jsonl" for name in names)):
        refuse_other(
            folder / file,
            _are_rates if file.endswith(".json") else _are_scores,
            "no scores that were written here, or damaged ones",
            "choose another folder",
        )
    for name in names:
        refuse_other(
            folder / f"{metric}_{name}.txt",
            is_output,
            "alignments that were not written here, such as a recipe's own",
            "choose another folder",
        )


def _are_scores(path):
    """Whether a file has scores of utterances."""
    read_scores(path)  # raises for anything else
    return True


def _are_rates(path):
    """Whether a file has the rates of sets whose scores lie beside it.

    Earlier versions did not note that they had written it.
    """
    if is_output(path):
        return True
    sets = read_json(path)
    return (
        isinstance(sets, dict)
        and bool(sets)
        and all(
            isinstance(one, dict)
            and "errors" in one
            and one["errors"] == _errors_beside(path, name)
            for name, one in sets.items()
        )
    )


def _errors_beside(path, name):
    scores = path.with_name(f"{name}.jsonl")
    return total(read_scores(scores)).errors if scores.is_file() else None


def alignments_text(metric) -> str:
    """The alignments of a set, as SpeechBrain's recipes write them.

    Arguments
    ---------
    metric : ErrorRateStats
        What was counted.

    Returns
    -------
    str
    """
    text = io.StringIO()
    metric.write_stats(text)
    return text.getvalue()
