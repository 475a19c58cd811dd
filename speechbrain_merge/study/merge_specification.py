"""How a merge is written in a study's YAML.

Authors
 * The speechbrain_merge authors 2026
"""

import copy
from collections.abc import Mapping

from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.stage.members import number
from speechbrain_merge.study.nodes import GENERALIST, SCRATCH, Merge
from speechbrain_merge.study.sequences import merged_by_stage

STAGE_OPTIONS = {
    "search",
    "average",
    "racing",
    "racing_error",
    "decode",
    "same_base",
    "workers",
    "device",
}


class MergeReader:
    """``merge: METHOD``, ``of: MEMBERS``."""

    keys = STAGE_OPTIONS | {
        "of",
        "weights",
        "parameters",
        "base",
        "select_on",
        "layers_of",
        "stages",
    }

    @staticmethod
    def group(specification, context):
        """A merge."""
        return "merge"

    @staticmethod
    def read(specification, context, shown):
        """One merge, or with `stages` those of the first experts, too."""
        if specification.get("stages"):
            yield from merged_by_stage(
                MergeReader.read, specification, context, shown
            )
            return
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
        method = method_of(specification, members, from_runs, context)
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


def method_of(specification, members, from_runs, context, key="merge"):
    """The merge method of an entry, an object of its own.

    Arguments
    ---------
    specification : dict
        The entry.
    members : list of str
        The models that are merged.
    from_runs : bool
        Whether their candidates are.
    context : Context
        Where the entry stands.
    key : str
        The key that names the method.

    Returns
    -------
    MergeMethod
    """
    method = specification[key]
    parameters = dict(specification.get("parameters") or {})
    if isinstance(method, Mapping):
        if len(method) != 1:
            raise ValueError(
                f"{context.where(key)} is {dict(method)}; expected a name, "
                "or one name with its parameters."
            )
        [(method, inside)] = method.items()
        parameters = {**(inside or {}), **parameters}
    if isinstance(specification.get("weights"), str):
        # a decay along the candidates of a training
        if not from_runs:
            raise ValueError(
                f"{context.where('weights')} is {specification['weights']!r}: "
                "a decay weighs the candidates of one training, `of: {runs: "
                "MODEL}`; give each model a number."
            )
        parameters["weights"] = specification["weights"]
    elif "weights" in specification:
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
                f"in the method itself, since `{key}` is not a name."
            )
        # a method may keep what it found for one merge
        return copy.deepcopy(method)
    try:
        return create(method, **parameters)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{context.where(key)}: {error}") from error


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
