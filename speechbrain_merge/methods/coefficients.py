"""Coefficients that may differ by expert, by part of the model and by depth.

Most methods have a number that scales or weighs something. Wherever a method
takes such a coefficient, it takes any of these, which nest:

=====================================  ========================================
``0.5``                                the same for every expert and tensor
``[0.5, 0.2]``                         one for each expert, in their order
``{"experts": {"digits": 0.5, …}}``    one for each expert, by its label, or by
                                       the end of it where that is one expert's
                                       (``a`` or ``a.pt`` for ``runs/a``)
``{"parts": {"encoder": 0.5, …}}``     by part of the model: the first pattern
                                       that matches the tensor (see
                                       ``speechbrain_merge.weights.matches``);
                                       a tensor that none matches takes
                                       ``default``
``{"depth": [0.0, 0.5, 1.0]}``         over the layers of a stack, from first
                                       to last, linear in between; a tensor
                                       outside the layers takes ``default``
                                       (the first value when not given)
=====================================  ========================================

Example
-------
>>> from speechbrain_merge.methods.coefficients import resolve
>>> resolve({"parts": {"encoder": 0.2}, "default": 1.0}, "encoder.conv.w", 2)
[0.2, 0.2]
>>> resolve([1, 3], "encoder.conv.w", 2)
[1.0, 3.0]

Authors
 * The speechbrain_merge authors 2026
"""

from numbers import Real
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.records.checked import is_finite
from speechbrain_merge.weights import matches, part
from speechbrain_merge.weights.files import SAFETENSORS_SUFFIX, TORCH_SUFFIXES

LARGEST = 1e30
"""Of a coefficient, without its sign."""

_FORMS = (
    "a number, a list with one for each expert, or a mapping with 'experts', "
    "'parts' or 'depth'"
)


