r"""JSON, YAML and numbers from files that may hold anything.

Two things go wrong with a file that someone else wrote, or that a disk has
damaged. It is not what it should be: that is an error which names the file. Or
it is small and asks for a lot: ``"1e99999999"`` as an exact fraction is a
number of a hundred million digits, and 340 bytes of YAML whose entries refer
to one another stand for more data than there is memory. So everything that is
read here has a bound.

Example
-------
>>> path = getfixture("tmp_path") / "result.json"
>>> _ = path.write_text('{"value": 9.5}')
>>> read_json(path)
{'value': 9.5}
>>> _ = path.write_text("")
>>> try:
...     read_json(path)
... except ValueError as error:
...     print(str(error).removeprefix(str(path)))
 is not JSON: it is empty. Was it written to its end?
>>> parse_number("3/8", "weights, key 'read'")
0.375
>>> parse_number("1e99999999", "weights, key 'read'")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: weights, key 'read': expected a number between -1e+30 and 1e+30, got '1e99999999'

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import os
import re
import stat
from fractions import Fraction
from typing import Any, Optional

import yaml

from speechbrain_merge.records.errors import RecordError, shown

JSON_LIMIT = 64 << 20
"""Bytes of a JSON file, unless a caller says otherwise."""

YAML_LIMIT = 1 << 20
"""Bytes of a YAML file: PyYAML reads a megabyte in about ten seconds."""

YAML_NODES = 100_000
"""Entries of a YAML file, those that an alias repeats counted each time."""

YAML_DEPTH = 50

LARGEST_NUMBER = 1e30

_LONGEST_NUMBER = 400
_NUMBER = re.compile(
    r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?"
    r"(\s*/\s*(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?)?"
)


def read_bytes(path, limit: int = JSON_LIMIT) -> bytes:
    """The content of a file that should be small.

    Arguments
    ---------
    path : str or Path
        A regular file, or a link to one.
    limit : int
        Bytes at most.

    Returns
    -------
    bytes

    Raises
    ------
    RecordError
        Where it is larger, is a folder, or is a pipe or a device, which might
        never end.
    """
    # A pipe that nobody writes to would block the call
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError(f"{path} is not a regular file")
    with open(descriptor, "rb") as file:
        large = os.fstat(descriptor).st_size > limit
        data = b"" if large else file.read(limit + 1)
    if large or len(data) > limit:
        raise RecordError(
            f"{path} has more than {limit} bytes, which no such file of this "
            "package has. Is it the right file?"
        )
    return data


def read_text(path, limit: int = JSON_LIMIT) -> str:
    """The text of a file that should be small.

    Arguments
    ---------
    path : str or Path
        A regular file in UTF-8.
    limit : int
        Bytes at most.

    Returns
    -------
    str
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not text in UTF-8: {error}") from None


def read_json(path, limit: int = JSON_LIMIT) -> Any:
    """The content of a JSON file.

    Arguments
    ---------
    path : str or Path
        The file.
    limit : int
        Bytes at most.

    Returns
    -------
    object
        Plain values. NaN and Infinity are read, as Python writes them.

    Raises
    ------
    RecordError
        Where the file is larger or is not JSON.
    """
    return parse_json(read_text(path, limit), str(path))


def parse_json(text, where: str) -> Any:
    """The content of a piece of JSON.

    Arguments
    ---------
    text : str or bytes
        The JSON.
    where : str
        What it comes from, for the error.

    Returns
    -------
    object

    Raises
    ------
    RecordError
        Where it is not JSON, is nested too deeply, or has a number of more
        than 400 digits.

    Example
    -------
    >>> parse_json('{"a": [1, 2.5, null]}', "example")
    {'a': [1, 2.5, None]}
    >>> parse_json("[" * 100_000, "example")
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: example is not JSON: it is nested too deeply
    """
    if not text.strip():
        raise RecordError(
            f"{where} is not JSON: it is empty. Was it written to its end?"
        )
    try:
        if isinstance(text, (bytes, bytearray)):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        return _DECODER.decode(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise RecordError(f"{where} is not JSON: {reason}")


def parse_number(
    value,
    where: str,
    low: float = -LARGEST_NUMBER,
    high: float = LARGEST_NUMBER,
    exact: bool = False,
):
    """A finite number, from a number or from text such as ``4/8``.

    Arguments
    ---------
    value : int, float, Fraction or str
        What was read.
    where : str
        The file and the entry, for the error.
    low, high : float
        The bounds, inclusive.
    exact : bool
        Gives a Fraction, so that nothing is rounded.

    Returns
    -------
    float or Fraction

    Raises
    ------
    RecordError
        Where it is no number, not finite, or out of bounds. Text is looked at
        before it is computed: exponents have three digits at most.
    """
    found = None
    if isinstance(value, str):
        if len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value.strip()):
            above, _, below = value.partition("/")
            divisor = Fraction(below.strip() or 1)
            found = Fraction(above.strip()) / divisor if divisor else None
    elif isinstance(value, (int, Fraction)) and not isinstance(value, bool):
        found = Fraction(value)  # however large
    elif isinstance(value, float) and math.isfinite(value):
        found = Fraction(value)
    if found is None or not low <= found <= high:
        raise RecordError(
            f"{where}: expected a number between {low:g} and {high:g}, got "
            f"{shown(value)}"
        )
    return found if exact else float(found)


