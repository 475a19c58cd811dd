"""How each kind of model is written in a study's YAML.

A reader knows the keys of one kind and turns an entry into nodes. The kinds
and their keys are in the module docstring of ``study/plan.py``.

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence

from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.stage.members import number
from speechbrain_merge.study.axes import DOMAIN, fill, names_of
from speechbrain_merge.study.graph import (
    GENERALIST,
    ORIGINAL,
    SCRATCH,
    Align,
    ByDomain,
    Combine,
    Given,
    Merge,
    Similarity,
    Train,
    check_known,
)

COMBINATIONS = ("oracle", "selection", "ensemble")
STAGE_OPTIONS = {
    "search",
    "average",
    "racing",
    "decode",
    "same_base",
    "workers",
}


@dataclasses.dataclass
class Context:
    """What a reader knows besides the entry.

    Arguments
    ---------
    name : str
        The model's name.
    domains : list of str
        All domains.
    draws : list of dict
        All draws.
    trainings : list of str
        The study's trainings.
    planned : dict
        Name to Node of all models above.
    drawn : dict
        Overrides that were drawn for this model.
    """

    name: str
    domains: Sequence
    draws: Sequence
    trainings: Sequence
    planned: Mapping
    drawn: Mapping

    def where(self, key: str) -> str:
        """How a message names a key of this model."""
        return f"Model '{self.name}': `{key}`"

    def names(self, value) -> list:
        """Names with ``{each}`` and ``{draws}`` filled in."""
        return names_of(value, self.domains, self.draws)

    def model(self, name: str, key: str, weights: bool = True) -> str:
        """The name of a model above this one."""
        check_known(name, self.planned, self.where(key))
        node = self.planned[name]
        if weights and not node.has_weights:
            raise ValueError(
                f"{self.where(key)}: '{name}' ({node.kind}) has no weights of "
                "its own."
            )
        return name

    def training(self, specification) -> str:
        """The training that an entry asks for."""
        if not self.trainings:
            raise ValueError(
                f"Model '{self.name}' is trained, and the study has no "
                "`trainings`."
            )
        name = specification.get("training", self.trainings[0])
        if name not in self.trainings:
            raise ValueError(
                f"{self.where('training')}: there is no training '{name}'. "
                f"There are: {', '.join(self.trainings)}."
            )
        return name


class _Train:
    """``train: DOMAINS``."""

    keys = {"from", "with", "training", "seed_offset"}

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
        yield Train(
            context.name,
            domains=domains,
            **_training(specification, context),
            **shown,
        )


class _InTurn:
    """``in_turn: DOMAINS``: one after the other."""

    keys = {"from", "with", "training", "seed_offset", "reverse"}

    @staticmethod
    def group(specification, context):
        """A group of its own."""
        return "in turn"

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


class _Merge:
    """``merge: METHOD``, ``of: MEMBERS``."""

    keys = STAGE_OPTIONS | {
        "of",
        "weights",
        "parameters",
        "base",
        "select_on",
        "layers_of",
    }

    @staticmethod
    def group(specification, context):
        """A merge."""
        return "merge"

    @staticmethod
    def read(specification, context, shown):
        """One merge."""
        given = specification.get("of")
        if given is None:
            raise ValueError(
                f"Model '{context.name}': `of` is missing, the models that are "
                "merged."
            )
        chosen, from_runs = {}, isinstance(given, Mapping)
        if from_runs:
            chosen = {k: v for k, v in given.items() if k != "runs"}
            unknown = set(chosen) - {"last", "best", "per_run"}
            if unknown or "runs" not in given:
                raise ValueError(
                    f"{context.where('of')} is {dict(given)}; expected `runs`, "
                    "and perhaps `last`, `best` or `per_run`."
                )
            given = given["runs"]
        members = context.names(given)
        _check_members(members, from_runs, specification, context)
        base = specification.get("base")
        search = specification.get("search")
        if search is not None and not hasattr(search, "searches"):
            raise ValueError(
                f"{context.where('search')} must come from "
                f"speechbrain_merge.search, got {type(search).__name__}."
            )
        method = _method(specification, members, from_runs, context)
        searches = getattr(search, "searches", None) == "candidates"
        if not from_runs:
            method.check_experts(1 if searches else len(members))
        on = specification.get("select_on")
        yield Merge(
            context.name,
            method=method,
            members=tuple(members),
            from_runs=from_runs,
            chosen=chosen,
            base=None if base is None else context.model(base, "base"),
            options={
                key: specification[key]
                for key in sorted(STAGE_OPTIONS)
                if key in specification
            },
            select_on=tuple(context.names(on)) if on else (),
            layers_of=_layers(specification, context),
            **shown,
        )


class _Align:
    """``align: MODEL``, ``to: MODEL``."""

    keys = {"to", "parameters"}

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
    "merge": _Merge,
    "align": _Align,
    "by_domain": _ByDomain,
    "oracle": _ByDomain,
    "combine": _Combine,
    "similarity": _Similarity,
    "load": _Given,
}


def _training(specification, context):
    """What all trainings of an entry share."""
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


def _check_members(members, from_runs, specification, context):
    """Raises where models cannot be members of one merge."""
    for member in members:
        context.model(member, "of")
        if from_runs and context.planned[member].kind != "train":
            raise ValueError(
                f"{context.where('of.runs')}: '{member}' "
                f"({context.planned[member].kind}) is not trained in this "
                "study, and has no candidates."
            )
    if len(set(members)) < len(members):
        raise ValueError(
            f"{context.where('of')}: a member is there twice in {members}; "
            "give `weights` instead."
        )
    origins = {
        m: context.planned[m].origin
        for m in members
        # all models come from it, as they do from the original
        if context.planned[m].group != GENERALIST
    }
    # what was trained from scratch is the origin of its own fine-tunings
    origins = {
        m: m if origin == SCRATCH else origin
        for m, origin in origins.items()
        if origin
    }
    if len(set(origins.values())) > 1 and specification.get("same_base", True):
        described = ", ".join(f"{m} from {o}" for m, o in origins.items())
        raise ValueError(
            f"Model '{context.name}': its members were trained from different "
            f"models ({described}), and their merge is in general no model. "
            "If that is meant, set `same_base: False`."
        )


def _method(specification, members, from_runs, context):
    """The merge method of an entry, an object of its own."""
    method = specification["merge"]
    parameters = dict(specification.get("parameters") or {})
    if isinstance(method, Mapping):
        if len(method) != 1:
            raise ValueError(
                f"{context.where('merge')} is {dict(method)}; expected a name, "
                "or one name with its parameters."
            )
        [(method, inside)] = method.items()
        parameters = {**(inside or {}), **parameters}
    if "weights" in specification:
        if from_runs:
            raise ValueError(
                f"{context.where('weights')} go with models, not with the "
                "candidates of runs."
            )
        parameters["weights"] = _weights(
            specification["weights"], members, context
        )
    if isinstance(method, MergeMethod):
        if parameters:
            raise ValueError(
                f"Model '{context.name}': {', '.join(parameters)} must stand "
                "in the method itself, since `merge` is not a name."
            )
        # a method may keep what it found for one merge
        return copy.deepcopy(method)
    try:
        return create(method, **parameters)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{context.where('merge')}: {error}") from error


def _weights(given, members, context):
    """One weight for each member; those that are not named weigh 1."""
    if isinstance(given, Mapping):
        strangers = [name for name in given if name not in members]
        if strangers:
            raise ValueError(
                f"{context.where('weights')} has "
                f"{', '.join(map(str, strangers))}, and the members are "
                f"{', '.join(members)}."
            )
        return [number(given.get(member, 1), member) for member in members]
    if len(given) != len(members):
        raise ValueError(
            f"{context.where('weights')}: {len(given)} weights for "
            f"{len(members)} members ({', '.join(members)})."
        )
    return [number(value, name) for value, name in zip(given, members)]


def _layers(specification, context):
    """How layers that a similarity found become a search."""
    given = specification.get("layers_of")
    if given is None:
        return None
    expected = {"similarity", "distance", "numbers", "ratios"}
    if not isinstance(given, Mapping) or set(given) != expected:
        raise ValueError(
            f"{context.where('layers_of')}: expected the keys "
            f"{', '.join(sorted(expected))}."
        )
    context.model(given["similarity"], "layers_of", weights=False)
    return dict(given)
