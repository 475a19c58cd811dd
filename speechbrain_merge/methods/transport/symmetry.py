"""The symmetry of one model: its spaces, and where in its tensors they lie.

A map (``symmetry_map``) describes an architecture. Here it is applied to the
names and shapes of one model. The result is plain data; see ``spaces``.

Example
-------
>>> import torch
>>> model = {
...     "fc1.weight": torch.ones(4, 3),
...     "fc1.bias": torch.ones(4),
...     "fc2.weight": torch.ones(2, 4),
... }
>>> mine = {
...     "names": ["mine"],
...     "tensors": {
...         "fc1.weight": ["hidden", "fixed"],
...         "fc1.bias": ["hidden"],
...         "fc2.weight": ["fixed", "hidden"],
...     },
... }
>>> symmetry(model, mine).spaces
{'hidden': Space(name='hidden', size=4, pinned='', blocks='')}

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import math
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from speechbrain_merge.methods.transport.spaces import (
    Blocks,
    Piece,
    Space,
    Symmetry,
)
from speechbrain_merge.methods.transport.symmetry_map import (
    UnsupportedArchitecture,
    fill,
    match,
    symmetry_map,
)
from speechbrain_merge.weights import (
    IncompatibleWeights,
    agreed_heads,
    open_weights,
)

FIXED, ANY = "fixed", "..."
NO_READER = "it leaves the model: no output layer here reads it"


@contextlib.contextmanager
def _naming(architecture):
    """Names a map of one's own in errors, since it may be what is wrong."""
    try:
        yield
    except ValueError as error:
        if not (
            isinstance(architecture, (str, Path)) and Path(architecture).suffix
        ):
            raise
        raise type(error)(f"{architecture}: {error}") from error


def symmetry(source, architecture="detect", heads=None) -> Symmetry:
    """The symmetry of a model.

    Arguments
    ---------
    source : any source of ``open_weights``
        The model, with weight norm and LoRA folded.
    architecture : str, Path, dict or SymmetryMap
        Registered name, map, or "detect".
    heads : int, optional
        Number of attention heads, where the tensors do not tell. A module and
        a Hugging Face folder say it themselves.

    Returns
    -------
    Symmetry

    Raises
    ------
    UnsupportedArchitecture
        Where no map fits.
    ValueError
        Where the map does not fit the model, the heads are not known, or
        there are others than was said.
    """
    with open_weights(source) as weights:
        heads = agreed_heads(heads, weights)
        shapes = {
            name: weights.shape(name)
            for name in weights.names()
            if weights.dtype(name).is_floating_point and weights.shape(name)
        }
        names, ties = list(shapes), weights.tied
        chart = symmetry_map(architecture, names).specialised(shapes)
        with _naming(architecture):
            entries, values, last = _entries(chart, names, weights.label)
    spelled = {
        name: _spelled(entry, values[name], last)
        for name, entry in entries.items()
    }
    spelled = _renamed(spelled, _same(chart.same, spelled, last))
    sizes = _sizes(spelled, shapes)
    with _naming(architecture):
        blocks = _blocks(chart, sizes, shapes, last, heads)
    belongs = {space: b.name for b in blocks.values() for space in b.spaces}
    pinned = {**chart.pinned, **_unread(chart.outputs, names, last)}
    spaces = {
        name: Space(name, size, _reason(pinned, name), belongs.get(name, ""))
        for name, size in sizes.items()
    }
    pieces = {}
    for name, entry in spelled.items():
        made = _pieces(name, entry, shapes[name], sizes, blocks, belongs)
        if any(axis for piece in made for axis in piece.axes):
            pieces[name] = made
    return Symmetry(
        chart.names[0], spaces, blocks, pieces, _ties(chart.tied, names, ties)
    )


def _unread(outputs, names, last):
    """Spaces that leave the model, since no layer in the file reads them."""
    return {
        fill(space, {}, last): NO_READER
        for space, readers in outputs.items()
        if not any(
            match(r, name) is not None for r in readers for name in names
        )
    }


def _ties(tied, names, stored):
    """Names of one tensor: as the weights say, and as the map says."""
    ties = dict(stored)
    for alias, kept in tied.items():
        found = [
            [name for name in names if match(pattern, name) is not None]
            for pattern in (alias, kept)
        ]
        if found[0] and found[1]:
            ties.setdefault(found[0][0], found[1][0])
    return ties


