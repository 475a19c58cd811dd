"""The generalist of a study of continual learning, trained from scratch.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

from study_steps import train_run


def start_from_generalist(study, run_opts, build):
    """Trains what all models of a study of continual learning come of.

    Arguments
    ---------
    study : dict
        The study's YAML. Its ``generalist`` is what is different in the
        training of that, among ``expert_overrides``.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        As for ``study_steps.train_run``.

    Returns
    -------
    dict
        The study, whose experts start from the generalist's best checkpoint.
    """
    run = {"run_name": "generalist", "seed": study["seed"]}
    run.update(study["generalist"])
    train_run(study, run, run_opts, build)
    pool = Path(study["pool_folder"]) / run["run_name"]
    experts = {**study["expert_overrides"], "start_from": str(pool)}
    return {**study, "expert_overrides": experts}
