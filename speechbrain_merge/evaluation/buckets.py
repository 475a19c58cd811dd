"""Error rates by the duration of the utterances.

Ducorroy and Riad (arXiv 2505.20477) report three ranges: up to 5 seconds, up to
the 30 seconds of one Whisper window, and longer. What averaging checkpoints
gains, it gains mostly in the last.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> said, heard = {"a": "x", "b": "y"}, {"a": "x", "b": "z"}
>>> scores = score_utterances(said, heard, durations={"a": 2.5, "b": 41.0})
>>> by_bucket(scores)["(30, inf)"].rate
100.0

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from speechbrain_merge.evaluation.error_rates import (
    ErrorCounts,
    UtteranceScore,
    total,
)

# in seconds
BUCKET_EDGES = (5, 30)


def by_bucket(
    scores: Iterable[UtteranceScore],
    durations: Optional[Mapping] = None,
    edges: Sequence[float] = BUCKET_EDGES,
) -> dict[str, ErrorCounts]:
    """Add up the counts in each range of durations.

    Arguments
    ---------
    scores : iterable of UtteranceScore
        Scores of utterances.
    durations : dict
        Utterance name to seconds; by default the durations in the scores.
    edges : sequence of float
        Upper edges in seconds, rising. An utterance on an edge belongs to the
        range below it.

    Returns
    -------
    dict
        Range, such as "(5, 30]", to counts: every range, also empty ones.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> scores = score_utterances({"a": "x", "b": "y"}, {"a": "x", "b": "z"})
    >>> buckets = by_bucket(scores, {"a": 5.0, "b": 31.5})
    >>> {label: counts.rate for label, counts in buckets.items()}
    {'(0, 5]': 0.0, '(5, 30]': None, '(30, inf)': 100.0}
    """
    edges = list(edges)
    if not edges or edges != sorted(set(edges)) or edges[0] <= 0:
        raise ValueError(f"edges are rising seconds above 0, not {edges}")
    bounds = [0, *edges]
    labels = [f"({low:g}, {high:g}]" for low, high in zip(bounds, edges)]
    labels.append(f"({edges[-1]:g}, inf)")
    buckets = {label: ErrorCounts() for label in labels}
    for score in scores:
        seconds = (
            score.duration if durations is None else durations.get(score.id)
        )
        if seconds is None or not seconds > 0:
            raise ValueError(
                f"utterance {score.id!r} has duration {seconds}: give "
                "`durations` with seconds above 0 for every utterance"
            )
        place = sum(seconds > edge for edge in edges)
        buckets[labels[place]] += score.counts
    return buckets


def summarize_scores(scores: Sequence[UtteranceScore]) -> dict:
    """The rates of one test set, as the results of a study hold them.

    Arguments
    ---------
    scores : list of UtteranceScore
        Scores of utterances, with their durations.

    Returns
    -------
    dict
        ``wer`` in %, ``errors``, ``words``, ``utterances``, and ``buckets`` by
        duration.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> rates = summarize_scores(
    ...     score_utterances({"a": "x y"}, {"a": "x"}, durations={"a": 2})
    ... )
    >>> rates["wer"], rates["errors"], rates["words"]
    (50.0, 1, 2)
    """
    counts = total(scores)
    return {
        "wer": counts.rate,
        "errors": counts.errors,
        "words": counts.words,
        "utterances": counts.utterances,
        "buckets": {
            name: bucket.to_dict() for name, bucket in by_bucket(scores).items()
        },
    }