def _entries(chart, names, label):
    """The entry of each tensor that moves, and what its placeholders are."""
    entries, values, seen = {}, {}, {}
    last = defaultdict(int)
    lost = []
    for name in names:
        for pattern, entry in chart.tensors.items():
            found = match(pattern, name)
            if found is not None:
                break
        else:
            if not any(match(p, name) is not None for p in chart.fixed):
                lost.append(name)
            continue
        place = (pattern, tuple(found.values()))
        if place in seen:
            raise ValueError(
                f"{label}: {seen[place]} and {name} are both {pattern}. Give "
                "one model at a time."
            )
        seen[place] = name
        entries[name], values[name] = entry, found
        for key, value in found.items():
            if value.isdigit():
                last[key] = max(last[key], int(value))
    if lost:
        shown = ", ".join(lost[:5]) + (" …" if len(lost) > 5 else "")
        raise UnsupportedArchitecture(
            f"{label}: the map of {chart.names[0]} does not say how "
            f"{len(lost)} tensors move: {shown}. Give the right "
            "`architecture`, or a map with an entry for each "
            "(speechbrain_merge.methods.transport.symmetry_map)."
        )
    return entries, values, last


def _spelled(entry, values, last):
    """An entry with its placeholders filled in, as (kind, list of axes)."""
    if isinstance(entry, dict):
        ((kind, lists),) = entry.items()
        lists = [lists] if kind == "flat" else lists
    else:
        kind, lists = "plain", [entry]

    def axis(word):
        if isinstance(word, dict):
            ((how, inner),) = word.items()
            if how == "flatten":
                return (how, tuple(fill(one, values, last) for one in inner))
            return (how, fill(inner, values, last))
        return fill(str(word), values, last)

    return kind, [[axis(word) for word in words] for words in lists]


def _words(spelled):
    """All names of spaces in an entry, each where it stands alone."""
    for words in spelled[1]:
        for word in words:
            if isinstance(word, tuple):
                inner = word[1]
                yield from [inner] if isinstance(inner, str) else inner
            else:
                yield word


def _same(same, spelled, last):
    """Name of a space to the name that it goes by."""
    names = {w for entry in spelled.values() for w in _words(entry)}
    renamed = {}
    for left, right in same.items():
        for name in sorted(names):
            found = match(left, name)
            if found is not None:
                renamed[name] = fill(right, found, last)
    return renamed


def _renamed(spelled, names):
    def rename(word):
        if isinstance(word, tuple):
            how, inner = word
            if isinstance(inner, str):
                return how, names.get(inner, inner)
            return how, tuple(names.get(one, one) for one in inner)
        return names.get(word, word)

    return {
        name: (kind, [[rename(word) for word in words] for words in lists])
        for name, (kind, lists) in spelled.items()
    }


def _padded(words, length):
    """Words with ``...`` written out; as many as there are axes."""
    if ANY in words:
        place = words.index(ANY)
        missing = length - len(words) + 1
        words = [*words[:place], *[FIXED] * missing, *words[place + 1 :]]
    return words


def _sizes(spelled, shapes):
    """Name of a space to its number of units."""
    sizes, where = {}, {}
    for name, (kind, lists) in spelled.items():
        shape = shapes[name]
        if kind == "flat":
            shape = (math.prod(shape),)
        for words in lists:
            words = _padded(words, len(shape))
            if len(words) != len(shape) or shape[0] % len(lists):
                raise ValueError(
                    f"'{name}' of shape {list(shapes[name])} is not what the "
                    f"symmetry map says: {words}."
                )
            for axis, word in enumerate(words):
                if isinstance(word, tuple) and word[0] == "dual":
                    word = word[1]
                if isinstance(word, tuple) or word == FIXED:
                    continue
                size = shape[axis] // (len(lists) if axis == 0 else 1)
                if sizes.setdefault(word, size) != size:
                    raise IncompatibleWeights(
                        f"'{name}' has {size} units of '{word}', but "
                        f"'{where[word]}' has {sizes[word]}."
                    )
                where.setdefault(word, name)
    return sizes


def _reason(pinned, name):
    reasons = [why for glob, why in pinned.items() if fnmatchcase(name, glob)]
    return reasons[0] if reasons else ""


