"""What a study made and tested, put together as its results.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.evaluation import backward_transfer, forward_transfer
from speechbrain_merge.study.comparison import compare_models
from speechbrain_merge.study.continual import continual_results
from speechbrain_merge.study.graph import trainings_behind
from speechbrain_merge.study.results import SCHEMA, write_times
from speechbrain_merge.study.sequences import sequence_of
from speechbrain_merge.study.testing import speakers
from speechbrain_merge.study.trainings import without_folder

logger = get_logger(__name__)


def gather(study, makers: Mapping, found: Mapping) -> dict:
    """The results of a study as plain data.

    Arguments
    ---------
    study : Study
        The study.
    makers : dict
        Seed to Maker.
    found : dict
        (Name, seed) to the counts of a model, and ("sequence", name, seed) to
        those of a sequence.

    Returns
    -------
    dict
        As ``study/results.py`` describes them.
    """
    wanted = study.wanted()
    seeds = list(wanted)
    plan = _of_every_seed(wanted)
    by_name = {node.name: node for node in plan}
    rows, others, times = [], {}, {}
    for node in plan:
        made = {seed: makers[seed].made[node.name] for seed in seeds}
        times[node.name] = {
            str(seed): {
                "seconds": one.seconds,
                "interrupted": one.interrupted,
                **_seconds(one.about),
            }
            for seed, one in made.items()
        }
        described = {
            "name": node.name,
            "title": node.title,
            "group": node.group,
            "kind": node.kind,
            "domains": list(getattr(node, "domains", ())),
            "parents": list(node.parents),
            "trainings": trainings_behind(node.name, by_name),
            "select_on": list(getattr(node, "select_on", ())),
            # it looks at the transcripts
            "bound": getattr(node, "how", None) == "oracle",
            "about": {
                # a study may be moved
                str(seed): without_folder(
                    _without_seconds(one.about), study.folder
                )
                for seed, one in made.items()
            },
        }
        if not node.row or node.tests == ():
            others[node.name] = described
            continue
        described["sets"] = {
            str(seed): found[node.name, seed] for seed in seeds
        }
        rows.append(described)
    results = {
        "schema": SCHEMA,
        "metric": study.metric,
        "domains": list(study.domains),
        "tests": list(study.tests),
        "retention": study.retention,
        "means": study.means,
        "modes": list(study.modes),
        "seeds": seeds,
        "rows": rows,
        "models": others,
        "sequences": _sequences(plan, found, seeds, by_name),
    }
    if study.continual:
        results["continual"] = continual_results(
            study.continual, plan, found, seeds, results["modes"][0]
        )
    test_sets = makers[seeds[0]].run.test_sets
    results["comparisons"] = compare_models(results, study, speakers(test_sets))
    run_on_main(write_times, args=[study.folder, times])
    return json.loads(json.dumps(results, default=str))


def _of_every_seed(wanted):
    """The nodes that all seeds have; it says which only some have."""
    plans = list(wanted.values())
    common = set.intersection(*({node.name for node in p} for p in plans))
    others = {
        node.name: None for p in plans for node in p if node.name not in common
    }
    if others:
        logger.warning(
            f"{', '.join(others)}: made for some of the seeds "
            f"{', '.join(map(str, wanted))} only, and so not in the results."
        )
    return [node for node in plans[0] if node.name in common]


def _sequences(plan, found, seeds, by_name):
    """Rates after each domain of a sequence, and the transfer between them."""
    sequences = []
    for node in plan:
        if ("sequence", node.name, seeds[0]) not in found:
            continue
        order = sequence_of(node, by_name).domains
        for seed in seeds:
            stages = found["sequence", node.name, seed]
            matrix = [[stage[d]["wer"] for d in order] for stage in stages]
            sequences.append(
                {
                    "name": node.title,
                    "seed": seed,
                    "domains": list(order),
                    "rates": matrix,
                    "backward": backward_transfer(matrix),
                    "forward": forward_transfer(matrix),
                }
            )
    return sequences


def _seconds(about):
    """The parts of a search that an interruption may change."""
    return {key: about[key] for key in ("savings", "trials") if about.get(key)}


def _without_seconds(about):
    """The description of a model without what differs from run to run.

    How much of a rejected trial was decoded depends on the order of batches,
    which a search learns anew after an interruption.
    """
    kept = {key: value for key, value in about.items() if key != "savings"}
    if "trials" in kept:
        kept["trials"] = [_outcome(trial) for trial in kept["trials"]]
    return kept


def _outcome(trial):
    """A trial and whether it was accepted, without its costs."""
    names = ["kind", "candidate", "members", "merged", "parameters", "step"]
    names += ["accepted", "best", "kept"]
    if trial.get("accepted") is not False:
        names += ["errors", "total", "value"]
    return {name: trial[name] for name in names if name in trial}
