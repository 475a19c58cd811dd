"""A fingerprint of live objects: the same settings, the same sixty-four letters.

Finished work is found by a fingerprint of everything that decided it. For a
recipe that is everything that its YAML made: numbers and words, lists, the
objects of ``!new:`` with the values inside them, the functions of ``!name:``,
and the files that these point to. The text of the YAML alone would not do. It
does not know what was overridden on the command line or set by the script, and
a Brain never sees it. So the objects themselves are read.

An object is its class and its settings; a class of the recipe, rather than of
an installed package, also by what its code does. A setting is an attribute that the
constructor takes or sets, that a ``set_…`` method or ``load`` changes, or that
was set from outside. What other methods write is state (an epoch counter, a cache of keys
and values, statistics that a normalizer gathers) and does not count. Tensors and arrays count by value,
wherever they are; a file by its content; a folder or a missing file that is
named by an absolute path does not count. So the fingerprint is the same in a
new process, on another device, and after the results were moved.

Example
-------
>>> class Decoder:
...     def __init__(self, beam):
...         self.beam, self.decoded = beam, 0
...
...     def decode(self):
...         self.decoded += 1
>>> decoder = Decoder(8)
>>> before = fingerprint({"decoder": decoder, "words": ["one", "two"]})
>>> decoder.decode()
>>> before == fingerprint({"words": ["one", "two"], "decoder": decoder})
True
>>> decoder.beam = 16
>>> before == fingerprint({"decoder": decoder, "words": ["one", "two"]})
False

Authors
 * The speechbrain_merge authors 2026
"""

import dis
import enum
import functools
import hashlib
import inspect
import io
import os
import types
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from numbers import Number
from pathlib import Path
from typing import Any, Optional

import numpy
import torch

from speechbrain_merge.records.own_code import functions_of, is_own, own_code

_BLOCK = 1 << 20
_MODULE_STATE = {*vars(torch.nn.Module()), "training"} - {"_modules"}
# Written by transformers with a warning, and by torch.amp.custom_fwd at a call
_NOTES = {"deprecation_warnings", "_fwd_used_autocast"}
# SpeechBrain's encoders of labels load what they are, with `load`
_CONSTRUCTORS = ("__new__", "__post_init__", "__setstate__", "load")


def fingerprint(
    value: Any,
    folders: Iterable = (),
    skip: Optional[Callable] = None,
) -> str:
    """The fingerprint of any object.

    Arguments
    ---------
    value : object
        What to know again: plain data, modules, objects of any class.
    folders : list of str or Path
        Folders that may be moved. A path below one counts by its place in it,
        and not by the content of the file, which may be a result.
    skip : callable, optional
        ``skip(object) -> bool``: True for what does not count, wherever it is
        found.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> fingerprint([1, 2.0, "a"]) == fingerprint((1, 2.0, "a"))
    True
    >>> fingerprint({"a": 1}) == fingerprint({"a": True})
    False
    """
    roots = [os.path.abspath(folder) for folder in folders]
    return _Reader(roots, skip).digest(value)


def plain(value: Any) -> Any:
    """A value whose text tells it from others.

    Arguments
    ---------
    value : object
        A value of a dataset's row, for instance.

    Returns
    -------
    object
        The value itself; of tensors and arrays, whose text leaves out most of
        the numbers, the fingerprint.

    Example
    -------
    >>> plain(1.5)
    1.5
    >>> plain(torch.zeros(2000)) == plain(1e-6 * torch.ones(2000))
    False
    """
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return fingerprint(value)
    return value


def file_fingerprint(path) -> str:
    """The sha256 of a file's content.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits, as `sha256sum` prints them.
    """
    with open(path, "rb", buffering=0) as file:
        return stream_fingerprint(file)


def stream_fingerprint(file: io.RawIOBase, before: bytes = b"") -> str:
    """The sha256 of an open file, from where it stands to its end.

    Arguments
    ---------
    file : io.RawIOBase
        Opened with ``buffering=0``. Afterwards it stands at its end.
    before : bytes
        What is hashed before it.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> path = getfixture("tmp_path") / "words.txt"
    >>> _ = path.write_bytes(b"one two")
    >>> with open(path, "rb", buffering=0) as file:
    ...     before = file.read(3)
    ...     stream_fingerprint(file, before) == file_fingerprint(path)
    True
    """
    result = hashlib.sha256(before)
    block = memoryview(bytearray(_BLOCK))
    while count := file.readinto(block):
        result.update(block[:count])
    return result.hexdigest()


