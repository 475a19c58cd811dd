"""What objects hold beside their attributes, as plain values.

See ``speechbrain_merge.records.object_reader``.

Authors
 * The speechbrain_merge authors 2026
"""

import array
import builtins
import collections
import copyreg
import datetime
import decimal
import io
import json
import random
import re
import types
import uuid
import zipfile
from collections.abc import Callable, Mapping, Set
from numbers import Number
from typing import Any

import numpy
import torch

from speechbrain_merge.records.own_functions import functions_of, is_own

# Locks, queues, sockets, generators, handles of what torch computes
_WITHOUT_CONTENT = (
    *("_asyncio", "_multiprocessing", "_queue", "_socket", "_ssl", "_thread"),
    *("_weakref", "select", "torch", "weakref"),
)

_OF_PYTHON = {
    *(type(each) for each in ((n for n in ()), iter([]), iter({}), iter(()))),
    *(type(each) for each in (iter(""), iter(set()), iter(range(0)), zip())),
    *(type(each) for each in ({}.keys(), {}.items(), {}.values(), slice(0))),
    *(each for each in vars(types).values() if isinstance(each, type)),
    *(each for each in vars(builtins).values() if isinstance(each, type)),
}

UNREADABLE = f"unreadable {uuid.uuid4().hex}"
"""Another one in each process: what is not known is the same for no other."""

_MANGLED = re.compile(r"[./]?___torch_mangle_\d+")
_MANGLED_BYTES = re.compile(_MANGLED.pattern.encode())
_PLAIN = (str, bytes, bytearray, bool, int, float, complex)
_BARE: dict[type, Callable] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: lambda value: complex(value.real, value.imag),
    decimal.Decimal: decimal.Decimal.__str__,
    datetime.datetime: datetime.datetime.isoformat,
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.timedelta: datetime.timedelta.total_seconds,
}


def package_of(kind: type) -> str:
    """The package that a class is from.

    Arguments
    ---------
    kind : type
        The class.

    Returns
    -------
    str
    """
    return kind.__module__.partition(".")[0]


def is_rich(value: Any) -> bool:
    """Whether a text, bytes or a number has a class or attributes of its own.

    Arguments
    ---------
    value : object
        Any.

    Returns
    -------
    bool

    Example
    -------
    >>> class Word(str): ...
    >>> word = Word("one")
    >>> word.sound = "wun"
    >>> is_rich("one"), is_rich(word)
    (False, True)
    """
    kind = type(value)
    if kind in _PLAIN or not isinstance(value, (*_PLAIN, Number)):
        return False
    if isinstance(value, numpy.generic):
        return False
    return is_own(kind) or bool(getattr(value, "__dict__", None))


def contents_of(value: Any) -> dict:
    """What an object holds as a text, a number or a container that it is.

    Arguments
    ---------
    value : object
        Of a class with attributes besides, or not.

    Returns
    -------
    dict
        Empty for an object that is neither.

    Example
    -------
    >>> class Words(frozenset): ...
    >>> contents_of(Words(["one"]))
    {'its items': frozenset({'one'})}
    """
    if isinstance(value, (bytes, bytearray)):
        return {"its value": bytes(memoryview(value))}
    for kind, bare in _BARE.items():
        if isinstance(value, kind):
            return {"its value": bare(value)}
    if isinstance(value, Mapping):
        return {"its items": dict(value)}
    if isinstance(value, Set):
        return {"its items": frozenset(value)}
    if isinstance(value, collections.deque):
        return {"its items": list(value), "its limit": value.maxlen}
    if isinstance(value, array.array):
        return {"its items": value.tolist(), "its kind": value.typecode}
    if isinstance(value, (list, tuple)):
        return {"its items": list(value)}
    return {}


def own_hooks(module: torch.nn.Module) -> list:
    """What a recipe hooked to a module's passes.

    Arguments
    ---------
    module : torch.nn.Module
        The module.

    Returns
    -------
    list of callable
    """
    hooks = (
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
    )
    return [
        hook
        for hook in hooks
        if is_own(type(hook)) or any(map(is_own, [hook, *functions_of(hook)]))
    ]


