"""Coefficients that a search proposes by name, put into a merge method.

A search over coefficients knows names and numbers. What a name means depends on
the method and on who takes part:

=====================  ======================================================
``scale``              a parameter of the method, or of the one that it wraps
``digits``             the coefficient of an expert: a run, a candidate, or
                       ``base`` where the base is a member
``encoder.attention``  the coefficient of a part of the model
``depth.0``            the coefficient at the first of several depths; those
                       between are interpolated
``scale.digits``       the same, where a method has several coefficients
=====================  ======================================================

The first row that fits counts. The coefficient is the method's ``scale``, else
its ``weights``, else ``t``; all forms are those of
``speechbrain_merge.methods.coefficients``. Experts and parts that the search
does not name keep what the method gives them::

    merge_stage: !new:speechbrain_merge.MergeStage
        method: task_arithmetic
        candidates: [!ref <pool>]
        per_run: best
        search: !new:speechbrain_merge.search.CoordinateSearch
            parameters: {child_l2: [0, 1], digits: [0, 1], telephony: [0, 1]}

Example
-------
>>> from speechbrain_merge.methods import LayerScaled, TaskArithmetic
>>> from speechbrain_merge.pool import Candidate
>>> members = [
...     Candidate("digits/1", "a", "digits"),
...     Candidate("read/1", "b", "read"),
... ]
>>> with_coefficients(TaskArithmetic(), {"digits": 0.25}, members)
TaskArithmetic(scale={'experts': {'digits/1': 0.25}, 'default': 1.0})
>>> with_coefficients(TaskArithmetic(0.5), {"encoder": 0.25}, members)
TaskArithmetic(scale={'parts': {'encoder': 0.25}, 'default': 0.5})
>>> with_coefficients(
...     TaskArithmetic(), {"depth.0": 0.0, "depth.1": 1.0}, members
... )
TaskArithmetic(scale={'depth': [0.0, 1.0]})
>>> layered = LayerScaled(TaskArithmetic(), first=0.0, last=1.0)
>>> with_coefficients(layered, {"last": 0.5, "scale": 0.3}, members).method
TaskArithmetic(scale=0.3)

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
from collections.abc import Mapping
from numbers import Real

from speechbrain_merge.methods import MergeMethod
from speechbrain_merge.weights import matches

COEFFICIENTS = ("scale", "weights", "t")
"""Parameters that may differ by expert, part and depth, the first one first."""


def with_coefficients(method, proposed: Mapping, members) -> MergeMethod:
    """The same method with the coefficients that a search proposes.

    Arguments
    ---------
    method : MergeMethod
        A method, or a wrapper around one.
    proposed : dict
        Name to value, see the table of this module.
    members : list of Candidate
        What is merged.

    Returns
    -------
    method : MergeMethod
        A new one.

    Raises
    ------
    ValueError
        For a name that means nothing here, and for names that do not go
        together.

    Example
    -------
    >>> from speechbrain_merge.methods import TaskArithmetic
    >>> with_coefficients(TaskArithmetic(), {"digtis": 0.5}, [])
    Traceback (most recent call last):
    ...
    ValueError: the search proposes a coefficient 'digtis', which method 'task_arithmetic' does not have: expected one of its parameters (scale), a run or a candidate (there is none), a part of the model such as 'encoder', or 'depth.0'.
    """
    named = {}
    for name, value in proposed.items():
        owner = _owner(method, name)
        if owner is not None:
            method = _replaced(method, owner, name, value)
            continue
        parameter, kind, key = _meaning(method, name, members)
        named.setdefault(parameter, {}).setdefault(kind, {})[key] = value
    for parameter, kinds in named.items():
        if len(kinds) > 1:
            raise ValueError(
                f"the search proposes coefficients by {' and by '.join(kinds)} "
                f"for `{parameter}` of method '{method.name}': search over one "
                "of these at a time."
            )
        (kind, values), *_ = kinds.items()
        owner = _owner(method, parameter)
        value = _joined(
            getattr(owner, parameter), kind, values, members, parameter
        )
        method = _replaced(method, owner, parameter, value)
    return method


def _owner(method, parameter):
    """Of a method and those that it wraps, the first with this parameter."""
    while method is not None:
        if parameter in inspect.signature(type(method)).parameters:
            return method
        method = _inner(method)
    return None


def _inner(method):
    inner = getattr(method, "method", None)
    return inner if isinstance(inner, MergeMethod) else None


def _replaced(method, owner, parameter, value):
    """The method anew, with one parameter of itself or of an inner one."""
    if method is owner:
        changed = {parameter: value}
    else:
        changed = {"method": _replaced(method.method, owner, parameter, value)}
    return type(method)(**{**method.configuration(), **changed})


def _meaning(method, name, members):
    """Which parameter a name is for, whether by expert, part or depth, and
    its key there."""
    first, _, rest = name.partition(".")
    if rest and first in COEFFICIENTS and _owner(method, first) is not None:
        parameter, key = first, rest
    else:
        found = [each for each in COEFFICIENTS if _owner(method, each)]
        parameter, key = (found or [None])[0], name
    if parameter is not None:
        if any(key in (member.name, member.run) for member in members):
            return parameter, "experts", key
        word, _, number = key.partition(".")
        if word == "depth" and number.isdecimal():
            return parameter, "depth", int(number)
        if _is_part(key):
            return parameter, "parts", key
    parameters = ", ".join(inspect.signature(type(method)).parameters)
    runs = ", ".join(dict.fromkeys(member.run for member in members))
    raise ValueError(
        f"the search proposes a coefficient '{name}', which method "
        f"'{method.name}' does not have: expected one of its parameters "
        f"({parameters or 'there is none'}), a run or a candidate "
        f"({runs or 'there is none'}), a part of the model such as 'encoder', "
        "or 'depth.0'."
    )


def _is_part(key):
    try:
        matches("", key)
    except ValueError:
        return False
    return True


def _joined(given, kind, values, members, parameter):
    """A coefficient with some of its values changed.

    Arguments
    ---------
    given : float, list, dict or None
        What the method has.
    kind : str
        ``"experts"``, ``"parts"`` or ``"depth"``.
    values : dict
        Key to value.
    members : list of Candidate
        What is merged.
    parameter : str
        What the method calls it.

    Returns
    -------
    coefficient : dict
    """
    names = [member.name for member in members]
    if given is None:
        given = 1.0  # equal weights
    if kind == "experts" and isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise ValueError(
                f"`{parameter}` has {len(given)} values for {len(names)} "
                "experts: give one for each, or one number."
            )
        given = {"experts": dict(zip(names, given))}
    if isinstance(given, Real):
        known, rest = [] if kind == "depth" else {}, {"default": given}
    elif isinstance(given, dict) and kind in given:
        known = given[kind]
        rest = {key: value for key, value in given.items() if key != kind}
    else:
        raise ValueError(
            f"the search proposes `{parameter}` by {kind}, and the method has "
            f"{given!r}: give it a number, or the form "
            f"{{'{kind}': …}} of speechbrain_merge.methods.coefficients."
        )
    if kind == "depth":
        listed = dict(enumerate(known)) | values
        if sorted(listed) != list(range(len(listed))):
            raise ValueError(
                f"`{parameter}` at depths {', '.join(map(str, sorted(listed)))}"
                ": expected depth.0, depth.1, … without a gap."
            )
        if not known:
            # outside the layers counts what counts in the first one
            rest = {}
        return {"depth": [listed[place] for place in sorted(listed)], **rest}
    if kind == "experts":
        values = {
            member.name: values.get(member.name, values.get(member.run))
            for member in members
            if member.name in values or member.run in values
        }
    joined = {**known, **values}
    if kind == "experts" and set(joined) >= set(names):
        rest = {}
    return {kind: joined, **rest}