def _blocks(chart, sizes, shapes, last, heads):
    """The blocks of a model."""
    made = {}
    for template, entry in chart.blocks.items():
        found = [match(entry["spaces"][0], name) for name in sizes]
        for values in filter(lambda one: one is not None, found):
            name = fill(template, values, last)
            spaces = tuple(fill(s, values, last) for s in entry["spaces"])
            inside = entry.get("fixed_inside", ())
            size = [_size(sizes, space, template) for space in spaces][0]
            number = _number(entry, values, shapes, size)
            if number and heads and "number" in entry and number != heads:
                raise ValueError(
                    f"The tensors say that '{name}' has {number} heads, and "
                    f"{heads} were given: leave `heads` out, or check it."
                )
            number = number or heads
            if number is None:
                raise ValueError(
                    f"Nothing in the tensors says how many heads '{name}' "
                    "has: give `heads`, as in the model's configuration "
                    "(nhead, num_attention_heads)."
                )
            if number < 1 or any(sizes[space] % number for space in spaces):
                raise ValueError(
                    f"The units of {', '.join(spaces)} do not divide into "
                    f"{number} blocks: check `heads`."
                )
            made[name] = Blocks(
                name,
                spaces,
                number,
                bool(entry.get("fixed_order", False)),
                tuple(fill(space, values, last) for space in inside),
            )
    return made


def _size(sizes, space, where):
    """The number of units of a space that a map speaks of."""
    if space not in sizes:
        raise ValueError(
            f"symmetry map, '{where}': there is no space '{space}' among those "
            f"of this model ({', '.join(list(sizes)[:10])})."
        )
    return sizes[space]


def _number(entry, values, shapes, size):
    """The number of blocks, where a tensor tells."""
    for key in ("number", "size"):
        if key not in entry:
            continue
        for name, shape in shapes.items():
            found = match(entry[key]["tensor"], name)
            if found is not None and all(
                found.get(word, value) == value
                for word, value in values.items()
            ):
                axis = entry[key]["axis"]
                if axis >= len(shape) or not shape[axis]:
                    raise ValueError(
                        f"'{name}' of shape {list(shape)} does not tell the "
                        f"{key} of blocks in axis {axis}, as the symmetry map "
                        "says."
                    )
                told = shape[axis]
                return told if key == "number" else size // told
    return None


def _pieces(name, spelled, shape, sizes, blocks, belongs):
    """The pieces of one tensor."""
    kind, lists = spelled
    if kind == "flat":
        shape = (math.prod(shape),)
    parts = len(lists)
    rows = [None]
    if kind == "stacked":
        rows = list(torch.arange(shape[0]).chunk(parts))
    elif kind == "interleaved":
        first = lists[0][0] if lists[0] else None
        first = first[1] if isinstance(first, tuple) else first
        if first not in belongs:
            raise ValueError(
                f"'{name}' is interleaved by the heads of '{first}', and the "
                "symmetry map has no blocks with this space."
            )
        number = blocks[belongs[first]].number
        if shape[0] % (number * parts):
            raise ValueError(
                f"'{name}' of shape {list(shape)} does not divide into "
                f"{number} blocks of {parts} parts, as the symmetry map says."
            )
        table = torch.arange(shape[0]).unflatten(0, (number, parts, -1))
        rows = [table[:, part].flatten() for part in range(parts)]
    made = []
    for where, words in zip(rows, lists):
        words = _padded(words, len(shape))
        seen, axes, dual, within = [], [], [], None
        for axis, word in enumerate(words):
            size = shape[axis] // (parts if axis == 0 else 1)
            how, inner = word if isinstance(word, tuple) else ("", word)
            if how == "flatten":
                outer, fast = inner
                moving = fast if outer == FIXED else outer
                units = _size(sizes, moving, name)
                other = size // units if units else 0
                if other * units != size:
                    raise ValueError(
                        f"'{name}': {size} columns are no multiple of the "
                        f"{units} units of '{moving}'."
                    )
                seen += [other, sizes[fast]] if fast == moving else []
                seen += [sizes[outer], other] if fast != moving else []
                axes += [None, fast] if fast == moving else [outer, None]
                continue
            if how == "dual":
                dual.append(len(axes))
                how = ""
            if how == "within":
                within = len(axes)
            seen.append(size)
            axes.append(None if how or inner == FIXED else inner)
        made.append(
            Piece(name, where, tuple(seen), tuple(axes), within, tuple(dual))
        )
    return made
