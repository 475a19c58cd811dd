"""Combinations of several models' outputs, which merges are compared with.

Each of these decodes every utterance with each of the models, so it costs as
much as the models together; a merged model costs as much as one.

- ``oracle``: of every utterance the hypothesis with the fewest errors. It looks
  at the transcript, so that it is a bound and no system.
- ``selection`` (SBF in Fu et al., arXiv 2306.02541): of every utterance the
  hypothesis whose words are the most probable on average.
- ``ensemble`` (EBF): the mean of what the encoders give out, which for CTC are
  the posteriors of a frame, decoded as those of one model.

A Brain whose models are combined fills ``self.posteriors``, where it is a dict,
with the log-posteriors [frames, units] of each utterance, and has a method
``words_of(log_posteriors)``, which gives the words and the confidence of each.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Mapping, Sequence

from speechbrain_merge.brain.decisive import while_running
from speechbrain_merge.evaluation import (
    ensemble_log_probs,
    mean_confidence,
    oracle,
    score_utterances,
    select_by_confidence,
)


def check_combines(brain):
    """Refuses a Brain whose models cannot be combined.

    Arguments
    ---------
    brain : speechbrain.Brain
        See the module.

    Raises
    ------
    ValueError
        Where it has no ``words_of``.
    """
    if not hasattr(brain, "words_of"):
        raise ValueError(
            "Models can be combined where the Brain keeps `posteriors` and has "
            f"`words_of`, and {type(brain).__name__} has none: see "
            "speechbrain_merge/brain/combinations.py."
        )


@while_running
def collect_posteriors(brain, evaluate: Callable) -> dict:
    """The posteriors of the weights in use for each utterance of a set.

    Arguments
    ---------
    brain : speechbrain.Brain
        See the module.
    evaluate : callable
        Runs the evaluation of the set.

    Returns
    -------
    dict
        Utterance to log-posteriors [frames, units].

    Raises
    ------
    ValueError
        When the Brain does not keep them.
    """
    check_combines(brain)
    brain.posteriors = {}
    try:
        evaluate()
        return brain.posteriors
    finally:
        brain.posteriors = None


def combine(
    how: str, systems: Sequence, rows: Mapping, words_of: Callable
) -> list:
    """Scores of several models that decode side by side.

    Arguments
    ---------
    how : str
        "oracle", "selection" or "ensemble".
    systems : list of dict
        For each model, utterance to log-posteriors [frames, units].
    rows : dict
        Utterance to its ``wrd`` and ``duration``.
    words_of : callable
        Log-posteriors to words and their confidences.

    Returns
    -------
    list of UtteranceScore

    Example
    -------
    >>> rows = {"u": {"wrd": "a b", "duration": 1.0}}
    >>> def words_of(text):  # stands for posteriors
    ...     return text.split(), [1.0] * len(text.split())
    >>> systems = [{"u": "a"}, {"u": "a b"}]
    >>> combine("oracle", systems, rows, words_of)[0].errors
    0
    """
    said = {name: row["wrd"] for name, row in rows.items()}
    durations = {name: row["duration"] for name, row in rows.items()}

    def score(heard):
        hypotheses = {name: words for name, (words, _) in heard.items()}
        return score_utterances(said, hypotheses, durations=durations)

    if how == "ensemble":
        return score(
            {
                name: words_of(
                    ensemble_log_probs([system[name] for system in systems])
                )
                for name in said
            }
        )
    heard = [
        {name: words_of(frames) for name, frames in system.items()}
        for system in systems
    ]
    scores = [score(one) for one in heard]
    if how == "oracle":
        return oracle(scores)
    confidences = [
        {name: mean_confidence(values) for name, (_, values) in one.items()}
        for one in heard
    ]
    return select_by_confidence(scores, confidences)
