"""Which functions and classes are a recipe's, and what stands for a function.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import types
from typing import Any

from speechbrain_merge.records.recipe_modules import is_of_recipe


def functions_of(member) -> list:
    """The Python functions of a class's member.

    Arguments
    ---------
    member : object
        A function, a method, a property, a partial call or anything else.

    Returns
    -------
    list of function
    """
    candidates: list[Any]
    if isinstance(member, property):
        candidates = [member.fget]  # its setter changes a setting
    elif isinstance(member, functools.cached_property):
        candidates = [member.func]
    elif isinstance(member, functools.partial):
        candidates = [member.func]
    else:
        candidates = [getattr(member, "__func__", member)]
    found: list = []
    while candidates:
        each = candidates.pop()
        # a wrapper holds values of its own, and what it wraps
        if hasattr(each, "__wrapped__"):
            candidates.append(each.__wrapped__)
        if isinstance(each, types.FunctionType) and each not in found:
            found.append(each)
    return found


def is_own_wrapper(value) -> bool:
    """Whether a value is an object of a recipe that stands for a function.

    Arguments
    ---------
    value : object
        Any. Of a decorator that is a class, and uses
        ``functools.update_wrapper``, the object that it made.

    Returns
    -------
    bool
    """
    return (
        not isinstance(value, (type, types.FunctionType, types.MethodType))
        and "__wrapped__" in (getattr(value, "__dict__", None) or ())
        and is_of_recipe(type(value).__module__)
    )


def is_own(thing) -> bool:
    """Whether a function or class is a recipe's, and of no installed package.

    Arguments
    ---------
    thing : function or class
        Of any module.

    Returns
    -------
    bool
    """
    return is_of_recipe(getattr(thing, "__module__", None) or "")