def pickled_besides(value: Any) -> dict:
    """The pickled state of an object besides its attributes.

    SentencePiece's processor, which holds an object of C++, gives its model.

    Arguments
    ---------
    value : object
        With attributes.

    Returns
    -------
    dict
    """
    own = getattr(type(value), "__getstate__", None)
    if own is None or own is getattr(object, "__getstate__", None):
        return {}
    try:
        state = own(value)
    except Exception:  # whatever a foreign class does not like
        return {}
    if isinstance(state, (bytes, str)):
        return {"as pickled": state}
    if isinstance(state, dict):
        known = getattr(value, "__dict__", {})
        return {key: state[key] for key in state if key not in known}
    return {}


def pickled(value: Any) -> Any:
    """The pickled content of an object without attributes.

    Arguments
    ---------
    value : object
        Of an extension.

    Returns
    -------
    object
        ``UNREADABLE`` where it does not tell.
    """
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception:  # whatever a foreign class does not like
        kind = type(value)
        known = package_of(kind) in _WITHOUT_CONTENT
        if kind.__module__ == "builtins":  # as extensions call theirs, too
            known = kind in _OF_PYTHON
        return getattr(value, "code", None) if known else UNREADABLE
    if isinstance(reduced, str):
        return reduced
    items = [list(each) for each in reduced[3:5] if each is not None]
    return [*reduced[1:3], *items]


def parts_of_sparse(tensor: torch.Tensor) -> tuple:
    """The dense tensors that a sparse one is made of.

    Arguments
    ---------
    tensor : torch.Tensor
        Of any layout but strided.

    Returns
    -------
    tuple of torch.Tensor
    """
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return whole.indices(), whole.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def rust_tokenizer(value: Any) -> str:
    """All of a tokenizer but what it was last asked to pad, which is no setting.

    Arguments
    ---------
    value : tokenizers.Tokenizer
        The tokenizer.

    Returns
    -------
    str
    """
    whole = json.loads(value.to_str())
    for setting_of_a_call in ("padding", "truncation"):
        whole.pop(setting_of_a_call, None)
    return json.dumps(whole, sort_keys=True)


def script_of(module: torch.jit.ScriptModule) -> list:
    """What a module of TorchScript would be saved as, without its tensors.

    Arguments
    ---------
    module : torch.jit.ScriptModule
        The module.

    Returns
    -------
    list of tuple
        Names of files and their contents: code, numbers, words and constants.
    """
    saved, modes = io.BytesIO(), [each.training for each in module.modules()]
    module.eval()  # the mode is none of its settings
    torch.jit.save(module, saved)
    for each, training in zip(module.modules(), modes):
        each.training = training
    with zipfile.ZipFile(saved) as archive:
        found = [
            (name.partition("/")[2], archive.read(name))
            for name in archive.namelist()
        ]
    # loaded classes are numbered as they come
    return sorted(
        (_MANGLED.sub("", name), _MANGLED_BYTES.sub(b"", content))
        for name, content in found
        if name.endswith((".pkl", ".py"))
    )


def random_state(value: Any) -> Any:
    """The state of a generator of random numbers, as plain values.

    Arguments
    ---------
    value : object
        Of Python, NumPy or PyTorch.

    Returns
    -------
    object
    """
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, numpy.random.RandomState):
        return value.get_state(legacy=False)
    return getattr(value, "bit_generator", value).state


def read_from(file: Any) -> Any:
    """The path of an open file that is read.

    Arguments
    ---------
    file : io.IOBase
        The file.

    Returns
    -------
    str or None
        None of one that is written, or that has no name.
    """
    try:
        name = file.name
        return name if file.readable() and not file.writable() else None
    except (AttributeError, ValueError):  # without a name, or closed
        return None
