r"""Records that are checked before they are used.

Each kind of record that is read (a line of a manifest, a merge, a pointer, an
index) is declared once, as a check of its fields. A check takes a value and
the words that say where it stands, and gives the value back or raises a
`RecordError` that names the file, the key, and what was expected there::

    CANDIDATE = fields(
        {"name": text(), "digest": digest_text, "meta": mapped(anything())},
        {"epoch": optional(whole(0))},
        unknown="keep",
    )
    record = CANDIDATE(parse_json(line, where), where)

Checks are made of checks: `listed`, `mapped`, `optional`, `either` and
`fields` take others.

What to do with a key that is not declared is said for each record. ``keep``
hands it on, for records that later versions may extend. ``drop`` leaves it
out. ``refuse`` is for what people write, where it is a misspelt word.

Example
-------
>>> member = fields({"name": text(), "weight": optional(number())})
>>> member({"name": "read", "weight": 0.5}, "merges.jsonl, line 3")
{'name': 'read', 'weight': 0.5}
>>> member({"name": 7, "weight": 0.5}, "merges.jsonl, line 3")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: merges.jsonl, line 3, key 'name': expected text, got 7

Authors
 * The speechbrain_merge authors 2026
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Optional

from speechbrain_merge.records import paths
from speechbrain_merge.records.errors import RecordError, shown

Check = Callable[[Any, str], Any]
"""Takes a value and where it stands; gives the value, or raises RecordError."""

UNKNOWN = ("keep", "drop", "refuse")
LONGEST_TEXT = 100_000
LONGEST_LIST = 1_000_000
DEEPEST = 50

_DIGEST = re.compile(r"(blake3:)?[0-9a-f]{64}")


def fields(
    needed: Mapping, optional: Optional[Mapping] = None, unknown: str = "keep"
) -> Check:
    """A mapping with known keys.

    Arguments
    ---------
    needed : dict
        Key to check, for keys that have to be there.
    optional : dict, optional
        Key to check, for keys that may be there.
    unknown : str
        "keep", "drop" or "refuse" keys that are neither.

    Returns
    -------
    Check
        Gives a new dict, needed keys first.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown={unknown!r}: expected one of {UNKNOWN}")
    needed, optional_ = dict(needed), dict(optional or {})
    known = {**needed, **optional_}

    def check(value, where):
        if not isinstance(value, Mapping):
            raise _wrong(where, "a mapping", value)
        missing = [key for key in needed if key not in value]
        if missing:
            raise RecordError(
                f"{where}: expected {', '.join(map(repr, needed))}, but "
                f"{', '.join(map(repr, missing))} is missing"
            )
        found = {}
        for key, each in known.items():
            if key in value:
                found[key] = each(value[key], f"{where}, key '{key}'")
        others = [key for key in value if key not in found]
        if others and unknown == "refuse":
            raise RecordError(
                f"{where}: unknown key {shown(others[0])}. Known are "
                f"{', '.join([*needed, *optional_])}."
            )
        if unknown == "keep":
            found.update((key, value[key]) for key in others)
        return found

    return check


def text(limit: int = LONGEST_TEXT) -> Check:
    """A string of so many characters at most."""

    def check(value, where):
        if not isinstance(value, str):
            raise _wrong(where, "text", value)
        if len(value) > limit:
            raise _wrong(where, f"at most {limit} characters", value)
        return value

    return check


def digest_text(value, where: str) -> str:
    """A hash of weights: ``blake3:`` or, for a SHA-256, nothing, and 64 digits.

    Example
    -------
    >>> digest_text("12ab", "manifest.jsonl, line 2, key 'digest'")
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: manifest.jsonl, line 2, key 'digest': expected a hash of 64 hexadecimal digits, got '12ab'
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _wrong(where, "a hash of 64 hexadecimal digits", value)
    return value


def file_name(value, where: str) -> str:
    """The plain name of a file, see `speechbrain_merge.records.paths`."""
    return paths.plain_name(value, where)


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number between bounds, inclusive. Truth values are none."""

    def check(value, where):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not is_finite(value)
            or not low <= value <= high
        ):
            raise _wrong(where, f"a number{_between(low, high)}", value)
        return value

    return check


def plain_float(value, where: str) -> float:
    """A number, perhaps NaN or infinite, as in a training that diverged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, "a number", value)
    return _as_float(value)


def whole(low: float = -math.inf, high: float = 1 << 62) -> Check:
    """A whole number between bounds, inclusive. Truth values are none."""

    def check(value, where):
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not low <= value <= high
        ):
            raise _wrong(where, f"a whole number{_between(low, high)}", value)
        return value

    return check


def truth(value, where: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def one_of(*words) -> Check:
    """One of some words."""

    def check(value, where):
        if not isinstance(value, str) or value not in words:
            raise _wrong(where, f"one of {', '.join(map(repr, words))}", value)
        return value

    return check


def listed(each: Check, limit: int = LONGEST_LIST) -> Check:
    """A list, or a tuple, whose entries all pass a check. Gives a list."""

    def check(value, where):
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value)
        if len(value) > limit:
            raise _wrong(where, f"at most {limit} entries", value)
        return [
            each(entry, f"{where}, entry {number}")
            for number, entry in enumerate(value, start=1)
        ]

    return check


def some(each: Check, limit: int = LONGEST_LIST) -> Check:
    """As `listed`, with one entry at least."""

    def check(value, where):
        found = listed(each, limit)(value, where)
        if not found:
            raise _wrong(where, "one entry or more", value)
        return found

    return check


def mapped(each: Check, limit: int = LONGEST_LIST) -> Check:
    """A mapping from any text to values that all pass a check."""

    def check(value, where):
        if not isinstance(value, Mapping):
            raise _wrong(where, "a mapping", value)
        if len(value) > limit:
            raise _wrong(where, f"at most {limit} entries", value)
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise _wrong(where, "keys that are text", strange[0])
        return {
            key: each(entry, f"{where}, key {shown(key)}")
            for key, entry in value.items()
        }

    return check


def optional(each: Check) -> Check:
    """None, or a value that passes a check."""

    def check(value, where):
        return None if value is None else each(value, where)

    return check


def either(*checks: Check) -> Check:
    """A value that passes one of several checks; else the last one's error."""

    def check(value, where):
        for each in checks[:-1]:
            try:
                return each(value, where)
            except RecordError:
                pass
        return checks[-1](value, where)

    return check


def anything(deepest: int = DEEPEST) -> Check:
    """Plain data: numbers, text, truth values, None, lists and mappings.

    Numbers may be NaN or infinite, as a metric of a diverged training is.
    """

    def check(value, where, depth=0):
        if depth > deepest:
            raise RecordError(f"{where}: nested more than {deepest} deep")
        if isinstance(value, Mapping):
            return {
                key: check(each, where, depth + 1)
                for key, each in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [check(each, where, depth + 1) for each in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise _wrong(where, "plain data", value)

    return check


def _wrong(where, expected, value):
    return RecordError(f"{where}: expected {expected}, got {shown(value)}")


def _between(low, high):
    if math.isinf(low) and (math.isinf(high) or high >= 1 << 62):
        return ""
    if math.isinf(high) or high >= 1 << 62:
        return f" of at least {low}"
    return f" between {low} and {high}"


def is_finite(value) -> bool:
    """Whether a number has a place among the floats.

    ``math.isfinite`` raises an error for whole numbers that are too large.

    Example
    -------
    >>> is_finite(10**308), is_finite(10**309), is_finite(math.nan)
    (True, False, False)
    """
    return math.isfinite(_as_float(value))


def _as_float(value):
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
