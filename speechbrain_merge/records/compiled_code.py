"""What Python compiled of a function: its instructions, names and defaults.

Authors
 * The speechbrain_merge authors 2026
"""

import dis
import functools
import types
from typing import Optional


def entries_read(code: types.CodeType, name: str) -> Optional[set]:
    """The keys that some code reads of a dict of the function around it.

    Arguments
    ---------
    code : code
        What Python made of a function.
    name : str
        Of the dict.

    Returns
    -------
    set or None
        None where it does anything else with the dict, such as to pass it on.
    """
    found: set = set()
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.argval != name or not step.opname.startswith("LOAD_DEREF"):
            continue
        names = [each.opname for each in steps[max(0, place - 1) : place + 4]]
        if names[2:4] == ["LOAD_CONST", "BINARY_SUBSCR"]:  # name["key"]
            found.add(steps[place + 1].argval)
        elif names[0] == "LOAD_CONST" and names[2] == "CONTAINS_OP":
            found.add(steps[place - 1].argval)  # "key" in name
        else:
            return None
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType) and name in inner.co_freevars:
            read = entries_read(inner, name)
            if read is None:
                return None
            found |= read
    return found


@functools.lru_cache(maxsize=4096)
def compiled(code: types.CodeType) -> str:
    """A text for what was compiled, whatever file and line it is from.

    By its instructions: a docstring is a constant that none of them loads.

    Arguments
    ---------
    code : code
        What Python made of a function.

    Returns
    -------
    str
    """
    steps = [code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
    for step in dis.get_instructions(code):
        value = step.argval
        if isinstance(value, types.CodeType):
            value = compiled(value)
        elif isinstance(value, frozenset):
            value = sorted(map(repr, value))
        steps.append((step.opname, repr(value)))
    return repr(steps)


def global_names(code: types.CodeType) -> list:
    """Names of globals that some code may read.

    Arguments
    ---------
    code : code
        What Python made of a function.

    Returns
    -------
    list of str
    """
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += global_names(constant)
    return names


def defaults_of(function: types.FunctionType) -> dict:
    """The defaults of a function's parameters, by their names.

    Arguments
    ---------
    function : function
        The function.

    Returns
    -------
    dict

    Example
    -------
    >>> defaults_of(lambda text, least=1, *, most=2: text)
    {'least': 1, 'most': 2}
    """
    code = function.__code__
    given = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    placed = zip(names[len(names) - len(given) :], given)
    return {**dict(placed), **(function.__kwdefaults__ or {})}