class _Reader:
    """Reads objects; each of them once."""

    def __init__(self, folders, skip):
        self.folders, self.skip = folders, skip
        self._digests = {}  # id of an object: digest, or None while it is read
        self._codes = {}  # class: what its code does
        self._alive = []  # ids are only unique while their objects live

    def digest(self, value):
        """The digest of a value: of its kind and its content."""
        plain = self._plain(value)
        if plain is not None:
            return _hash(plain)
        known = self._digests.get(id(value), "")
        if known is None:
            return _hash(f"within itself: {_class_name(type(value))}")
        if known:
            return known
        self._alive.append(value)
        self._digests[id(value)] = None
        if self.skip is not None and self.skip(value):
            found = _hash("skipped")
        else:
            found = _hash(*self._content(value))
        self._digests[id(value)] = found
        return found

    def _plain(self, value):
        """Words for a value without parts; None for all others."""
        if isinstance(value, enum.Enum):
            return f"{_class_name(type(value))}.{value.name}"
        if value is None or isinstance(value, (bool, torch.dtype)):
            return f"constant {value}"
        if isinstance(value, (str, os.PathLike)):
            return self._text(os.fspath(value))
        if isinstance(value, numpy.generic):
            return self._plain(value.item())
        if isinstance(value, Number):
            return f"number {value!r}"
        if isinstance(value, (torch.device, torch.Generator)):
            return "a device or generator"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, type):
            return f"class {_class_name(value)}"
        return None

    def _text(self, text):
        if isinstance(text, bytes):
            return f"bytes {text!r}"
        if len(text) > 4096 or "\n" in text:
            return f"text {text}"
        if os.sep not in text and not _is_file_name(text):
            return f"text {text}"
        whole = os.path.abspath(text)
        for folder in self.folders:
            if whole == folder or whole.startswith(folder + os.sep):
                return f"in the results: {os.path.relpath(whole, folder)}"
        if Path(text).is_file():
            return f"file {file_fingerprint(text)}"
        if os.path.isabs(text) or Path(text).is_dir():
            return "a path"
        return f"text {text}"  # a name on the hub, or a word with a slash

    def _content(self, value):
        """Digests of the parts of a value, after a word for its kind."""
        if isinstance(value, (bytes, bytearray)):
            return "bytes", bytes(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, numpy.ndarray):
            if value.dtype.hasobject:
                return "list", *map(self.digest, value.ravel().tolist())
            whole = numpy.ascontiguousarray(value)
            return "array", str(value.dtype), str(value.shape), whole.tobytes()
        if isinstance(value, types.SimpleNamespace):
            return self._mapping("namespace", vars(value))
        if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
            return self._mapping("dict", value)
        if isinstance(value, dict) and type(value).__module__ in (
            "builtins",
            "collections",
        ):
            return self._mapping("dict", value)
        if type(value) in (list, tuple):
            return "list", *map(self.digest, value)
        if isinstance(value, (set, frozenset)):
            return "set", *sorted(map(self.digest, value))
        if isinstance(value, functools.partial):
            parts = (value.func, list(value.args), value.keywords)
            return "partial", *map(self.digest, parts)
        if isinstance(value, types.MethodType):
            return "method", *map(self.digest, (value.__func__, value.__self__))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if callable(value) and hasattr(value, "__qualname__"):
            return "built-in", f"{_module_name(value)}.{value.__qualname__}"
        return self._object(value)

    def _tensor(self, tensor):
        # as bytes, since NumPy knows no bfloat16
        plain = tensor.detach().cpu().contiguous()
        if plain.is_sparse or plain.is_quantized or plain.is_meta:
            return "tensor", str(plain)
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        return "tensor", str(plain.dtype), str(tuple(plain.shape)), content

    def _mapping(self, kind, mapping):
        rows = sorted(
            (self.digest(key), self.digest(entry))
            for key, entry in mapping.items()
        )
        return kind, *(word for row in rows for word in row)

    def _function(self, function):
        cells = [
            cell.cell_contents
            for cell in function.__closure__ or ()
            if not _is_empty(cell)
        ]
        if is_own(function):
            code = own_code([function])
        else:
            code = function.__code__
        parts = (
            code,
            list(function.__defaults__ or ()),
            function.__kwdefaults__ or {},
            cells,
        )
        name = f"{_module_name(function)}.{function.__qualname__}"
        return "function", name, *map(self.digest, parts)

    def _code(self, code):
        return (
            "code",
            code.co_code,
            str(code.co_names),
            *map(self.digest, code.co_consts),
        )

    def _code_of(self, kind):
        """What the code of a recipe's class does; read once."""
        if kind not in self._codes:
            self._codes[kind] = own_code([kind])
        return self._codes[kind]

    def _object(self, value):
        """The class of an object, and its settings."""
        kind = _class_name(type(value))
        parts = {}
        if is_own(type(value)):
            parts["code of its class"] = self._code_of(type(value))
        if isinstance(value, Mapping):
            parts["items"] = dict(value)
        elif isinstance(value, (list, tuple, set)):
            parts["items"] = list(value)
        if not hasattr(value, "__dict__") and not _slots(type(value)):
            # of an extension: what it would be pickled as, where that is said
            return "object", kind, self.digest(_pickled(value))
        parts.update(_pickled_besides(value))
        parts.update(settings_of(value))
        if isinstance(value, torch.nn.Module):
            parts.update(value.named_parameters(recurse=False))
            parts.update(value.named_buffers(recurse=False))
            parts.update(value.named_children())
        return "object", kind, *self._mapping("settings", parts)


