"""Two models without merging them: what fusion of weights is compared with.

All three decode every utterance with each of the models, so they cost as much
as the models together; a merged model costs as much as one.

- ``oracle``: of every utterance the hypothesis with the fewest errors. It looks
  at the transcript, so that it is a bound and no system.
- ``selection`` (SBF in Fu et al., arXiv 2306.02541): of every utterance the
  hypothesis whose words are the most probable in the mean.
- ``ensemble`` (EBF): the mean of what the encoders give out, which for CTC are
  the posteriors of a frame, decoded as one model's.

Example
-------
>>> decided = torch.tensor([[0.1, 0.9], [0.9, 0.1]]).log()
>>> torch.exp(ensemble([decided, decided.flip(0)]))
tensor([[0.5000, 0.5000],
        [0.5000, 0.5000]])

Authors
 * The speechbrain_merge authors 2026
"""

import math

import torch
from testing import keep_scores, posteriors

from speechbrain_merge.evaluation import score_utterances

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
        Gets a folder for each combination, as ``evaluate_domains`` makes it.

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
            said = {i: row["wrd"] for i, row in test_set.data.items()}
            found = combined(systems, said, brain.words)
            durations = {i: row["duration"] for i, row in test_set.data.items()}
            for name, hypotheses in found.items():
                scores = score_utterances(said, hypotheses, durations=durations)
                rates[name][mode][domain] = keep_scores(
                    scores, folder / name, mode, domain
                )
    return rates


def combined(systems, said, read):
    """Hypotheses of every combination.

    Arguments
    ---------
    systems : list of dict
        For each model, utterance to log-posteriors [frames, units].
    said : dict
        Utterance to transcript.
    read : callable
        Log-posteriors to words and their confidences.

    Returns
    -------
    dict
        Combination to utterance to words.
    """
    found = {name: {} for name in COMBINATIONS}
    for name, text in said.items():
        frames = [system[name] for system in systems]
        each = [read(log_posteriors) for log_posteriors in frames]
        found["oracle"][name] = oracle([words for words, _ in each], text)
        found["selection"][name] = selection(each)
        found["ensemble"][name] = read(ensemble(frames))[0]
    return found


def oracle(hypotheses, said):
    """The hypothesis with the fewest errors; of equals, the first.

    Arguments
    ---------
    hypotheses : list of list of str
        Words of each model.
    said : str
        The transcript.

    Returns
    -------
    list of str

    Example
    -------
    >>> oracle([["one"], ["one", "two"]], "one two")
    ['one', 'two']
    """
    errors = [
        score_utterances({"": said}, {"": words})[0].counts.errors
        for words in hypotheses
    ]
    return hypotheses[errors.index(min(errors))]


def selection(hypotheses):
    """The hypothesis whose words are the most confident in the mean.

    Arguments
    ---------
    hypotheses : list of tuple
        Words of each model and their confidences. No words are no confidence.

    Returns
    -------
    list of str

    Example
    -------
    >>> selection([(["won"], [0.4]), (["one"], [0.9])])
    ['one']
    """

    def confidence(hypothesis):
        _, values = hypothesis
        return sum(values) / len(values) if values else 0.0

    return max(hypotheses, key=confidence)[0]


def ensemble(log_posteriors):
    """The mean of the models' posteriors of each frame.

    Arguments
    ---------
    log_posteriors : list of torch.Tensor
        [frames, units] of each model.

    Returns
    -------
    torch.Tensor
        The logarithm of the mean.
    """
    stacked = torch.stack(log_posteriors)
    return stacked.logsumexp(0) - math.log(len(stacked))
