"""The steps of every study: training a run, and evaluating a model.

Each leaves its result under the results folder, and is not done again when it
is there. What a Brain needs for it: ``evaluate_domains``, and ``prepare_test``,
which says how it will hear.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from pathlib import Path

from records import once, write_record
from speechbrain.utils.distributed import run_on_main

from speechbrain_merge.weights import digest, open_weights


def train_run(study, run, run_opts, build):
    """Trains one expert, unless it is trained.

    Arguments
    ---------
    study : dict
        The study's YAML, with ``expert_hparams`` and ``expert_overrides``.
    run : dict
        Overrides of the expert's YAML, with a ``run_name``.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        ``build(hparams_file, overrides, run_opts)`` prepares a run as
        ``train.py`` does, and gives its Brain and ``fit``, which trains it,
        before anything else.

    Returns
    -------
    dict
        Of the run: ``seconds``, and what came of it.

    Raises
    ------
    ValueError
        When the run was trained before with other settings.
    """
    overrides = {**study["expert_overrides"], **run}

    def fit():
        brain, fit, *_ = build(study["expert_hparams"], overrides, run_opts)
        fit()
        return {"steps": brain.optimizer_step}

    done = Path(study["results_folder"]) / run["run_name"] / "finished.json"
    return once(done, without_places(overrides), fit)


def without_places(settings):
    """Settings but for where results lie: a study may be moved."""
    places = (
        "results_folder",
        "pool_folder",
        "normalizer_folder",
        "start_from",
    )
    return {
        name: value for name, value in settings.items() if name not in places
    }


def evaluate_once(brain, row, test_sets, folder):
    """Evaluates a model on every domain, unless it was.

    Arguments
    ---------
    brain : ASR
        Evaluates.
    row : dict
        The model: its ``name``, the ``source`` of its weights, and what
        ``prepare_test`` of the Brain asks of it.
    test_sets : dict
        Domain to test set.
    folder : Path
        The results folder.

    Returns
    -------
    dict
        Domain to its rates.
    """
    settings = brain.prepare_test(row)
    tests = {domain: data.data for domain, data in test_sets.items()}
    text = json.dumps([settings, tests], sort_keys=True, default=str)
    with open_weights(row["source"]) as weights:
        key = digest(weights) + hashlib.sha256(text.encode()).hexdigest()
    target = folder / "evaluated" / row["name"]
    # The same weights may have another name: two searches found the same
    for done in sorted(target.parent.glob("*/evaluated.json")):
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["key"] == key:
            if done.parent != target:
                run_on_main(
                    write_record, args=[target / "evaluated.json", known]
                )
            return known["rates"]
    brain.use_weights(row["source"])
    rates = brain.evaluate_domains(test_sets, target)
    record = {"key": key, "rates": rates, "scores": str(target)}
    run_on_main(write_record, args=[target / "evaluated.json", record])
    return rates
