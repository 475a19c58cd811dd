"""Tests of a recogniser, in every mode, and what is kept of them.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from pathlib import Path

from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_merge.evaluation import (
    from_tracker,
    summarize_scores,
    write_scores,
)


def test_domains(brain, test_sets, folder):
    """Tests the weights in use on every domain, in every mode.

    Arguments
    ---------
    brain : ASR
        Decodes.
    test_sets : dict
        Domain to dataset.
    folder : str or Path
        Gets the alignments ``wer_MODE_DOMAIN.txt``, the errors of every
        utterance ``MODE_DOMAIN.jsonl``, and the rates ``wer.json``.

    Returns
    -------
    dict
        Mode to domain to its rates: see ``keep_scores``.
    """
    folder, rates = Path(folder), {}
    for mode in brain.hparams.modes:
        rates[mode] = {}
        for domain, test_set in test_sets.items():
            hear(brain, test_set, mode, f"{folder.name} on {domain}, {mode}")
            scores = from_tracker(brain.wer_metric, brain.durations)
            rates[mode][domain] = keep_scores(scores, folder, mode, domain)
            if if_main_process():
                path = folder / f"wer_{mode}_{domain}.txt"
                with open(path, "w", encoding="utf-8") as file:
                    brain.wer_metric.write_stats(file)
    if if_main_process():
        text = json.dumps(rates, indent=2)
        (folder / "wer.json").write_text(text, encoding="utf-8")
    return rates


def posteriors(brain, source, test_set, mode):
    """What some weights hear in a test set, for combinations of models.

    Arguments
    ---------
    brain : ASR
        Decodes.
    source : object
        Weights.
    test_set : DynamicItemDataset
        The utterances.
    mode : str
        "offline" or "streaming".

    Returns
    -------
    dict
        Utterance to log-posteriors [frames, units].
    """
    brain.use_weights(source)
    brain.kept = {}
    hear(brain, test_set, mode, f"a part of a combination, {mode}")
    kept, brain.kept = brain.kept, None
    return kept


def hear(brain, test_set, mode, name):
    """One evaluation, in one mode, under a name for the log."""
    brain.mode, brain.test_name = mode, name
    brain.evaluate(
        test_set,
        min_key="WER",
        test_loader_kwargs=brain.hparams.test_loader_kwargs,
    )
    brain.mode = "offline"


def keep_scores(scores, folder, mode, domain):
    """Writes the scores of a test set, and counts them.

    Arguments
    ---------
    scores : list of UtteranceScore
        Of a model, or of several together, on a test set.
    folder : str or Path
        Gets ``MODE_DOMAIN.jsonl``.
    mode : str
        How the model heard the set: "offline" or "streaming".
    domain : str
        The set.

    Returns
    -------
    dict
        See ``summarize_scores``.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> scores = score_utterances(
    ...     {"u": "one two"}, {"u": "one"}, durations={"u": 2}
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     rates = keep_scores(scores, folder, "offline", "digits")
    >>> rates["wer"], rates["errors"], rates["words"]
    (50.0, 1, 2)
    """
    folder = Path(folder)
    path = folder / f"{mode}_{domain}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    run_on_main(write_scores, args=[path, scores])
    return summarize_scores(scores)
