"""Reading a study's models from its YAML, checked before anything is trained.

A study of continual learning names models that come of one another. A model is
one of these::

    models:
        "{domain}":                    # one for each domain
            train: "{domain}"          # from the original
        aode:
            merge: average
            of: "{each}"               # the models of all domains
        aode-with-original:
            merge: average
            of: ["{each}", original]
        "favour-{domain}":
            merge: average
            of: ["{each}", original]
            weights: {"{domain}": 4}   # of the others: 1
        "second-{domain}":
            train: "{domain}"
            from: aode
            with: {lr: 1e-5}           # other settings of the expert's YAML
            row: False                 # not in the table
        in-turn:
            in_turn: "{each}"          # one domain after the other
        oracle:
            oracle: "{domain}"         # each domain's test set by its expert
            otherwise: original

Example
-------
>>> models = {
...     "{domain}": {"train": "{domain}"},
...     "aode": {"merge": "average", "of": "{each}"},
...     "in-turn": {"in_turn": "{each}"},
... }
>>> for model in plan_models(models, ["child", "digits"]):
...     print(model.name, model.kind, *model.parents)
original original
child train original
digits train original
aode merge child digits
in-turn train child

Authors
 * The speechbrain_merge authors 2026
"""

import re

from model_graph import ORIGINAL, Model, known

from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.stage.members import number

# What a specification may say, by what it begins with
KEYS = {
    "train": {"from", "with"},
    "in_turn": {"from", "with", "reverse"},
    "merge": {"of", "weights", "parameters", "mixed_origins"},
    "oracle": {"otherwise"},
}
COMMON = {"title", "group", "row"}


def plan_models(models: dict, domains: list) -> list[Model]:
    """All models of a study, each after those that it comes of.

    Arguments
    ---------
    models : dict
        Name to specification, as above. A model may use those above it.
    domains : list of str
        What ``{domain}`` and ``{each}`` stand for.

    Returns
    -------
    list of Model
        The first is the original.

    Raises
    ------
    ValueError
        Where a specification is not one, or does not fit the others; the
        message names the model.
    """
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"`domains` are {domains}: expected different names.")
    planned = {ORIGINAL: Model(ORIGINAL, "original", ORIGINAL, "generalist")}
    for pattern, specification in models.items():
        for name, filled in _for_domains(pattern, specification, domains):
            for model in _models(name, filled, domains, planned):
                if model.name in planned:
                    raise ValueError(f"There are two models '{model.name}'.")
                planned[model.name] = model
    titles = {}
    for model in planned.values():
        other = titles.setdefault(model.title, model.name)
        if model.row and other != model.name:
            raise ValueError(
                f"Models '{other}' and '{model.name}' have the same title."
            )
    return list(planned.values())


def _for_domains(pattern, specification, domains):
    """Name and specification with ``{domain}`` and ``{each}`` filled in."""
    if not isinstance(specification, dict):
        raise ValueError(
            f"Model '{pattern}' is {specification!r}, expected a mapping that "
            f"begins with one of {', '.join(KEYS)}."
        )
    if "{domain}" not in pattern:
        yield pattern, specification
        return
    for domain in domains:
        yield (
            pattern.replace("{domain}", domain),
            _filled(specification, domain),
        )


def _filled(value, domain):
    """A value with ``{domain}`` filled in, wherever it stands in it."""
    if isinstance(value, str):
        return value.replace("{domain}", domain)
    if isinstance(value, dict):
        return {
            _filled(key, domain): _filled(entry, domain)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_filled(entry, domain) for entry in value]
    return value


def _each(value, domains):
    """A list of names, with one for each domain where ``{each}`` stands."""
    names = []
    for name in [value] if isinstance(value, str) else value:
        several = domains if "{each}" in name else [""]
        names += [name.replace("{each}", domain) for domain in several]
    return names


