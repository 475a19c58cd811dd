"""Layer-wise learning-rate decay: the lower a layer, the less it may change.

What a generalist has learned of sounds lies in the lower layers of its
encoder, and is what fine-tuning on a narrow domain forgets. The Average of
Domain Experts (Plantinga, Yoo, Girma & Dhir) therefore trains layer l of L
encoder layers with the rate ``lr * decay ** (L - 1 - l)``, and everything
else (front end, embeddings, decoder, output) with that of the lowest layer.

``layerwise_decay`` takes the place of an optimizer in the YAML of any
SpeechBrain recipe::

    opt_class: !name:speechbrain_merge.training.layerwise_decay
        modules: !ref <modules>
        optimizer: !name:torch.optim.AdamW
            lr: !ref <lr>
        decay: 0.9

No line of the recipe changes. SpeechBrain's schedulers write one rate into
all groups; that is understood as the full rate, which is that of the top layer,
and before each step every group gets its own share of it again. Clip with
``speechbrain_merge.training.ClipAllGroups``, as SpeechBrain's Brain clips the
first group only.

Example
-------
>>> encoder = torch.nn.TransformerEncoder(
...     torch.nn.TransformerEncoderLayer(8, 2, 16), num_layers=3
... )
>>> modules = {"encoder": encoder, "output": torch.nn.Linear(8, 5)}
>>> optimizer = layerwise_decay(
...     torch.nn.ModuleDict(modules).parameters(), modules, decay=0.5
... )
>>> [(group["name"], group["ratio"]) for group in optimizer.param_groups]
[('encoder.layers.2', 1.0), ('encoder.layers.1', 0.5), ('encoder.layers.0', 0.25), ('others', 0.25)]

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.training.rate_ratios import (
    check_names,
    full_rate_first,
    keep_ratios,
    put_full_rate_first,
)
from speechbrain_merge.weights import matches, part

logger = get_logger(__name__)

WORDS = ("lowest", "below", "full", "depth")
"""What `others` may say, besides a number; see `layerwise_decay`."""


@dataclass(frozen=True)
class _Place:
    """Where a parameter is: in layer `layer` of the list at `path`, if any."""

    name: str
    path: str = ""
    layer: Optional[int] = None
    stack: str = ""

    @property
    def in_encoder(self):
        return self.stack == "encoder" and self.layer is not None


def layerwise_decay(
    parameters: Iterable,
    modules: Union[torch.nn.Module, Mapping],
    optimizer: Callable = torch.optim.AdamW,
    decay: float = 0.9,
    others: Union[str, float, Mapping] = "lowest",
    encoder: Optional[str] = None,
    schedule: Optional[Callable] = None,
) -> torch.optim.Optimizer:
    """An optimizer whose rate falls from the encoder's top to its bottom.

    Arguments
    ---------
    parameters : iterable
        Parameters, or groups of them, as ``Brain.init_optimizers`` hands
        them over. A group's own options (a weight decay, a rate) are kept.
    modules : torch.nn.Module or dict
        The recipe's ``modules``, from which the parameters get their names.
    optimizer : callable
        Makes the optimizer out of groups, with the rate of the top layer as
        its ``lr``: ``!name:torch.optim.AdamW`` with ``lr`` in YAML.
    decay : float
        Rate of a layer relative to the layer above it, above 0, at most 1.
    others : str, float or dict
        The rate of all that is in no layer of the encoder, one of

        - ``lowest``: that of the lowest layer (the paper);
        - ``below``: one step below, for front ends and embeddings;
        - ``full``: that of the top layer, for new heads;
        - ``depth``: layers of a decoder by their own depth, its top layer at
          the full rate, what it has beside layers as its lowest layer;
        - a number, times the full rate;
        - a dict of parts, as ``speechbrain_merge.weights.matches`` takes
          them, to one of these. The first part that matches counts, and what
          none matches gets ``lowest``:
          ``{front_end: below, decoder: depth, output: full}``.
    encoder : str, optional
        Name of the list of layers that is the encoder, where it is not known
        by its name or there are several, e.g. ``wav2vec2.model.encoder.layers``.
    schedule : callable, optional
        Called with the optimizer before each of its steps, for recipes that
        do not call it themselves, e.g. a ``SlantedTriangularScheduler``.

    Returns
    -------
    torch.optim.Optimizer
        Each group has a ``name``, its ``lr``, and its ``ratio`` to the full
        rate. The first one always has the full rate, as SpeechBrain's
        schedulers and logs read the rate of the first group; where nothing
        is trained at the full rate, it is a group without parameters. What is
        frozen (needs no gradient) at this moment is in none; what is tied, in
        one.

    Raises
    ------
    ValueError
        When an argument is out of range, a parameter is in none of the
        modules, a part is in no model, or there is no one encoder.

    Example
    -------
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    >>> model = torch.nn.TransformerEncoder(layer, 2)
    >>> optimizer = layerwise_decay(
    ...     model.parameters(),
    ...     modules={"encoder": model},
    ...     optimizer=lambda groups: torch.optim.SGD(groups, lr=0.4),
    ...     decay=0.5,
    ... )
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.4, 0.2]
    """
    groups = layerwise_groups(parameters, modules, decay, others, encoder)
    built = optimizer(groups)
    full = built.defaults["lr"]
    for group in built.param_groups:
        if group["lr"] != full:  # a rate that the group came with
            group["ratio"] *= float(group["lr"] / full)
        group["lr"] = full * group["ratio"]
    put_full_rate_first(built, full)
    built.register_load_state_dict_pre_hook(check_names)
    built.register_step_pre_hook(keep_ratios)
    if schedule is not None:

        def follow(stepping, arguments, options):
            schedule(stepping)  # what it returns is not for the step

        built.register_step_pre_hook(follow)
    return built


def layerwise_groups(
    parameters: Iterable,
    modules: Union[torch.nn.Module, Mapping],
    decay: float = 0.9,
    others: Union[str, float, Mapping] = "lowest",
    encoder: Optional[str] = None,
) -> list[dict]:
    """The groups of `layerwise_decay`, for loops that make the optimizer.

    Arguments
    ---------
    parameters : iterable
        As for `layerwise_decay`, and so are the others.
    modules : torch.nn.Module or dict
        Where the names are from.
    decay : float
        Of the rate, from layer to layer.
    others : str, float or dict
        The rate of the rest.
    encoder : str, optional
        The encoder's list of layers.

    Returns
    -------
    list of dict
        With ``params``, ``name``, ``ratio`` and what the groups came with;
        the full rate (a ratio of 1) first where there is one, and then from
        the highest ratio to the lowest.

    Raises
    ------
    ValueError
        As `layerwise_decay`.
    """
    if isinstance(decay, bool) or not isinstance(decay, Real):
        raise ValueError(f"`decay` must be a number, got {decay!r}.")
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must be above 0 and at most 1, got {decay}.")
    others = _checked_others(others)
    places = _places(modules, encoder)
    handed = _handed(parameters, places)
    path = _encoder_path(handed, places, encoder)
    depths = _depths(places.values())
    beside = _depths(
        (place for place in places.values() if not place.in_encoder), "stack"
    )
    lowest = decay ** (depths[path] - 1)
    unused = set(others)

    def share(place):
        """Name of the group and the share of the full rate that it gets."""
        if place.in_encoder:
            above = depths[path] - 1 - place.layer
            return f"encoder.layers.{place.layer}", decay**above
        for pattern, rate in others.items():
            if pattern and not matches(place.name, pattern):
                continue
            unused.discard(pattern)
            name = pattern or "others"
            if rate == "depth":
                return _by_depth(place, name, decay, depths, beside, lowest)
            words = {"lowest": lowest, "below": lowest * decay, "full": 1.0}
            return name, words.get(rate, rate)
        return "others", lowest

    groups = {}
    count = 1 + max(number for _, _, number, _ in handed)
    for parameter, place, number, options in handed:
        name, ratio = share(place)
        if count > 1:
            name = f"{name} ({number})"
        group = groups.setdefault(
            (name, ratio),
            {**options, "params": [], "name": name, "ratio": float(ratio)},
        )
        group["params"].append(parameter)
    if unused - {""}:
        raise ValueError(
            f"`others` names {sorted(unused - {''})}, but no trainable "
            "parameter outside the encoder's layers belongs to it. Leave it "
            "out, or write a glob on the names of parameters, e.g. '*head*'."
        )
    logger.info(
        "Layer-wise learning-rate decay %g over the %d layers of '%s', "
        "in %d groups",
        decay,
        depths[path],
        path,
        len(groups),
    )
    return sorted(groups.values(), key=full_rate_first)


def _checked_others(others):
    """`others` as a dict; the empty pattern is all that is left."""
    given = others if isinstance(others, Mapping) else {"": others}
    for pattern, rate in given.items():
        number = isinstance(rate, Real) and not isinstance(rate, bool)
        if (number and rate <= 0) or not (number or rate in WORDS):
            key = f"others.{pattern}" if pattern else "others"
            raise ValueError(
                f"`{key}` must be one of {', '.join(WORDS)}, or a number "
                f"above 0, got {rate!r}."
            )
    return dict(given)


def _places(modules, encoder):
    """The place of each parameter, by id.

    Of the names of a tied parameter, one in the encoder's layers counts most,
    one in other layers next.
    """
    if isinstance(modules, Mapping):
        modules = torch.nn.ModuleDict(modules)
    found = {}
    for name, parameter in modules.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(_place(name, encoder))
    return {
        key: min(names, key=lambda at: (not at.in_encoder, at.layer is None))
        for key, names in found.items()
    }


def _place(name, encoder):
    if encoder is not None:
        own = re.match(re.escape(encoder) + r"\.(\d+)\.", name)
        if own:
            return _Place(name, encoder, int(own.group(1)), "encoder")
    known = part(name)
    if known.layer is None:
        return _Place(name, stack=known.stack)
    path = re.match(rf"(.*?(^|\.)(layers?|blocks))\.{known.layer}\.", name)
    # An encoder that was given by name leaves no other
    other = encoder is not None and known.stack == "encoder"
    stack = "" if other else known.stack
    return _Place(name, path.group(1), known.layer, stack)


def _depths(places, by="path"):
    """How many layers each list has, the frozen ones included."""
    depths = {}
    for place in places:
        if place.layer is not None:
            key = getattr(place, by)
            depths[key] = max(depths.get(key, 0), place.layer + 1)
    return depths


def _handed(parameters, places):
    """(parameter, place, number of its group, options) of the trainable."""
    handed, seen, strangers = [], set(), []
    for number, group in enumerate(_as_groups(parameters)):
        options = {key: group[key] for key in group if key != "params"}
        for parameter in group["params"]:
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) not in places:
                strangers.append(tuple(parameter.shape))
                continue
            place = places[id(parameter)]
            handed.append((parameter, place, number, options))
    if strangers:
        raise ValueError(
            f"{len(strangers)} of the parameters to optimize are in none of "
            f"`modules`; the first has the shape {strangers[0]}. Give the "
            "modules that the Brain has: `modules: !ref <modules>`."
        )
    if not handed:
        raise ValueError("There is no trainable parameter to optimize.")
    return handed


def _as_groups(parameters):
    parameters = list(parameters)
    if parameters and isinstance(parameters[0], Mapping):
        return parameters
    return [{"params": parameters}]


def _encoder_path(handed, places, encoder):
    """The list of layers that is the encoder, the only one."""
    paths = {}
    for _, place, _, _ in handed:
        if place.in_encoder:
            paths.setdefault(place.path)
    if len(paths) == 1:
        return next(iter(paths))
    known = sorted(_depths(places.values()))
    advice = (
        "Name the list of the encoder's layers, e.g. `encoder: "
        f"{next(iter(paths), 'model.encoder.layers')}`. "
        f"Numbered layers are in: {', '.join(known) or 'none of the modules'}."
    )
    if encoder is not None:
        raise ValueError(
            f"`encoder: {encoder}` has no layers with trainable parameters. "
            + advice
        )
    if not paths:
        raise ValueError(
            "No encoder layer was found among the trainable parameters: the "
            "architecture is unknown, or its encoder is frozen. " + advice
        )
    raise ValueError(f"There are {len(paths)} encoders. " + advice)


def _by_depth(place, name, decay, depths, beside, lowest):
    """A decoder's layers by their depth in it, its rest as its lowest."""
    if place.layer is not None:
        above = depths[place.path] - 1 - place.layer
        return f"{place.path}.{place.layer}", decay**above
    if place.stack in beside:
        return place.stack or name, decay ** (beside[place.stack] - 1)
    return name, lowest
