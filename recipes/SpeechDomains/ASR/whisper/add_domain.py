"""One domain more, when the data of the others are gone; or one domain less.

An average of domain experts is continued from its pool alone. One expert is
trained on the new domain, from the same original as the others; then the
average is formed again of all members. Nothing of the old domains is read but
their experts' weights. Leaving a domain out is rolling it back, exactly.

What was merged, and with what weights, the pool remembers under a name. The new
merge gets a name of its own, by which the next domain is added to it.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

from continual_report import report_continual
from made_models import Made, train_once
from model_graph import Model
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from study_steps import evaluate_once

from speechbrain_merge import MergeStage
from speechbrain_merge.methods import create
from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.merges import find_merge
from speechbrain_merge.stage.members import BASE, unweighted

logger = get_logger(__name__)


def run_add_domain(study, run_opts, build):
    """Trains the expert, merges again, and evaluates on what there is.

    Arguments
    ---------
    study : dict
        The YAML: ``pool_folder``, ``extends``, ``domain``, ``leave_out`` and
        the rest.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        As for ``study.run_study``.

    Returns
    -------
    results : dict
        As in ``results.json``.

    Raises
    ------
    ValueError
        When the pool does not remember the merge, lacks one of its members, or
        has another training of the domain's name.
    """
    folder, pool = Path(study["results_folder"]), Path(study["pool_folder"])
    record = find_merge([pool], study["extends"])
    runs = [run for run in record.runs if run != BASE]
    members = record.find_members(read_pool([pool / run for run in runs]))
    logger.info(
        f"'{record.name}' is of {', '.join(record.runs)} "
        f"({record.method['name']})."
    )
    domain, made = study["domain"], None
    if domain is not None:
        made = train_member(study, members[0], run_opts, build)
        runs.append(domain)
    weight = study["weight"]
    parameters = dict(record.method)
    method = create(parameters.pop("name"), **parameters)
    stage = MergeStage(
        method if record.weights is None else unweighted(method),
        [pool / run for run in runs],
        name=study["name"],
        extends=record.name,
        without=study["leave_out"],
        weights=None if weight is None else {domain: weight},
        per_run=study["checkpoint"],
        folder=folder / "merged",
    )
    brain, _, _, test_sets = build(
        study["expert_hparams"],
        {
            **study["expert_overrides"],
            "run_name": "evaluate",
            "domains": [],
            "test_domains": list(study["test_domains"]),
            "test_fraction": study["test_fraction"],
            "seed": study["seed"],
        },
        run_opts,
    )
    merged = brain.merge(stage)
    logger.info(f"'{merged.name}' is of {', '.join(merged.selected)}.")
    rows = [
        {
            "name": "original",
            "group": "generalist",
            "source": str(members[0].base),
            "window": 30,
        }
    ]
    if made is not None:
        rows.append(
            {"name": domain, "group": "expert", "source": str(made.path)}
        )
    if record.path and Path(record.path).is_file():
        rows.append(
            {"name": record.name, "group": "merge", "source": record.path}
        )
    rows.append(
        {"name": merged.name, "group": "merge", "source": str(merged.path)}
    )
    if not test_sets:
        return {"rows": rows}
    for row in rows:
        row.setdefault("window", study["test_window"])
        row["sets"] = evaluate_once(brain, row, test_sets, folder)
        new = made is not None and row["name"] in (domain, merged.name)
        row["trainings"] = [domain] if new else []
        row["training_seconds"] = made.seconds if new else 0
        row["timed_whole"] = made.whole if new else True
    known = {*runs, *([domain] if domain else [])}
    results = {
        "in_domain": [d for d in study["test_domains"] if d in known],
        "test_domains": list(study["test_domains"]),
        "rows": rows,
        "sequences": {},
        "members": merged.selected,
        "seed": study["seed"],
        "test_fraction": study["test_fraction"],
    }
    if study["retention"]:
        results["retention"] = list(study["retention"])
    run_on_main(report_continual, args=[results, folder])
    return results


def train_member(study, beside, run_opts, build):
    """Trains the new domain's expert, from where the others started.

    Arguments
    ---------
    study : dict
        The YAML.
    beside : Candidate
        A member of the merge.
    run_opts : dict
        SpeechBrain's run options.
    build : callable
        As for ``study.run_study``.

    Returns
    -------
    Made

    Raises
    ------
    ValueError
        When the pool has another training of this name, or kept no base.
    """
    domain = study["domain"]
    pool = Path(study["pool_folder"])
    home = Path(study["results_folder"]) / domain
    if (pool / domain).exists() and not home.exists():
        raise ValueError(
            f"{pool} has a run '{domain}' already, which this one does not "
            "continue: it is a member, or left by another study. Add it by "
            "another name of the domain, or delete it."
        )
    if beside.base is None:
        raise ValueError(
            f"{pool} kept no base of '{beside.run}', so that what it was "
            "trained from is not known."
        )
    start = Made(beside.base, beside.base_digest)
    model = Model(
        domain,
        "train",
        domain,
        "expert",
        start=BASE,
        domains=(domain,),
    )
    return train_once(model, {BASE: start}, study, run_opts, build)