def _models(name, specification, domains, planned):
    """The model of a specification; of a sequence, those on the way too."""
    if not re.fullmatch(r"[\w+=,@-][\w+=.,@-]*", name):
        raise ValueError(
            f"Model '{name}': expected a name that can be a folder's, of "
            "letters, digits and _+=.,@-; `title` is what tables show."
        )
    kinds = [kind for kind in KEYS if kind in specification]
    if len(kinds) != 1:
        raise ValueError(
            f"Model '{name}': expected one of {', '.join(KEYS)}, found "
            f"{' and '.join(kinds) or 'none'}."
        )
    kind = kinds[0]
    allowed = KEYS[kind] | COMMON | {kind}
    unknown = [key for key in specification if key not in allowed]
    if unknown:
        raise ValueError(
            f"Model '{name}': nothing is known of {', '.join(unknown)}; with "
            f"`{kind}` there may be {', '.join(sorted(allowed - {kind}))}."
        )
    shown = {
        "title": specification.get("title", name),
        "row": specification.get("row", True),
    }
    group = specification.get("group")
    if kind in ("train", "in_turn"):
        start = specification.get("from", ORIGINAL)
        start = known(start, planned, f"Model '{name}': `from`")
        if planned[start].kind == "oracle":
            raise ValueError(
                f"Model '{name}': '{start}' is an oracle, which has no weights "
                "to start from."
            )
        order = tuple(_each(specification[kind], domains))
        settings = dict(specification.get("with") or {})
        if not order:
            raise ValueError(f"Model '{name}': no domain to train on.")
        if kind == "train":
            usual = "expert" if len(order) == 1 else "joint"
            group = group or usual
            found = {"start": start, "domains": order, "settings": settings}
            yield Model(name, "train", group=group, **found, **shown)
        else:
            order = order[::-1] if specification.get("reverse") else order
            group = group or "in turn"
            yield from _sequence(
                name, start, order, settings, group, shown, planned
            )
    elif kind == "merge":
        yield _merge(name, specification, domains, group, shown, planned)
    else:
        pattern = specification[kind]
        experts = {
            domain: known(
                _filled(pattern, domain), planned, f"Model '{name}': `oracle`"
            )
            for domain in domains
        }
        experts[None] = known(
            specification.get("otherwise", ORIGINAL),
            planned,
            f"Model '{name}': `otherwise`",
        )
        yield Model(
            name, "oracle", group=group or "oracle", experts=experts, **shown
        )


def _sequence(name, start, order, settings, group, shown, planned):
    """The trainings of a sequence; the same one of another model is shared."""
    stages = []
    for position, domain in enumerate(order, start=1):
        found = {"start": start, "domains": (domain,), "settings": settings}
        last = position == len(order)
        same = [
            model.name
            for model in planned.values()
            if model.kind == "train"
            and {key: getattr(model, key) for key in found} == found
        ]
        if same and not last:
            start = same[0]
        else:
            start = name if last else f"{name}-{position}"
            options = {**shown} if last else {"title": start, "row": False}
            options["stages"] = (*stages, name) if last else ()
            yield Model(start, "train", group=group, **found, **options)
        stages.append(start)


def _merge(name, specification, domains, group, shown, planned):
    """A model that is merged."""
    where = f"Model '{name}'"
    if "of" not in specification:
        raise ValueError(f"{where}: `of` is missing, the models to merge.")
    members = _each(specification["of"], domains)
    for member in members:
        known(member, planned, f"{where}: `of`")
        if planned[member].kind == "oracle":
            raise ValueError(
                f"{where}: '{member}' is an oracle, which has no weights."
            )
    if len(set(members)) < len(members):
        raise ValueError(
            f"{where}: a member is there twice in {members}; give `weights`."
        )
    origins = {
        member: planned[member].start
        for member in members
        if planned[member].kind == "train"
    }
    if len(set(origins.values())) > 1 and not specification.get(
        "mixed_origins"
    ):
        described = ", ".join(f"{m} from {o}" for m, o in origins.items())
        raise ValueError(
            f"{where}: its members were trained from different models "
            f"({described}), and the mean of such has no meaning in general. "
            "`mixed_origins: True` merges them all the same."
        )
    method = specification["merge"]
    parameters = dict(specification.get("parameters") or {})
    if "weights" in specification:
        parameters["weights"] = _weights(
            specification["weights"], members, where
        )
    if not isinstance(method, MergeMethod):
        method = create(method, **parameters)
    elif parameters:
        raise ValueError(
            f"{where}: {', '.join(parameters)} must stand in the method itself, "
            "since `merge` is not a name."
        )
    method.check_experts(len(members))
    return Model(
        name,
        "merge",
        group=group or "merge",
        method=method,
        members=tuple(members),
        **shown,
    )


def _weights(given, members, where):
    """One weight for each member; those that are not named weigh 1."""
    if isinstance(given, dict):
        strangers = [name for name in given if name not in members]
        if strangers:
            raise ValueError(
                f"{where}: `weights` has {', '.join(map(str, strangers))}, and "
                f"its members are {', '.join(members)}."
            )
        return [number(given.get(member, 1), member) for member in members]
    if len(given) != len(members):
        raise ValueError(
            f"{where}: {len(given)} `weights` for {len(members)} members "
            f"({', '.join(members)})."
        )
    return [number(value, name) for value, name in zip(given, members)]
