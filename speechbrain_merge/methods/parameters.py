"""Checks of the parameters that methods are made with.

A wrong parameter is reported when the method is made, in a sentence that says
what is allowed, and not hours later when a recipe reaches its merge.

Example
-------
>>> from speechbrain_merge.methods.parameters import check_number
>>> check_number(0, "density", above=0, at_most=1)
Traceback (most recent call last):
...
ValueError: `density` must be a number above 0 and at most 1, got 0.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, Optional

from speechbrain_merge.records.checked import is_finite


def check_number(
    value: Any,
    name: str,
    above: Optional[float] = None,
    at_least: Optional[float] = None,
    below: Optional[float] = None,
    at_most: Optional[float] = None,
) -> None:
    """Checks that a parameter is a finite number within bounds.

    Arguments
    ---------
    value : object
        What was given.
    name : str
        What the method calls it.
    above, at_least, below, at_most : float, optional
        The bounds.

    Raises
    ------
    ValueError
        When it is not.
    """
    bounds = [
        (above, "above", lambda bound: value > bound),
        (at_least, "at least", lambda bound: value >= bound),
        (below, "below", lambda bound: value < bound),
        (at_most, "at most", lambda bound: value <= bound),
    ]
    bounds = [entry for entry in bounds if entry[0] is not None]
    fits = (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and is_finite(value)
        and all(holds(bound) for bound, _, holds in bounds)
    )
    if not fits:
        words = " and ".join(f"{word} {bound}" for bound, word, _ in bounds)
        kind = f"a number {words}" if words else "a finite number"
        raise ValueError(f"`{name}` must be {kind}, got {value!r}.")


def check_whole(value: Any, name: str, at_least: int = 0) -> None:
    """Checks that a parameter is a whole number that is large enough.

    Arguments
    ---------
    value : object
        What was given.
    name : str
        What the method calls it.
    at_least : int
        The smallest that is allowed.

    Raises
    ------
    ValueError
        When it is not.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise ValueError(
            f"`{name}` must be a whole number of at least {at_least}, got "
            f"{value!r}."
        )


def check_choice(value: Any, name: str, choices: Collection) -> None:
    """Checks that a parameter is one of a few words.

    Arguments
    ---------
    value : object
        What was given.
    name : str
        What the method calls it.
    choices : tuple of str
        The words.

    Raises
    ------
    ValueError
        When it is not.
    """
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {words}; got {value!r}.")


def check_switch(value: Any, name: str) -> None:
    """Checks that a parameter is true or false, and not a word for it.

    Arguments
    ---------
    value : object
        What was given.
    name : str
        What the method calls it.

    Raises
    ------
    ValueError
        When it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")