def _is_file_name(text):
    """Whether a text without a folder is a file with an ending, here."""
    return os.path.splitext(text)[1] != "" and os.path.isfile(text)


def settings_of(value: Any) -> dict[str, Any]:
    """The attributes of an object that say what it is, not what it has done.

    Arguments
    ---------
    value : object
        An object with attributes.

    Returns
    -------
    dict
        Name to value, see the module.

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
    >>> settings_of(decoder)
    {'beam': 8, 'words': ['one']}
    """
    attributes = dict(getattr(value, "__dict__", {}))
    for name in _slots(type(value)):
        if hasattr(value, name):
            attributes[name] = getattr(value, name)
    given, written = _attributes_of(value.__class__)
    left_out = written - given
    if isinstance(value, torch.nn.Module):
        left_out = left_out | _MODULE_STATE | {"_modules"}
    if "_fwd_used_autocast" in attributes:
        left_out = left_out | {"_dtype"}  # is written with it
    return {
        name: entry
        for name, entry in attributes.items()
        if name not in left_out and name not in _NOTES
    }


@lru_cache(maxsize=4096)
def _attributes_of(kind):
    """Names that the constructors of a class take, and those that its other
    methods write."""
    given, written = set(), set()
    for each in kind.__mro__:
        if each in (object, torch.nn.Module):
            continue
        for name, member in vars(each).items():
            if isinstance(member, functools.cached_property):
                written.add(name)
            for function in functions_of(member):
                if name == "__init__":
                    given.update(inspect.signature(function).parameters)
                elif name not in _CONSTRUCTORS and not name.startswith("set_"):
                    written.update(_written(function.__code__))
        given.update(getattr(each, "__dataclass_fields__", ()))
    if issubclass(kind, torch.nn.Module):
        given.update(_restored(kind))
    return given, written


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


def _slots(kind):
    names = []
    for each in kind.__mro__:
        slots = each.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _pickled_besides(value):
    """The pickled state of an object besides its attributes.

    SentencePiece's processor, which holds an object of C++, gives its model.
    """
    own = getattr(type(value), "__getstate__", None)
    if own is getattr(object, "__getstate__", None):
        return {}
    try:
        state = own(value)
    except Exception:  # whatever a foreign class does not like
        return {}
    if isinstance(state, (bytes, str)):
        return {"pickled": state}
    if isinstance(state, dict):
        known = getattr(value, "__dict__", {})
        return {key: state[key] for key in state if key not in known}
    return {}


def _pickled(value):
    """The pickled content of an object without attributes."""
    if hasattr(value, "get_vocab"):
        # a tokenizer in Rust: what it was last asked to pad is no setting
        return value.get_vocab()
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # locks, files, generators
        return None
    if isinstance(reduced, str):
        return reduced
    return list(reduced[1:3])


def _class_name(kind):
    return f"{_module_name(kind)}.{kind.__qualname__}"


def _module_name(value):
    """Where a class or function is from; scripts are run under any name."""
    name = getattr(value, "__module__", None) or ""
    return "" if name == "__main__" else name


def _is_empty(cell):
    try:
        return cell.cell_contents is cell  # raises where there is none
    except ValueError:
        return True


def _hash(*words):
    result = hashlib.sha256()
    for word in words:
        word = word if isinstance(word, bytes) else str(word).encode()
        # with its length, so that no two lists of words run together
        result.update(f"{len(word)}:".encode())
        result.update(word)
    return result.hexdigest()
