"""Whether the data of a study's domains are there, before anything is trained.

A recipe says in the YAML of its training where the data of a domain are in its
``data_folder``, for each list of domains that the YAML has::

    data_folder: !PLACEHOLDER
    domains: [digits]
    test_domains: [digits, read]
    domain_files:
        domains: "csv/{domain}_train.csv"
        test_domains: "csv/{domain}_test.csv"

A study looks for these files before it prints its plan, and before it trains:
those of its own domains and tests, and those of every training that is to be
done. Without ``domain_files``, the recipe finds out when it prepares its data;
so it does where the YAML itself makes the ``data_folder``, by an ``!apply``.

Authors
 * The speechbrain_merge authors 2026
"""

import glob
import json
import os
import re
from collections.abc import Iterator

from speechbrain_merge.study.axes import DOMAIN
from speechbrain_merge.study.estimate import state_of
from speechbrain_merge.study.listed_domains import domains_of
from speechbrain_merge.study.nodes import Train
from speechbrain_merge.study.trainings import FILES


def check_domain_files(study) -> None:
    """Raises where the data of a domain are not there.

    Arguments
    ---------
    study : Study
        The study.

    Raises
    ------
    ValueError
        Naming the domains, the keys of the YAML that have them, the files
        that were looked for, and the domains that there are.
    """
    faults = {}
    for where, training, overrides in _asked(study):
        if FILES not in training.known:
            continue
        tree = training.tree(overrides)
        for key, pattern, domain in domains_of(training, tree):
            path = pattern.replace(DOMAIN, domain)
            if not os.path.isfile(path):
                named = _named(training, key, where)
                faults.setdefault(domain, {}).setdefault(path, (named, pattern))
    if faults:
        raise ValueError(
            "There are no data of "
            + "; ".join(_described(domain, of) for domain, of in faults.items())
            + f". Correct the name or the `data_folder`; `{FILES}` of the "
            "training's YAML says what is looked for there."
        )


def domains_there(pattern: str) -> list:
    """The domains that have a file.

    Arguments
    ---------
    pattern : str
        A path with ``{domain}`` in it.

    Returns
    -------
    list of str

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("read_test.csv", "digits_test.csv", "read_valid.csv"):
    ...     (folder / name).touch()
    >>> domains_there(f"{folder}/{{domain}}_test.csv")
    ['digits', 'read']
    """
    before, *after = pattern.split(DOMAIN)
    again = "(?P=domain)".join(map(re.escape, after))
    expression = re.compile(f"{re.escape(before)}(?P<domain>[^/]+){again}")
    found = glob.glob("*".join(map(glob.escape, [before, *after])))
    matches = map(expression.fullmatch, found)
    return sorted(match["domain"] for match in matches if match)


def _asked(study) -> Iterator[tuple]:
    """What asks for data, its training, and the overrides of the YAML."""
    values = {
        "output_folder": str(study.folder),
        "run": "evaluate",
        "seed": study.seeds[0],
        "domains": study.domains,
        "tests": study.tests,
    }
    training = study.trainings[study.evaluate_with]
    yield None, training, training.overrides(values, {})
    known = set()
    for seed, nodes in study.wanted().items():
        for node in nodes:
            if not isinstance(node, Train):
                continue
            about = json.dumps(
                [node.training, node.domains, node.settings], default=str
            )
            if about in known or state_of(study, seed, node)["done"]:
                continue
            known.add(about)
            training = study.trainings[node.training]
            told = {"seed": seed, "domains": list(node.domains), "tests": []}
            yield (
                f"model '{node.name}'",
                training,
                training.overrides({**values, **told}, node.settings),
            )


def _named(training, key, where):
    """How a message names the key of the YAML that has a domain."""
    words = {training.key("domains"): "domains", training.key("tests"): "tests"}
    if where is None and key in words:
        return f"`{words[key]}` of the study"
    if where is not None and key == training.key("domains"):
        return f"`train` of {where}"
    named = f"`{key}` of {training.hparams}"
    return named if where is None else f"{named} for {where}"


def _described(domain, missing):
    """A domain, who asks for it, the files, and the domains there are."""
    names = dict.fromkeys(named for named, _ in missing.values())
    _, pattern = next(iter(missing.values()))
    there = domains_there(pattern)
    return (
        f"'{domain}', which is in {', '.join(names)} (no file "
        f"{', '.join(missing)}); there are "
        f"{', '.join(there) or 'no such files of any domain'}"
    )
