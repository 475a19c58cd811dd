"""What the code of a recipe does, as opposed to that of installed packages.

A score holds for the code that decoded: a recipe whose ``compute_objectives``
normalises text in another way counts other errors. The code of installed
packages goes by their versions; that of a recipe has none, and is edited
between two runs. So its functions count by what Python compiled of them, with
the functions and constants of their own modules that they name. Comments and
the layout of the text do not count.

Example
-------
>>> recipe = {"__name__": "train"}
>>> exec("def words(text): return text.split()", recipe)
>>> before = own_code([recipe["words"]])
>>> exec("def words(text): return text.lower().split()", recipe)
>>> before == own_code([recipe["words"]])
False
>>> import json
>>> own_code([json.dumps]) == own_code([])
True

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path

_PACKAGES = ("speechbrain", "speechbrain_merge")
_CONSTANTS = (str, bytes, int, float, complex, tuple, type(None))


def own_code(things: Iterable, leave_out: Iterable[str] = ()) -> str:
    """A hash of what functions and classes of a recipe do.

    Arguments
    ---------
    things : list of function or class
        Those of installed packages do not count. Of a class, its methods and
        those that it has from other classes of the recipe.
    leave_out : list of str
        Names of methods that do not count.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    left_out = set(leave_out)
    waiting, seen, found = [], set(), []
    for thing in things:
        for kind in getattr(thing, "__mro__", ()):
            if is_own(kind):
                waiting += [
                    function
                    for name, member in sorted(vars(kind).items())
                    if name not in left_out
                    for function in functions_of(member)
                ]
        if not isinstance(thing, type):
            waiting += functions_of(thing)
    while waiting:
        function = waiting.pop(0)
        code = function.__code__
        if code in seen or not is_own(function):
            continue
        seen.add(code)
        found.append(function.__qualname__)
        found.append(_compiled(code))
        defaults = {
            **(function.__kwdefaults__ or {}),
            "": function.__defaults__,
        }
        found += [
            f"{name} = {value!r}"
            for name, value in sorted(defaults.items())
            if _is_constant(value)
        ]
        for name in _names(code):
            if name.startswith("__"):
                continue  # which tell where it lies, and who runs it
            value = function.__globals__.get(name)
            if isinstance(value, types.FunctionType):
                waiting.append(value)
            elif name in function.__globals__ and _is_constant(value):
                found.append(f"{name} = {value!r}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


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
    if isinstance(member, property):
        candidates = [member.fget]  # its setter changes a setting
    elif isinstance(member, functools.cached_property):
        candidates = [member.func]
    elif isinstance(member, functools.partial):
        candidates = [member.func]
    else:
        candidates = [getattr(member, "__func__", member)]
    found = [inspect.unwrap(each) for each in candidates if callable(each)]
    return [each for each in found if isinstance(each, types.FunctionType)]


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
    return _is_of_recipe(getattr(thing, "__module__", None) or "")


@functools.cache
def _is_of_recipe(module):
    if module.partition(".")[0] in (*_PACKAGES, *sys.builtin_module_names):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:  # of a notebook
        return True
    places = [sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib")]
    file = Path(file).resolve()
    return not any(file.is_relative_to(Path(n).resolve()) for n in places)


def _compiled(code):
    """A text for what was compiled, whatever file and line it is from."""
    constants = [
        _compiled(each)
        if isinstance(each, types.CodeType)
        else sorted(map(repr, each))
        if isinstance(each, frozenset)
        else repr(each)
        for each in code.co_consts
    ]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))


def _names(code):
    """Names of globals that some code may read."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names


def _is_constant(value):
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, (*_CONSTANTS, re.Pattern))