def check_coefficient(value: Any, name: str) -> None:
    """Checks the form of a coefficient when a method is made.

    Arguments
    ---------
    value : float, list or dict
        As above.
    name : str
        What the method calls it.

    Raises
    ------
    ValueError
        For a form that is not in the table above, or a number that is not
        finite, or larger than `LARGEST`.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        if not is_finite(value):
            raise ValueError(f"`{name}` must be finite, got {value}.")
        if abs(float(value)) > LARGEST:
            raise ValueError(
                f"`{name}` must be {LARGEST:g} at most, got {value}: sums of "
                "larger ones are not finite."
            )
    elif isinstance(value, (list, tuple)) and len(value) > 0:
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, Real):
                raise ValueError(f"`{name}`: {entry!r} is not a number.")
            check_coefficient(entry, name)
    elif isinstance(value, dict):
        kinds = [key for key in ("experts", "parts", "depth") if key in value]
        unknown = set(value) - {"experts", "parts", "depth", "default"}
        if len(kinds) != 1 or unknown:
            raise ValueError(
                f"`{name}` must be {_FORMS}; got keys {sorted(value, key=str)}."
            )
        inner, inside = value[kinds[0]], f"{name}.{kinds[0]}"
        if kinds[0] == "depth":
            if not isinstance(inner, (list, tuple)):
                raise ValueError(
                    f"`{inside}` must be a list of numbers, from the first "
                    f"layer to the last; got {inner!r}."
                )
            check_coefficient(inner, inside)
        elif not isinstance(inner, dict) or not all(
            isinstance(key, str) for key in inner
        ):
            raise ValueError(
                f"`{inside}` must be a mapping of names to coefficients; got "
                f"{inner!r}."
            )
        else:
            for key, entry in inner.items():
                check_coefficient(entry, f"{inside}.{key}")
        if "default" in value:
            check_coefficient(value["default"], f"{name}.default")
    else:
        raise ValueError(f"`{name}` must be {_FORMS}; got {value!r}.")


def resolve(
    value: Any,
    name: str,
    number: int,
    labels: Optional[list[str]] = None,
    depths: Optional[dict] = None,
) -> list[float]:
    """The coefficient of each expert for one tensor.

    Arguments
    ---------
    value : float, list or dict
        A coefficient in one of the forms above.
    name : str
        Name of the tensor.
    number : int
        How many experts there are.
    labels : list of str, optional
        Their labels.
    depths : dict, optional
        Number of layers of each stack, as ``speechbrain_merge.weights.depth``
        gives it; needed for ``depth``.

    Returns
    -------
    coefficients : list of float
        One an expert.

    Raises
    ------
    ValueError
        When a list has the wrong length or a label is missing or unknown.
    """
    if isinstance(value, Real):
        return [float(value)] * number
    if isinstance(value, (list, tuple)):
        if len(value) != number:
            raise ValueError(
                f"{len(value)} coefficients were given for {number} experts: "
                "give one for each, in their order."
            )
        return [float(entry) for entry in value]
    if "experts" in value:
        return _by_label(value, name, labels or [], depths)
    default = value.get("default")
    if "parts" in value:
        for pattern, inner in value["parts"].items():
            if matches(name, pattern):
                return resolve(inner, name, number, labels, depths)
        if default is None:
            raise ValueError(
                f"No pattern of {list(value['parts'])} matches {name}: add a "
                "'default'."
            )
        return resolve(default, name, number, labels, depths)
    listed = value["depth"]
    where = part(name)
    layers = (depths or {}).get(where.stack, 0)
    if where.layer is None or layers == 0:
        outside = listed[0] if default is None else default
        return resolve(outside, name, number, labels, depths)
    position = where.layer / max(layers - 1, 1) * (len(listed) - 1)
    below = min(int(position), max(len(listed) - 2, 0))
    above = min(below + 1, len(listed) - 1)
    share = position - below
    return [float((1 - share) * listed[below] + share * listed[above])] * number


def check_covers(
    value: Any, names: list[str], depths: Optional[dict], title: str
) -> None:
    """Refuses a coefficient that has no value for a tensor.

    Arguments
    ---------
    value : float, list or dict
        A coefficient; what it says of experts is not looked at.
    names : list of str
        Names of tensors.
    depths : dict
        Number of layers of each stack.
    title : str
        What to call the coefficient.

    Raises
    ------
    ValueError
        Naming the coefficient and the first tensor without a value.

    Example
    -------
    >>> scale = {"parts": {"encoder": 0.2}}
    >>> check_covers(scale, ["encoder.conv.weight"], {}, "`scale`")
    >>> check_covers(scale, ["decoder.norm.weight"], {}, "`scale`")
    Traceback (most recent call last):
    ...
    ValueError: `scale`: No pattern of ['encoder'] matches decoder.norm.weight: add a 'default'.
    """
    if not isinstance(value, dict):
        return
    if "experts" in value:
        for inner in value["experts"].values():
            check_covers(inner, names, depths, title)
        return
    if "parts" in value:
        rest = list(names)
        for pattern, inner in value["parts"].items():
            there = [name for name in rest if matches(name, pattern)]
            check_covers(inner, there, depths, title)
            rest = [name for name in rest if name not in set(there)]
        if rest and value.get("default") is None:
            raise ValueError(
                f"{title}: No pattern of {list(value['parts'])} matches "
                f"{rest[0]}: add a 'default'."
            )
        names = rest
    if value.get("default") is not None:
        check_covers(value["default"], names, depths, title)


def _by_label(value, name, labels, depths):
    """Coefficients given by the experts' labels."""
    given = value["experts"]
    inner = {_label_of(key, labels): each for key, each in given.items()}
    unknown = [label for label in inner if label not in labels]
    missing = [label for label in labels if label not in inner]
    if len(inner) < len(given) or unknown:
        raise ValueError(
            "Coefficients by expert must name each expert once: "
            f"{list(given)} were given for {labels}."
        )
    if missing and "default" not in value:
        raise ValueError(
            f"Coefficients by expert must name all experts: {missing} of {labels} "
            "are missing. Add them or a 'default'."
        )
    return [
        resolve(
            inner.get(label, value.get("default")), name, 1, [label], depths
        )[0]
        for label in labels
    ]


def _label_of(key, labels):
    """The label that a name stands for: its last words, or the file's name."""
    if key in labels:
        return key
    words = _words_of(key)
    found = [
        label for label in labels if _words_of(label)[-len(words) :] == words
    ]
    return found[0] if len(found) == 1 and words else key


def _words_of(label):
    """The parts of a path, without the ending of a file of weights."""
    path = Path(str(label))
    if path.suffix in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX):
        path = path.with_suffix("")
    return path.parts
