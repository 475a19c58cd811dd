"""How each kind of model is written in a study's YAML.

A reader knows the keys of one kind and turns an entry into nodes. The kinds
and their keys are in the module docstring of ``study/plan.py``.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping

from speechbrain_merge.methods import create
from speechbrain_merge.study.axes import DOMAIN, fill
from speechbrain_merge.study.merge_specification import MergeReader, method_of
from speechbrain_merge.study.nodes import (
    ORIGINAL,
    SCRATCH,
    Align,
    ByDomain,
    Combine,
    Given,
    Repair,
    Similarity,
    Train,
)
from speechbrain_merge.study.sequences import merged_in_turn

COMBINATIONS = ("oracle", "selection", "ensemble")


class _Train:
    """``train: DOMAINS``."""

    keys = {"from", "with", "training", "seed_offset", "guide", "teachers"}

    @staticmethod
    def group(specification, context):
        """An expert of one domain, or of several."""
        several = len(context.names(specification["train"])) > 1
        return "joint" if several else "expert"

    @staticmethod
    def read(specification, context, shown):
        """One training."""
        domains = tuple(context.names(specification["train"]))
        if not domains:
            raise ValueError(
                f"{context.where('train')}: no domain to train on."
            )
        guide = specification.get("guide")
        teachers = context.names(specification.get("teachers") or [])
        yield Train(
            context.name,
            domains=domains,
            guide=None if guide is None else context.model(guide, "guide"),
            teachers=tuple(
                context.model(name, "teachers") for name in teachers
            ),
            **_training(specification, context),
            **shown,
        )


class _InTurn:
    """``in_turn: DOMAINS``: one after the other, perhaps merged in between."""

    keys = {"from", "with", "training", "seed_offset", "reverse", "merge_each"}

    @staticmethod
    def group(specification, context):
        """A group of its own, or that of merges."""
        return "merge" if "merge_each" in specification else "in turn"

    @staticmethod
    def read(specification, context, shown):
        """A training for each domain; equal beginnings are shared."""
        order = tuple(context.names(specification["in_turn"]))
        if specification.get("reverse"):
            order = order[::-1]
        if not order:
            raise ValueError(
                f"{context.where('in_turn')}: no domain to train on."
            )
        common = _training(specification, context)
        if "merge_each" in specification:
            two = [common["start"], order[0]]
            method = method_of(specification, two, False, context, "merge_each")
            method.check_experts(2)
            yield from merged_in_turn(
                context.name, order, common, method, context.planned, shown
            )
            return
        start, stages, added = common.pop("start"), [], []
        for position, domain in enumerate(order, start=1):
            found = {"start": start, "domains": (domain,), **common}
            last = position == len(order)
            same = [
                node.name
                for node in (*context.planned.values(), *added)
                if node.kind == "train"
                and {key: getattr(node, key) for key in found} == found
            ]
            if same and not last:
                start = same[0]
            else:
                start = context.name if last else f"{context.name}-{position}"
                options = {
                    "title": start,
                    "group": shown["group"],
                    "row": False,
                }
                options["tests"] = ()
                if last:
                    options = {**shown, "stages": (*stages, start)}
                    if len(order) == 1:
                        options["stages"] = ()
                added.append(Train(start, **found, **options))
            stages.append(start)
        yield from added


class _Align:
    """``align: MODEL``, ``to: MODEL``."""

    keys = {"to", "parameters", "device"}

    @staticmethod
    def group(specification, context):
        """An alignment."""
        return "aligned"

    @staticmethod
    def read(specification, context, shown):
        """One alignment."""
        if "to" not in specification:
            raise ValueError(
                f"Model '{context.name}': `to` is missing, the model that "
                "it is aligned to."
            )
        parameters = {"hard": True, **(specification.get("parameters") or {})}
        yield Align(
            context.name,
            source=context.model(specification["align"], "align"),
            anchor=context.model(specification["to"], "to"),
            method=create("optimal_transport", **parameters),
            device=specification.get("device", "cpu"),
            **shown,
        )


class _Repair:
    """``repair: MERGE``, ``of: MODELS``."""

    keys = {"of", "weights"}

    @staticmethod
    def group(specification, context):
        """A merge."""
        return "merge"

    @staticmethod
    def read(specification, context, shown):
        """One repaired merge."""
        members = context.names(specification.get("of") or [])
        if len(members) < 2:
            raise ValueError(
                f"{context.where('of')}: expected the models that were merged, "
                "two or more, aligned."
            )
        weights = tuple(specification.get("weights") or ())
        if weights and len(weights) != len(members):
            raise ValueError(
                f"{context.where('weights')}: expected one for each of the "
                f"{len(members)} models, got {len(weights)}."
            )
        yield Repair(
            context.name,
            merged=context.model(specification["repair"], "repair"),
            members=tuple(context.model(name, "of") for name in members),
            weights=weights,
            **shown,
        )


class _ByDomain:
    """``by_domain`` or ``oracle``: each test set by the model of its domain."""

    keys = {"otherwise"}

    @staticmethod
    def group(specification, context):
        """An oracle knows the domain; other rows only sum several up."""
        return "oracle" if "oracle" in specification else "by domain"

    @staticmethod
    def read(specification, context, shown):
        """One row that is made of several models."""
        key = "oracle" if "oracle" in specification else "by_domain"
        experts = {
            domain: context.model(
                fill(specification[key], {DOMAIN: domain}), key
            )
            for domain in context.domains
        }
        # an oracle leaves sets of no domain to the original
        usual = ORIGINAL if key == "oracle" else None
        otherwise = specification.get("otherwise", usual)
        if otherwise is not None:
            otherwise = context.model(otherwise, "otherwise")
        yield ByDomain(
            context.name, experts=experts, otherwise=otherwise, **shown
        )


class _Combine:
    """``combine: ensemble``, ``of: MODELS``."""

    keys = {"of"}

    @staticmethod
    def group(specification, context):
        """A combination."""
        return "combination"

    @staticmethod
    def read(specification, context, shown):
        """One combination."""
        how = specification["combine"]
        if how not in COMBINATIONS:
            raise ValueError(
                f"{context.where('combine')} is {how!r}; expected one of "
                f"{', '.join(COMBINATIONS)}."
            )
        members = context.names(specification.get("of") or [])
        if len(members) < 2:
            raise ValueError(
                f"{context.where('of')}: expected two models or more."
            )
        for name in members:
            context.model(name, "of")
        yield Combine(context.name, how=how, members=tuple(members), **shown)


class _Given:
    """``load: PATH``: weights that exist."""

    keys = set()

    @staticmethod
    def group(specification, context):
        """Weights that were made elsewhere."""
        return "given"

    @staticmethod
    def read(specification, context, shown):
        """One set of weights."""
        yield Given(context.name, weights=str(specification["load"]), **shown)


class _Similarity:
    """``similarity: MEASURE``, ``of: MODEL``, ``domain: DOMAIN``."""

    keys = {"of", "domain"}

    @staticmethod
    def group(specification, context):
        """Never shown."""
        return "similarity"

    @staticmethod
    def read(specification, context, shown):
        """One measurement."""
        measure = specification["similarity"]
        if not callable(measure):
            raise ValueError(
                f"{context.where('similarity')} is {measure!r}; expected a "
                "function, by `!name:`."
            )
        if specification.get("domain") not in context.domains:
            raise ValueError(
                f"{context.where('domain')}: expected one of the domains "
                f"{', '.join(context.domains)}."
            )
        yield Similarity(
            context.name,
            measure=measure,
            of=context.model(specification.get("of"), "of"),
            domain=specification["domain"],
            **{**shown, "row": False, "tests": ()},
        )


READERS = {
    "train": _Train,
    "in_turn": _InTurn,
    "merge": MergeReader,
    "align": _Align,
    "repair": _Repair,
    "by_domain": _ByDomain,
    "oracle": _ByDomain,
    "combine": _Combine,
    "similarity": _Similarity,
    "load": _Given,
}


def _training(specification, context):
    """The settings that all trainings of an entry share."""
    start = specification.get("from", ORIGINAL)
    if start != SCRATCH:
        start = context.model(start, "from")
    settings = specification.get("with") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"{context.where('with')} is {settings!r}; expected keys of the "
            "training's YAML and their values."
        )
    return {
        "training": context.training(specification),
        "start": start,
        "settings": {**context.drawn, **settings},
        "seed_offset": int(specification.get("seed_offset", 0)),
    }
