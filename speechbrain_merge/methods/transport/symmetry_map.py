"""Symmetry maps: which axes of which tensors of a model move together.

The units of a layer have no order: permute the rows of the matrix that makes
them, and the columns of all that read them, and the model computes what it
computed before. A *space* is such a set of units, and a map says for each
tensor, axis by axis, which space it lies in. Maps are YAML files in ``maps``,
data that a person can read; a new architecture is a new file.

An entry of ``tensors`` is the name of a tensor, without what it may be called
before (``Transformer.encoder.layers.0…`` matches ``encoder.layers.{layer}…``),
with placeholders in braces that stand for one part of a name, and its axes:

``[feed_forward.{layer}, stream]``
    One space an axis; ``fixed`` for an axis that does not move, ``...`` for
    any number of those.
``{stacked: [axes, axes]}``
    The rows are equal parts one after the other, each with axes of its own.
``{interleaved: [axes, axes]}``
    So are the rows of each head.
``{flat: [axes]}``
    The tensor is used flattened, whatever its shape.
``{flatten: [fixed, channels]}``
    In the place of an axis: it is two axes in one, the last moving fastest.
``{dual: query_key}``
    In the place of an axis: its units are multiplied with those of the other
    tensors of this space, as keys are with queries. They are permuted alike;
    maps inside heads (``head_maps``) turn them the other way.
``{within: stream}``
    In the place of an axis: position inside the block of the row.

``{layer-1}`` is one less, ``{layer:last}`` the last there is. Other entries:

``fixed``: tensors that do not move. ``same``: two names of one space.
``pinned``: spaces that cannot move, and why. ``blocks``: spaces whose units lie
in blocks that move whole, attention heads above all; ``number`` or ``size``
says where their number or size can be read (the number of heads is otherwise
asked for), ``fixed_inside`` lists spaces whose order in a block is fixed,
``fixed_order`` keeps the blocks in their places. ``outputs``: spaces that may
leave the model, and the output layers that read them; where the file has none
of these layers, as with a bare encoder, the space cannot move. ``tied``: two
names of one tensor, which counts once. ``variants`` add to all this where the
tensors of ``present`` are there, those of ``absent`` are not, and those of
``one_axis`` have one axis. ``include`` starts from other files,
``NAME.part.yaml``.

Example
-------
>>> architectures()
['conformer', 'hubert', 'transformer', 'wav2vec2', 'wavlm', 'whisper']
>>> symmetry_map("conformer").tensors["encoder.norm.norm.weight"]
['stream']

Authors
 * The speechbrain_merge authors 2026
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from speechbrain_merge.records.checked import (
    fields,
    file_name,
    listed,
    mapped,
    some,
    text,
    truth,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.records.reading import read_yaml

MAPS = Path(__file__).parent / "maps"

_PLACEHOLDER = re.compile(r"\{(\w+)(-1|:last)?\}")
MOST_ENTRIES = 2000
LONGEST_PATTERN = 500


def _pattern(value, where):
    """A name with placeholders, of which each part has one at most.

    With more of them, and with more than one ``{rest}``, there would be many
    ways to match a name, and their number would grow with its length.
    """
    text(LONGEST_PATTERN)(value, where)
    found = [each.group(1) for each in _PLACEHOLDER.finditer(value)]
    parts = _PLACEHOLDER.sub("{}", value).split(".")
    if found.count("rest") > 1 or any(part.count("{}") > 1 for part in parts):
        raise RecordError(
            f"{where}: expected one placeholder between two dots at most, and "
            f"one {{rest}}, got {shown(value)}"
        )
    if any(re.match("[0-9]", name) for name in found):
        raise RecordError(
            f"{where}: the name of a placeholder begins with a letter, got "
            f"{shown(value)}"
        )
    return value


def _by_pattern(each):
    """A mapping from patterns to values that pass a check."""

    def check(value, where):
        found = mapped(each, MOST_ENTRIES)(value, where)
        for key in found:
            _pattern(key, where)
        return found

    return check


def _exactly(number, each):
    """A list of so many entries that pass a check."""

    def check(value, where):
        found = listed(each, limit=number)(value, where)
        if len(found) < number:
            raise RecordError(f"{where}: expected {number} entries")
        return found

    return check


def _one_key(value, where):
    if isinstance(value, dict) and len(value) == 1:
        return value
    raise RecordError(f"{where}: expected one key, got {shown(value)}")


def _either_key(**checks):
    """A mapping with one key of several."""

    def check(value, where):
        return fields({}, checks, unknown="refuse")(
            _one_key(value, where), where
        )

    return check


_patterns = listed(_pattern, limit=MOST_ENTRIES)
_two_axes_in_one = _either_key(
    flatten=_exactly(2, _pattern), within=_pattern, dual=_pattern
)


def _axis(value, where):
    check = _two_axes_in_one if isinstance(value, dict) else _pattern
    return check(value, where)


_axes = listed(_axis, limit=20)
_several_axes = some(_axes, limit=20)
_arranged = _either_key(
    stacked=_several_axes, interleaved=_several_axes, flat=_axes
)


def _tensor(value, where):
    check = _arranged if isinstance(value, dict) else _axes
    return check(value, where)


_told = fields({"tensor": _pattern, "axis": whole(0, 20)}, unknown="refuse")
_sections = {
    "tensors": _by_pattern(_tensor),
    "fixed": _patterns,
    "same": _by_pattern(_pattern),
    "pinned": mapped(text(), MOST_ENTRIES),
    "blocks": _by_pattern(
        fields(
            {"spaces": some(_pattern, limit=20)},
            {
                "number": _told,
                "size": _told,
                "fixed_inside": listed(_pattern, limit=20),
                "fixed_order": truth,
            },
            unknown="refuse",
        )
    ),
    "outputs": _by_pattern(_patterns),
    "tied": _by_pattern(_pattern),
}
_names_of_tensors = {"present": _patterns, "absent": _patterns}
_map = fields(
    {},
    {
        **_sections,
        "names": some(text(100), limit=100),
        "about": text(),
        "include": listed(file_name, limit=100),
        "detect": fields({}, _names_of_tensors, unknown="refuse"),
        "variants": listed(
            fields(
                {},
                {
                    **_sections,
                    **_names_of_tensors,
                    "one_axis": _patterns,
                    "about": text(),
                },
                unknown="refuse",
            ),
            limit=100,
        ),
    },
    unknown="refuse",
)
"""The content of a file, or of a part that others include."""


class UnsupportedArchitecture(ValueError):
    """No map is known for a model; the message says how to write one."""


@dataclass(frozen=True)
class SymmetryMap:
    """The content of a YAML file; see above.

    Arguments
    ---------
    names : tuple of str
        What the architecture is called.
    about : str
        What it is.
    detect : dict
        ``present`` and ``absent``: tensors by which it is told.
    tensors : dict
        Pattern to axes.
    fixed : list
        Patterns.
    same : dict
        Space to space.
    pinned : dict
        Space to reason.
    blocks : dict
        Name to blocks.
    outputs : dict
        Space to the patterns of the output layers that read it.
    tied : dict
        Pattern to the pattern of the same tensor under its other name.
    variants : list
        Of dicts with ``present``, ``absent``, ``one_axis`` and any of the
        above.
    """

    names: tuple
    about: str = ""
    detect: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)
    fixed: list = field(default_factory=list)
    same: dict = field(default_factory=dict)
    pinned: dict = field(default_factory=dict)
    blocks: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    variants: list = field(default_factory=list)

    def fits(self, names) -> bool:
        """Whether a model with these names is of this architecture."""
        return _condition(self.detect, names)

    def specialised(self, shapes) -> "SymmetryMap":
        """This map with the variants that a model is of.

        Arguments
        ---------
        shapes : dict
            Names of the model's tensors to their shapes.

        Returns
        -------
        SymmetryMap
        """
        sections = {name: getattr(self, name) for name in _sections}
        flat = [name for name, shape in shapes.items() if len(shape) == 1]
        for variant in self.variants:
            one_axis = {"present": variant.get("one_axis", [])}
            if _condition(variant, shapes) and _condition(one_axis, flat):
                sections = _joined(sections, variant)
        return SymmetryMap(self.names, self.about, self.detect, **sections)


def architectures() -> list[str]:
    """The names of all architectures that have a map.

    Returns
    -------
    list of str
    """
    return sorted(name for known in _all_maps() for name in known.names)


def symmetry_map(architecture, names=()) -> SymmetryMap:
    """The map of an architecture.

    Arguments
    ---------
    architecture : str, Path, dict or SymmetryMap
        A registered name, a YAML file or its content, or "detect" to go by
        the names of the tensors.
    names : list of str
        The names of the model's tensors.

    Returns
    -------
    SymmetryMap

    Raises
    ------
    UnsupportedArchitecture
        Where there is none.
    """
    if isinstance(architecture, SymmetryMap):
        return architecture
    if isinstance(architecture, dict):
        return read_map(architecture, "a dict")
    if str(architecture).endswith((".yaml", ".yml")):
        return read_map(architecture)
    for known in _all_maps():
        wanted = architecture in known.names
        if wanted or (architecture == "detect" and known.fits(names)):
            return known
    what = (
        f"No known architecture has tensors like {list(names)[:4]}"
        if architecture == "detect"
        else f"There is no architecture {architecture!r}"
    )
    known = "; ".join(f"{', '.join(a.names)}: {a.about}" for a in _all_maps())
    raise UnsupportedArchitecture(
        f"{what}. Known are {known}. For another, write a map: a YAML file "
        "that says which axes of its tensors move together (see "
        f"{__name__} and the examples in its folder 'maps'), and give its "
        "path as `architecture`."
    )


def read_map(source, label=None) -> SymmetryMap:
    """Reads a map.

    Arguments
    ---------
    source : str, Path or dict
        A YAML file, or what it would hold.
    label : str, optional
        What errors call it.

    Returns
    -------
    SymmetryMap

    Raises
    ------
    RecordError
        Where an entry is not known, or is not what it should be; names the
        file and the entry.
    """
    folder = MAPS
    if not isinstance(source, dict):
        label, folder = str(source), Path(source).parent
        source = read_yaml(source)
    content = _map(source, label)
    sections = {"tensors": {}, "fixed": [], "same": {}}
    sections.update(pinned={}, blocks={}, outputs={}, tied={}, variants=[])
    for part in content.get("include", []):
        file = f"{part}.part.yaml"
        path = folder / file if (folder / file).exists() else MAPS / file
        if not path.exists():
            raise RecordError(
                f"{label}, key 'include': there is no {file} beside it, nor "
                f"among those of the package in {MAPS}"
            )
        sections = _joined(sections, _map(read_yaml(path), str(path)))
    sections = _joined(sections, content)
    return SymmetryMap(
        tuple(content.get("names", [label])),
        content.get("about", ""),
        content.get("detect", {}),
        **sections,
    )


def parts_beside(source) -> list[Path]:
    """The files that a map includes, as far as they lie beside it.

    Arguments
    ---------
    source : str or Path
        A YAML file.

    Returns
    -------
    list of Path
        Not those of the package.
    """
    content = _map(read_yaml(source), str(source))
    files = [
        Path(source).parent / f"{part}.part.yaml"
        for part in content.get("include", [])
    ]
    return [path for path in files if path.exists()]


def match(pattern: str, name: str):
    """The values of a pattern's placeholders in a name.

    Arguments
    ---------
    pattern : str
        Of a tensor (any prefix may come before) or of a space.
    name : str
        The name.

    Returns
    -------
    dict or None
        Placeholder to text; ``None`` where the name does not match.

    Example
    -------
    >>> match("encoder.layers.{layer}.bias", "1.encoder.layers.3.bias")
    {'layer': '3'}
    """
    found = _compiled(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def fill(template: str, values: dict, last: dict) -> str:
    """A template with its placeholders filled in.

    Arguments
    ---------
    template : str
        Such as ``front_end.{block-1}.{conv:last}``.
    values : dict
        Placeholder to text.
    last : dict
        Placeholder to the largest number that it stands for anywhere.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        Where a placeholder is not known, or has no number before it.

    Example
    -------
    >>> fill("front_end.{block-1}.{conv:last}", {"block": "2"}, {"conv": 4})
    'front_end.1.4'
    """

    def value(found):
        name, change = found.groups()
        if change == ":last":
            return str(last.get(name, "last"))
        if name not in values:
            raise ValueError(
                f"symmetry map, {template!r}: the name of the tensor or space "
                f"has no placeholder {{{name}}}, but {sorted(values)}"
            )
        if not change:
            return values[name]
        if not re.fullmatch("[0-9]{1,9}", values[name]):
            raise ValueError(
                f"symmetry map, {template!r}: {{{name}}} stands for "
                f"{shown(values[name])}, expected a number"
            )
        return str(int(values[name]) - 1)

    return _PLACEHOLDER.sub(value, template)


def _condition(condition, names):
    """Whether required tensors are present and excluded ones are not."""

    def there(pattern):
        return any(match(pattern, name) is not None for name in names)

    return all(map(there, condition.get("present", []))) and not any(
        map(there, condition.get("absent", []))
    )


def _joined(sections, more):
    """Sections with more entries, which take the place of older ones."""
    joined = dict(sections)
    for name in sections:
        new = more.get(name)
        if isinstance(new, dict):
            joined[name] = {**sections[name], **new}
        elif new:
            joined[name] = [*sections[name], *new]
    return joined


@cache
def _all_maps():
    files = sorted(MAPS.glob("*.yaml"))
    return [read_map(path) for path in files if not path.stem.endswith(".part")]


@cache
def _compiled(pattern):
    seen, text, end = set(), r"(?:.*\.)?", 0
    for found in _PLACEHOLDER.finditer(pattern):
        name = found.group(1)
        text += re.escape(pattern[end : found.start()])
        part = ".+" if name == "rest" else r"[^.]+"
        text += f"(?P={name})" if name in seen else f"(?P<{name}>{part})"
        seen.add(name)
        end = found.end()
    return re.compile(text + re.escape(pattern[end:]))
