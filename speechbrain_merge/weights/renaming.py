"""The same model under other names.

One model has different names in different places: a Whisper on the hub has
``model.encoder.conv1.weight``, and a pool that collects the recipe's module
``whisper`` has ``whisper.model.encoder.conv1.weight``. To use the one as the
base of the other, names are matched by what follows their prefixes.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> hub = {"model.conv.weight": torch.ones(1)}
>>> expert = open_weights({"whisper.model.conv.weight": torch.zeros(1)})
>>> renamed(hub, expert).names()
['whisper.model.conv.weight']

Authors
 * The speechbrain_merge authors 2026
"""

from collections import Counter
from typing import Any

from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.source import open_weights


def renamed(source: Any, like: Weights) -> Weights:
    """Weights under the names that another model has for them.

    For each module of the other model (the first component of its names) one
    exchange of prefixes is found, that which fits the most names, and applied
    to all. A private buffer that the source does not store (Whisper's table
    ``_mel_filters``, the same in every model of the family) is the other
    model's.

    Arguments
    ---------
    source : object
        Anything that ``open_weights`` opens.
    like : Weights
        An open model with the names that are wanted.

    Returns
    -------
    weights : Weights
        With exactly the names of ``like``; the source itself where it has
        these already.

    Raises
    ------
    ValueError
        When a tensor has no counterpart; names the first of them.
    """
    weights = open_weights(source)
    if set(weights.names()) == set(like.names()):
        return weights
    exchanges = _exchanges(weights, like)
    entries, missing = {}, []
    for name in like.names():
        wanted, stored = exchanges.get(name.partition(".")[0], ("", ""))
        found = stored + name[len(wanted) :]
        if name.startswith(wanted) and found in weights:
            entries[name] = weights.entry(found)
        elif name.rpartition(".")[2].startswith("_"):
            entries[name] = like.entry(name)
        else:
            missing.append(name)
    if missing:
        raise ValueError(
            f"{weights.label} is not the same kind of model as {like.label}: "
            f"it has no counterpart of {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            + f". Its names look like {', '.join(weights.names()[:3])}."
        )
    return Weights(
        entries, weights.label, weights.metadata, on_close=weights.close
    )


def _exchanges(weights, like):
    """For each module, which prefix to take off and which to put on."""
    known = {}
    for name in weights.names():
        for prefix, rest in _splits(name):
            known.setdefault(rest, []).append(prefix)
    votes = {}
    for name in like.names():
        counter = votes.setdefault(name.partition(".")[0], Counter())
        for wanted, rest in _splits(name):
            for stored in known.get(rest, ()):
                counter[wanted, stored] += 1
    # Many exchanges fit a name (the more is cut off, the more there are); of
    # those that fit the most names the one that cuts least is meant.
    return {
        module: min(
            counter,
            key=lambda pair: (-counter[pair], sum(map(len, pair))),
        )
        for module, counter in votes.items()
        if counter
    }


def _splits(name):
    """Every way to cut a name into a prefix and a rest."""
    components = name.split(".")
    # The last word alone ("weight") does not say which tensor it is.
    for cut in range(max(1, len(components) - 1)):
        prefix = "".join(f"{component}." for component in components[:cut])
        yield prefix, ".".join(components[cut:])
