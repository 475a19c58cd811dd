"""The attributes of an object: its settings, and the state that its methods write.

A setting is an attribute that the constructor takes or sets, that a ``set_…``
method or ``load`` changes, or that was set from outside. What other methods write
or fill (an epoch counter, a cache of keys and values, statistics that a normalizer
gathers) is state.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import dis
import enum
import functools
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch

from speechbrain_merge.records.own_functions import functions_of
from speechbrain_merge.records.source_slice import kept_notes, private_name

_MODULE_STATE = {*vars(torch.nn.Module()), "training"}
# Written by transformers with a warning, and by torch.amp.custom_fwd at a call
_NOTES = {"deprecation_warnings", "_fwd_used_autocast"}
# Of an Enum; what they say is told by itself
_OF_MEMBERS = {"_value_", "_name_", "__objclass__", "_sort_order_"}
# SpeechBrain's encoders of labels load what they are, with `load`
_CONSTRUCTORS = ("__new__", "__post_init__", "__setstate__", "load")


def attributes_of(
    value: Any, notes: bool = False
) -> Iterator[tuple[str, Any, bool]]:
    """The attributes of an object, and which of them are state.

    Arguments
    ---------
    value : object
        An object with attributes. Of a module, what ``torch.nn.Module`` keeps is
        left out.
    notes : bool
        Whether containers that a recipe's methods fill are state as well.

    Yields
    ------
    tuple
        Name, value, and whether the methods of its class write it.

    Example
    -------
    >>> class Decoder:
    ...     def __init__(self, beam):
    ...         self.beam, self.decoded = beam, 0
    ...
    ...     def decode(self):
    ...         self.decoded += 1
    >>> decoder = Decoder(8)
    >>> decoder.words = ["one"]
    >>> for attribute in attributes_of(decoder):
    ...     print(*attribute)
    beam 8 False
    decoded 0 True
    words ['one'] False
    """
    attributes = dict(getattr(value, "__dict__", {}))
    for name in slots_of(type(value)):
        if hasattr(value, name):
            attributes[name] = getattr(value, name)
    given, written = _written_and_given(value.__class__)
    state = written - given
    if notes:
        # by the time of writing, what a constructor takes as well
        loaded = _loaded_by(value.__class__)
        state = (written - loaded) | kept_notes(value.__class__)
    left_out = set(_NOTES)
    if isinstance(value, torch.nn.Module):
        left_out |= _MODULE_STATE
    if isinstance(value, enum.Enum):
        left_out |= _OF_MEMBERS
    if "__wrapped__" in attributes:  # as functools.update_wrapper notes it
        left_out |= {*functools.WRAPPER_ASSIGNMENTS}
    if "_fwd_used_autocast" in attributes:
        left_out |= {"_dtype"}  # is written with it
    for name, entry in attributes.items():
        if name not in left_out:
            yield name, entry, name in state


@lru_cache(maxsize=4096)
def _written_and_given(kind):
    """Names that the constructors of a class take, and those that its other
    methods write."""
    given = set()
    for each in kind.__mro__:
        for function in functions_of(vars(each).get("__init__")):
            if each not in (object, torch.nn.Module):
                given.update(inspect.signature(function).parameters)
        given.update(getattr(each, "__dataclass_fields__", ()))
    given.update(_loaded_by(kind))
    return given, written_by(kind.__mro__)


@lru_cache(maxsize=4096)
def _loaded_by(kind):
    """Names of the attributes of a module that are learned, and loaded."""
    is_module = issubclass(kind, torch.nn.Module)
    return set(_restored(kind)) if is_module else set()


@lru_cache(maxsize=4096)
def set_at_first(kind: type) -> frozenset[str]:
    """Names of the attributes that the constructors of a class assign.

    Arguments
    ---------
    kind : type
        The class, whose bases count as well.

    Returns
    -------
    frozenset of str
    """
    return frozenset(
        name
        for each in kind.__mro__
        for function in functions_of(vars(each).get("__init__"))
        for name in written_in(function)
    )


def written_in(function: types.FunctionType) -> set[str]:
    """Names of the attributes that a function assigns.

    Arguments
    ---------
    function : function
        A constructor, for instance.

    Returns
    -------
    set of str
    """
    return set(_written(function.__code__))


def written_by(kinds: Iterable[type]) -> set[str]:
    """Names of the attributes that methods of classes write.

    Arguments
    ---------
    kinds : iterable of type
        The classes. Their bases do not count.

    Returns
    -------
    set of str
        Without those that only a constructor, ``load`` or a ``set_…`` writes.

    Example
    -------
    >>> class Decoder:
    ...     def decode(self):
    ...         self.decoded = 1
    >>> written_by([Decoder])
    {'decoded'}
    """
    return {name for kind in kinds for name in _written_by(kind)}


@lru_cache(maxsize=4096)
def _written_by(kind):
    written: set = set()
    if kind in (object, torch.nn.Module):
        return written
    for name, member in vars(kind).items():
        if isinstance(member, functools.cached_property):
            written.add(name)
        elif name in ("__init__", *_CONSTRUCTORS) or name[:4] == "set_":
            continue
        for function in functions_of(member):
            written.update(_written(function.__code__))
    return written


def written_on_self(kinds: Iterable[type]) -> set[str]:
    """Names of the attributes that methods of classes write on their own object.

    Arguments
    ---------
    kinds : iterable of type
        As for ``written_by``, which tells those of other objects as well.

    Returns
    -------
    set of str
        Of a class without a text, all that ``written_by`` tells.

    Example
    -------
    >>> from speechbrain_merge.brain.mixin import MergeMixin
    >>> names = written_on_self([MergeMixin])
    >>> "promised" in names, "seconds" in names
    (True, False)
    """
    return {name for kind in kinds for name in _written_on_self(kind)}


@lru_cache(maxsize=4096)
def _written_on_self(kind):
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return _written_by(kind)
    return _written_by(kind) & {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _restored(kind):
    """Names of the attributes of a module that SpeechBrain's Checkpointer loads.

    They are what the module has learned and computes with, as the statistics of
    an ``InputNormalization``, although other methods write them.
    """
    for name in dir(kind):
        loader = getattr(kind, name, None)
        if getattr(loader, "_speechbrain_loader", False):
            code = inspect.unwrap(loader).__code__
            yield from _written(code)
            for called in code.co_names:
                for function in functions_of(getattr(kind, called, None)):
                    yield from _written(function.__code__)


def _written(code):
    """Names of the attributes that some code assigns."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _written(constant)


def slots_of(kind: type) -> list[str]:
    """Names of the attributes that a class keeps in slots.

    Arguments
    ---------
    kind : type
        The class, whose bases count as well.

    Returns
    -------
    list of str
        As Python keeps them: of ``__words`` in a class ``Rules``,
        ``_Rules__words``.
    """
    names = []
    for each in kind.__mro__:
        slots = each.__dict__.get("__slots__", ())
        slots = [slots] if isinstance(slots, str) else slots
        names += [private_name(each, name) for name in slots]
    return [name for name in names if name not in ("__dict__", "__weakref__")]
