"""Measures of transcripts beside the error rate, such as the semantic score.

A measure is any callable ``(references, hypotheses) -> list of float`` that
gives each utterance a number from 0 to 1, where higher is better.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Callable, Sequence

from speechbrain_merge.evaluation.error_rates import UtteranceScore


def measured(
    name: str, measure: Callable, scores: Sequence[UtteranceScore]
) -> dict[str, float]:
    """Measures the utterances of a set.

    Arguments
    ---------
    name : str
        The measure's name, for messages.
    measure : callable
        ``(references, hypotheses) -> list of float``. The texts are as the
        recipe normalised them for its error rate; of several references it is
        the one that counted.
    scores : list of UtteranceScore
        The utterances.

    Returns
    -------
    dict
        Utterance to number.

    Raises
    ------
    ValueError
        Where the measure gives other than one finite number for each
        utterance.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> scores = score_utterances({"a": "x", "b": "z"}, {"a": "x", "b": "w"})
    >>> def exact(references, hypotheses):
    ...     return [float(r == h) for r, h in zip(references, hypotheses)]
    >>> measured("exact", exact, scores)
    {'a': 1.0, 'b': 0.0}
    """
    values = measure(
        [" ".join(score.reference) for score in scores],
        [" ".join(score.hypothesis) for score in scores],
    )
    if len(values) != len(scores):
        raise ValueError(
            f"The measure {name} gave {len(values)} numbers for {len(scores)} "
            "utterances; expected one for each."
        )
    found = {score.id: float(v) for score, v in zip(scores, values)}
    for utterance, value in found.items():
        if not math.isfinite(value):
            raise ValueError(
                f"The measure {name} gave {value} for utterance {utterance}; "
                "expected a number from 0 to 1."
            )
    return found