def read_yaml(path, loader=yaml.SafeLoader, limit: int = YAML_LIMIT) -> Any:
    """The content of a YAML file; nothing in it is executed.

    Arguments
    ---------
    path : str or Path
        The file.
    loader : type
        A subclass of `yaml.SafeLoader`, where it has tags of its own.
    limit : int
        Bytes at most.

    Returns
    -------
    object

    Raises
    ------
    RecordError
        As `parse_yaml`.
    """
    return parse_yaml(read_text(path, limit), str(path), loader)


def parse_yaml(text: str, where: str, loader=yaml.SafeLoader) -> Any:
    """The content of a piece of YAML; nothing in it is executed.

    Arguments
    ---------
    text : str
        The YAML.
    where : str
        What it comes from, for the error.
    loader : type
        A subclass of `yaml.SafeLoader`.

    Returns
    -------
    object
        None where it is empty.

    Raises
    ------
    RecordError
        Where it is not YAML, asks for Python objects, or stands for more than
        100,000 entries.

    Example
    -------
    >>> parse_yaml("a: [1, 2]", "example")
    {'a': [1, 2]}
    >>> parse_yaml("a: !!python/object/apply:os.system [ls]", "example")
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: example is not plain YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system', line 1, column 4
    """
    return _read_yaml(text, where, loader, construct=True)


def check_yaml(text: str, where: str):
    """Refuses YAML that is none, or stands for too much, whatever reads it.

    For YAML that another library than PyYAML is going to read.

    Arguments
    ---------
    text : str
        The YAML. Its tags may be any.
    where : str
        What it comes from, for the error.

    Raises
    ------
    RecordError
        As `parse_yaml`.
    """
    _read_yaml(text, where, yaml.SafeLoader, construct=False)


def _read_yaml(text, where, loader, construct):
    if len(text) > YAML_LIMIT:
        raise RecordError(f"{where} is too long: {len(text)} characters")
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check_size(node, where)
            return reader.construct_document(node) if construct else None
        finally:
            reader.dispose()
    except RecursionError:
        reason = "it is nested too deeply"
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark, error.problem or str(error)
        if mark is not None:
            reason += f", line {mark.line + 1}, column {mark.column + 1}"
    except RecordError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise RecordError(f"{where} is not plain YAML: {reason[:300]}")


def check_nesting(path) -> None:
    """Refuses YAML that is nested too deeply, whatever its tags.

    Arguments
    ---------
    path : str or Path
        A YAML that is read by ``hyperpyyaml``, which takes long over it.

    Raises
    ------
    RecordError
        Naming the file. Other faults are left to who reads it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.yaml"
    >>> _ = path.write_text("a: " + 100 * "[" + 100 * "]")
    >>> check_nesting(path)
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: .../train.yaml is not read: it is nested more than 50 times
    """
    depth = 0
    try:
        for event in yaml.parse(read_text(path, YAML_LIMIT), yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                break
    except yaml.YAMLError:
        return
    if depth > YAML_DEPTH:
        raise RecordError(
            f"{path} is not read: it is nested more than {YAML_DEPTH} times"
        )


def _check_size(node, where):
    """Refuses YAML whose aliases expand to too many entries.

    Counted with each alias as often as it is used; a node that holds itself
    is refused.
    """
    sizes: dict[int, Optional[int]] = {}

    def size_of(node, depth=0):
        if depth > YAML_DEPTH:
            raise RecordError(
                f"{where} is not plain YAML: it is nested too deeply"
            )
        known = sizes.get(id(node), 0)
        if known is None:
            raise RecordError(f"{where}: an alias refers to what it is part of")
        if known:
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.ScalarNode):
            if not node.tag.endswith((":str", ":binary")) and (
                len(node.value) > _LONGEST_NUMBER
            ):
                raise RecordError(
                    f"{where}: a number or date of {len(node.value)} characters"
                )
        elif isinstance(node, yaml.MappingNode):
            total += sum(
                size_of(key, depth + 1) + size_of(value, depth + 1)
                for key, value in node.value
            )
        else:
            total += sum(size_of(each, depth + 1) for each in node.value)
        if total > YAML_NODES:
            raise RecordError(
                f"{where} stands for more than {YAML_NODES} entries, aliases "
                "counted as often as they are used"
            )
        sizes[id(node)] = total
        return total

    size_of(node)


def _whole_number(digits):
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


# made once: a log has thousands of lines
_DECODER = json.JSONDecoder(parse_int=_whole_number)
