"""Two models without merging them: what fusion of weights is compared with.

All three decode every utterance with each of the models, so they cost as much
as the models together; a merged model costs as much as one.

- ``oracle``: of every utterance the hypothesis with the fewest errors. It looks
  at the transcript, so that it is a bound and no system.
- ``selection`` (SBF in Fu et al., arXiv 2306.02541): of every utterance the
  hypothesis whose words are the most probable in the mean.
- ``ensemble`` (EBF): the mean of what the encoders give out, which for CTC are
  the posteriors of a frame, decoded as one model's.

Authors
 * The speechbrain_merge authors 2026
"""

from testing import keep_scores, posteriors

from speechbrain_merge.evaluation import (
    ensemble_log_probs,
    mean_confidence,
    oracle,
    score_utterances,
    select_by_confidence,
)

COMBINATIONS = ("oracle", "selection", "ensemble")


def combine(brain, sources, test_sets, folder):
    """Tests the combinations of some models on every domain, in every mode.

    Arguments
    ---------
    brain : ASR
        Decodes.
    sources : list
        Weights of the models.
    test_sets : dict
        Domain to dataset.
    folder : Path
        Gets a folder for each combination, as ``test_domains`` makes it.

    Returns
    -------
    dict
        Combination to mode to domain to its rates.
    """
    rates = {name: {} for name in COMBINATIONS}
    for mode in brain.hparams.modes:
        for name in COMBINATIONS:
            rates[name][mode] = {}
        for domain, test_set in test_sets.items():
            systems = [
                posteriors(brain, source, test_set, mode) for source in sources
            ]
            found = combined(systems, test_set.data, brain.words)
            for name, scores in found.items():
                rates[name][mode][domain] = keep_scores(
                    scores, folder / name, mode, domain
                )
    return rates


def combined(systems, rows, read):
    """Scores of every combination.

    Arguments
    ---------
    systems : list of dict
        For each model, utterance to log-posteriors [frames, units].
    rows : dict
        Utterance to its ``wrd`` and ``duration``.
    read : callable
        Log-posteriors to words and their confidences.

    Returns
    -------
    dict
        Combination to list of UtteranceScore.
    """
    said = {name: row["wrd"] for name, row in rows.items()}
    durations = {name: row["duration"] for name, row in rows.items()}

    def score(heard):
        hypotheses = {name: words for name, (words, _) in heard.items()}
        return score_utterances(said, hypotheses, durations=durations)

    heard = [
        {name: read(frames) for name, frames in system.items()}
        for system in systems
    ]
    scores = [score(one) for one in heard]
    confidences = [
        {name: mean_confidence(values) for name, (_, values) in one.items()}
        for one in heard
    ]
    together = {
        name: read(ensemble_log_probs([system[name] for system in systems]))
        for name in said
    }
    return {
        "oracle": oracle(scores),
        "selection": select_by_confidence(scores, confidences),
        "ensemble": score(together),
    }
