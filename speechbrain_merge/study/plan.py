"""Reading the models of a study from its YAML, checked before any training.

Each model is one entry under ``models``. Its first key says how it is made::

    models:
        "{domain}":                    # one for each domain
            train: "{domain}"          # trained from the original
        aode:
            merge: average
            of: "{each}"               # the models of all domains
        aode-with-original:
            merge: average
            of: ["{each}", original]
        "favour-{domain}":
            merge: average
            of: ["{each}", original]
            weights: {"{domain}": 4}   # the others weigh 1
        smact:
            merge: average
            of: {runs: "{each}", last: 3}      # candidates of trainings
            search: !new:speechbrain_merge.search.GreedySearch
        tuned:
            merge: {ties: {density: 0.1}}
            of: "{each}"
            search: !new:speechbrain_merge.search.GoldenSection
                parameter: scale
        "second-{domain}":
            train: "{domain}"
            from: aode
            with: {lr: 1e-5}           # other settings of the training's YAML
            row: False                 # not in the table
        student:
            train: "{domain}"
            guide: aode                # whose CTC spikes it is guided by
            teachers: [aode, tuned]    # whose mean posterior it learns
        in-turn:
            in_turn: "{each}"          # one domain after the other
        sequential:
            in_turn: "{each}"
            merge_each: average        # of the model so far and the new expert
        aode-in-turn:
            merge: average
            of: "{each}"
            stages: True               # also of the first, the first two, …
        oracle:
            oracle: "{domain}"         # each test set by its expert
            otherwise: original
        ensemble:
            combine: ensemble
            of: [SSL, SL]
        aligned-SL:
            align: SL
            to: SSL
        repaired:
            repair: fused                      # REPAIR, arXiv 2211.08403
            of: [SSL, aligned-SL]              # what it was merged from
        last-year:
            load: results/old/merged.safetensors   # or a folder, pool, hub name
        "alike-{domain}":
            similarity: !name:alike.measure    # called with the Run and domain
            of: SL
            domain: "{domain}"
        "mam-{domain}":
            merge: attention_merge
            of: [bert]
            base: SL
            select_on: "{domain}"              # a search uses its selection set
            layers_of:                         # a search over similar layers
                similarity: "alike-{domain}"
                distance: euclidean
                numbers: [1, 2]
                ratios: [0.1, 0.2]
            row: False
        mam:
            by_domain: "mam-{domain}"          # each test set by its model

Example
-------
>>> models = {
...     "{domain}": {"train": "{domain}"},
...     "aode": {"merge": "average", "of": "{each}"},
...     "in-turn": {"in_turn": "{each}"},
... }
>>> for node in plan_models(models, ["child", "digits"], ["expert"]):
...     print(node.name, node.kind, *node.parents)
original original
child train original
digits train original
aode merge child digits
in-turn train child

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping, Sequence
from typing import Optional

from speechbrain_merge.records.paths import check_length
from speechbrain_merge.study.axes import SEED, check_filled, expand, fill
from speechbrain_merge.study.context import Context
from speechbrain_merge.study.nodes import (
    GENERALIST,
    ORIGINAL,
    Given,
    Node,
    Original,
)
from speechbrain_merge.study.specification import READERS

COMMON = {"title", "group", "row", "tests", "test_with"}


def plan_models(
    models: Mapping,
    domains: Sequence,
    trainings: Sequence,
    tests: Optional[Sequence] = None,
    seed: int = 0,
    draws: Sequence = (),
) -> list[Node]:
    """All models of a study, parents first.

    Arguments
    ---------
    models : dict
        Name to specification, as above. A model may use those above it.
    domains : list of str
        The values of ``{domain}`` and ``{each}``.
    trainings : list of str
        The names of the study's trainings; the first is the usual one.
    tests : list of str, optional
        All test sets, to check `tests` of single models.
    seed : int
        The value of ``{seed}``.
    draws : list of dict
        The values of ``{draw}`` and ``{draws}``.

    Returns
    -------
    list of Node
        The original is the first, where a model needs it.

    Raises
    ------
    ValueError
        Where an entry is wrong or does not fit the others. The message names
        the model and the key.
    """
    if len(set(domains)) < len(domains):
        raise ValueError(f"`domains` are {domains}: one is there twice.")
    original = Original(ORIGINAL, ORIGINAL, GENERALIST)
    planned = {ORIGINAL: original}
    for pattern, given in models.items():
        if not isinstance(given, Mapping):
            raise ValueError(
                f"Model '{pattern}' is {given!r}; expected a mapping that "
                f"begins with one of {', '.join(READERS)}."
            )
        if pattern == ORIGINAL:
            planned[ORIGINAL] = _original(given, tests)
            continue
        for name, filled, drawn in expand(pattern, given, domains, draws):
            filled = fill(filled, {SEED: seed})
            context = Context(
                name, domains, list(draws), list(trainings), planned, drawn
            )
            for node in _nodes(filled, context, tests):
                if node.name in planned:
                    raise ValueError(f"There are two models '{node.name}'.")
                planned[node.name] = node
    _check_titles(planned.values())
    used = {name for node in planned.values() for name in node.parents}
    if ORIGINAL not in used and ORIGINAL not in models:
        del planned[ORIGINAL]
    return list(planned.values())


def _original(given, tests):
    """The original, where the YAML says something of it."""
    where = f"Model '{ORIGINAL}'"
    unknown = [key for key in given if key not in COMMON | {"load"}]
    if unknown:
        raise ValueError(
            f"{where}: unknown keys {', '.join(unknown)}; expected "
            f"{', '.join(sorted(COMMON))} or load."
        )
    shown = _shown(given, ORIGINAL, GENERALIST, tests, where)
    if "load" in given:
        return Given(ORIGINAL, weights=str(given["load"]), **shown)
    return Original(ORIGINAL, **shown)


def _nodes(specification, context, tests):
    """The nodes of one entry; a sequence has several."""
    name, where = context.name, f"Model '{context.name}'"
    if not re.fullmatch(r"[\w+=,-][\w+=.,-]*", name):
        raise ValueError(
            f"{where}: expected a name that can be the name of a folder, of "
            "letters, digits and _+=.,-; `title` is the name in tables."
        )
    check_length(name, "The name of a model")
    kinds = [kind for kind in READERS if kind in specification]
    if len(kinds) != 1:
        raise ValueError(
            f"{where}: expected one of {', '.join(READERS)}, found "
            f"{' and '.join(kinds) or 'none'}."
        )
    kind = kinds[0]
    reader = READERS[kind]
    allowed = reader.keys | COMMON | {kind}
    unknown = [key for key in specification if key not in allowed]
    if unknown:
        raise ValueError(
            f"{where}: unknown keys {', '.join(map(str, unknown))}; with "
            f"`{kind}` there may be {', '.join(sorted(allowed - {kind}))}."
        )
    # in these keys `{domain}` and `{each}` go over all domains
    own = {"of", "train", "in_turn", "by_domain", "oracle", "select_on"}
    check_filled(
        {k: v for k, v in specification.items() if k not in own}, where
    )
    usual = reader.group(specification, context)
    shown = _shown(specification, name, usual, tests, where)
    yield from reader.read(specification, context, shown)


def _shown(specification, name, group, tests, where):
    """How a model is shown and tested."""
    asked = specification.get("tests")
    if asked is not None:
        asked = (asked,) if isinstance(asked, str) else tuple(asked)
        strangers = [t for t in asked if tests is not None and t not in tests]
        if strangers:
            raise ValueError(
                f"{where}: `tests` names {', '.join(strangers)}, and the study "
                f"has {', '.join(tests)}."
            )
    row = specification.get("row", True)
    if not isinstance(row, bool):
        raise ValueError(f"{where}: `row` is True or False, got {row!r}.")
    return {
        "title": str(specification.get("title", name)),
        "group": str(specification.get("group") or group),
        "row": row,
        "tests": asked,
        "test_with": dict(specification.get("test_with") or {}),
    }


def _check_titles(nodes):
    """Raises where two rows of a table would have the same name."""
    titles = {}
    for node in nodes:
        other = titles.setdefault(node.title, node.name)
        if node.row and other != node.name:
            raise ValueError(
                f"Models '{other}' and '{node.name}' have the same title "
                f"'{node.title}'."
            )
