"""Reads live objects into digests, and looks for their state.

See ``speechbrain_merge.records.fingerprint``.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import collections
import contextvars
import enum
import functools
import hashlib
import io
import logging
import os
import random
import types
from collections.abc import Mapping, Set, ValuesView
from numbers import Number

import numpy
import torch

from speechbrain.core import Brain
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.file_hashes import folder_content
from speechbrain_merge.records.fingerprint_parts import (
    Attributes,
    Folder,
    GivenTo,
    OwnCode,
    with_folders,
)
from speechbrain_merge.records.object_content import (
    UNREADABLE,
    contents_of,
    is_rich,
    own_hooks,
    package_of,
    parts_of_sparse,
    pickled,
    pickled_besides,
    random_state,
    read_from,
    rust_tokenizer,
    script_of,
)
from speechbrain_merge.records.object_settings import (
    attributes_of,
    set_at_first,
    slots_of,
)
from speechbrain_merge.records.own_code import own_code
from speechbrain_merge.records.own_functions import is_own, is_own_wrapper
from speechbrain_merge.records.parsed_module import is_special
from speechbrain_merge.records.plain_words import (
    full_name,
    is_code,
    plain_words,
)

logger = get_logger(__name__)

# What their methods write decides nothing
_WITHOUT_STATE = (
    "speechbrain",
    "speechbrain_merge",
    "tokenizers",
    "torch",
    "torchaudio",
    "transformers",
)
# They hold no objects of a recipe but modules
_DEEP = ("tokenizers", "torch", "torchaudio", "transformers")
_LEAVES = (
    *(str, bytes, bytearray, Number, type(None), type, os.PathLike),
    *(numpy.ndarray, numpy.generic, torch.Tensor, torch.dtype, torch.device),
    *(types.ModuleType, enum.Enum, Folder),
)
_RANDOM = (
    *(random.Random, numpy.random.BitGenerator, numpy.random.Generator),
    *(numpy.random.RandomState, torch.Generator),
)
_AS_GIVEN = (OwnCode, Attributes, GivenTo, contextvars.ContextVar, *_RANDOM)
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)


class ObjectReader:
    """Reads objects; each of them once.

    Arguments
    ---------
    folders : list of str
        Absolute: folders that may be moved.
    skip : callable, optional
        ``skip(object) -> bool``: True for what does not count.
    state : GivenState, optional
        What is known of the state that objects were given.
    """

    def __init__(self, folders, skip, state):
        self.folders, self.skip, self.state = folders, skip, state
        self._digests = {}  # id of an object: digest, or None while it is read
        self.owners = []  # of state
        self._walked = {}  # by id
        self._within = 0  # whether state is read that is looked at
        self._codes = {}  # class: what its code does
        self._alive = []  # ids are only unique while their objects live

    def digest(self, value):
        """The digest of a value: of its kind and its content."""
        if self.state is not None and self.state.looks and not self._within:
            self._walk(value)
            return ""
        plain = plain_words(value, self.folders)
        if plain is not None:
            return _hash(plain)
        known = self._digests.get(id(value), "")
        if known is None:
            return _hash(f"within itself: {full_name(type(value))}")
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

    def _walk(self, value):
        """Looks for state in a value, and reads nothing else."""
        if id(value) in self._walked:
            return
        if isinstance(value, _LEAVES) and not (
            is_code(value) or is_rich(value)
        ):
            return
        self._walked[id(value)] = value
        if is_code(value):
            self._content(value)
            return
        if self.skip is not None and self.skip(value):
            return
        if isinstance(value, _AS_GIVEN):
            self._content(value)
        elif package_of(type(value)) in _DEEP:
            inside = (
                value.modules() if isinstance(value, torch.nn.Module) else ()
            )
            for each in inside:
                if package_of(type(each)) not in _DEEP:
                    self._walk(each)
        elif isinstance(value, types.FunctionType):
            if is_own(value):
                self._function(value)
        elif isinstance(value, types.SimpleNamespace):
            self._walk(vars(value))
        elif _is_wrapper(value):
            self._walk(value.__wrapped__)
        elif isinstance(value, (functools.partial, types.MethodType)):
            self._content(value)
        elif isinstance(value, (*_CONTAINERS, Mapping)):
            if is_own(type(value)):
                self._code_of(type(value))
            rows = value.values() if isinstance(value, Mapping) else value
            for each in list(rows):
                self._walk(each)
            if hasattr(value, "__dict__"):
                self._attributes(value)
        else:
            if is_own(type(value)):
                self._code_of(type(value))
            self._attributes(value)
            if isinstance(value, torch.nn.Module):
                self._buffers(value)
                for each in value.children():
                    self._walk(each)

    def _content(self, value):
        """Digests of the parts of a value, after a word for its kind."""
        if isinstance(value, type):
            return "class", full_name(value), self._code_of(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, enum.Enum):
            kind = f"{full_name(type(value))}.{value.name}"
            parts = (value.value, type(value))
            notes = str(sorted(self._attributes(value).items()))
            return "one of", kind, *map(self.digest, parts), notes
        if isinstance(value, _RANDOM):
            # drawing numbers changes it in each run: the first state counts
            self.owners.append(value)
            key = id(value), "random state"
            found = self._held(key, random_state(value), True)
            return "random numbers", full_name(type(value)), found or ""
        if isinstance(value, contextvars.ContextVar):
            self.owners.append(value)
            key = id(value), "value"
            found = self._held(key, _value_in_context(value), True)
            return "in a context", value.name, found or ""
        if isinstance(value, OwnCode):
            return "code", own_code(
                value.things, value.leave_out, self._of_code
            )
        if isinstance(value, Attributes):
            found = self._attributes(value.owner, value.names)
            return "attributes", str(sorted(found.items()))
        if isinstance(value, Folder):
            whole = os.path.join(os.path.abspath(value.path), "")
            if any(folder.startswith(whole) for folder in self.folders):
                return ("a folder with the results",)
            if any(
                whole.startswith(f"{each}{os.sep}") for each in self.folders
            ):
                return ("a folder in the results",)
            return "folder", folder_content(whole, self.folders)
        if isinstance(value, GivenTo):
            key = id(value.owner), value.name
            self.owners.append(value.owner)
            return "given", self._held(key, value.value, True) or ""
        if is_rich(value):
            return self._object(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            named = _file_named_by(bytes(value))
            return "bytes", bytes(value) if named is None else named
        if isinstance(value, (io.StringIO, io.BytesIO)):
            return "file in memory", str(value.tell()), str(value.getvalue())
        if isinstance(value, io.IOBase):
            return "open file", self.digest(read_from(value))
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, numpy.ndarray):
            if value.dtype.hasobject:
                return "list", *map(self.digest, value.ravel().tolist())
            masked = isinstance(value, numpy.ma.MaskedArray)
            whole = numpy.ascontiguousarray(value.data if masked else value)
            mask = self.digest(numpy.ma.getmaskarray(value)) if masked else ""
            notes = ""
            if is_own(type(value)):
                found = sorted(self._attributes(value).items())
                notes = f"{self._code_of(type(value))} {found}"
            kind = str(value.dtype), str(value.shape)
            return "array", *kind, whole.tobytes(), mask, notes
        if isinstance(value, types.SimpleNamespace):
            return self._mapping("namespace", vars(value))
        if isinstance(value, collections.defaultdict):
            factory = self.digest(value.default_factory)
            return *self._mapping("dict", value), "otherwise", factory
        bare = not hasattr(value, "__dict__") and not is_own(type(value))
        if isinstance(value, Mapping) and bare:
            return self._mapping("dict", value)
        if isinstance(value, dict) and type(value).__module__ in (
            "builtins",
            "collections",
        ):
            return self._mapping("dict", value)
        if isinstance(value, ValuesView):
            return "list", *map(self.digest, value)
        if type(value) in (list, tuple):
            return "list", *map(self.digest, value)
        if isinstance(value, Set) and bare:
            return "set", *sorted(map(self.digest, value))
        if isinstance(value, functools.partial):
            held = with_folders([list(value.args), value.keywords])
            return "partial", *map(self.digest, (value.func, *held))
        if isinstance(value, types.MethodType):
            return "method", *map(self.digest, (value.__func__, value.__self__))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if _is_wrapper(value):
            return (
                "wrapper",
                type(value).__name__,
                self.digest(value.__wrapped__),
            )
        if is_own_wrapper(value):
            return self._object(value)
        if callable(value) and hasattr(value, "__qualname__"):
            name = full_name(value)
            owner = getattr(value, "__self__", None)
            if owner is None or isinstance(owner, (types.ModuleType, type)):
                return "built-in", name
            # as the `sub` of a regular expression, or the `get` of a table
            return "built-in of", name, self.digest(owner)
        return self._object(value)

    def _tensor(self, tensor):
        plain = tensor.detach().cpu()
        if plain.is_nested:
            return "nested", *map(self.digest, plain.unbind())
        if plain.layout != torch.strided:
            parts = parts_of_sparse(plain)
            shape = str(tuple(plain.shape))
            return str(plain.layout), shape, *map(self.digest, parts)
        if plain.is_quantized or plain.is_meta:
            return "tensor", str(plain)
        # as bytes, since NumPy knows no bfloat16
        plain = plain.resolve_conj().resolve_neg().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        notes = self.digest(vars(tensor)) if vars(tensor) else ""
        shape = str(tuple(plain.shape))
        return "tensor", str(plain.dtype), shape, content, notes

    def _mapping(self, kind, mapping):
        rows = [
            (self.digest(key), self.digest(entry))
            for key, entry in mapping.items()
        ]
        if kind != "dict":  # attributes have no order
            rows.sort()
        return kind, *(word for row in rows for word in row)

    def _function(self, function):
        cells = [
            cell.cell_contents
            for cell in function.__closure__ or ()
            if not _is_empty(cell)
        ]
        code = function.__code__
        if is_own(function):
            code = own_code([function], text_of=self._of_code)
            cells = []  # what it holds is among its code
        parts = (
            code,
            list(function.__defaults__ or ()),
            function.__kwdefaults__ or {},
            cells,
        )
        name = full_name(function)
        return "function", name, *map(self.digest, parts)

    def _code(self, code):
        return (
            "code",
            code.co_code,
            str(code.co_names),
            *map(self.digest, code.co_consts),
        )

    def _module(self, module):
        """What the functions and classes of a recipe's module do, and its values."""
        things, values = [], []
        for name, each in sorted(vars(module).items()):
            if isinstance(each, (type, types.FunctionType)) and is_own(each):
                things.append(each)
            elif not is_special(name) and not _is_of_package(each):
                key = module.__name__, f"value {name}"
                each = with_folders(each, bare=False)
                values += [name, self._held(key, each, True) or ""]
        code = own_code(things, text_of=self._of_code)
        return "module", module.__name__, code, *values

    def _attributes(self, value, names=None, told=False):
        """Names of an object's attributes, and the digests of those that count.

        What cannot be read does not where the object has told it by itself.
        """
        kind = type(value)
        folders = is_own(kind) or kind is argparse.Namespace
        found = {}
        for name, entry, is_state in attributes_of(
            value, notes=self.state is not None
        ):
            if names is not None and name not in names:
                continue
            if told and _has_no_attributes(entry) and not _is_readable(entry):
                continue
            if is_state and package_of(type(value)) in _WITHOUT_STATE:
                if not _is_foreign_setting(value, name, entry):
                    continue
                is_state = False
            if folders:
                entry = with_folders(entry)
            if is_state:
                self.owners.append(value)
            digest = self._held((id(value), name), entry, is_state)
            if digest is not None:
                found[name] = digest
        return found

    def _buffers(self, module):
        """The buffers of a module; those in no checkpoint as they were given."""
        found = {}
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[name] = buffer
                continue
            self.owners.append(module)
            key = id(module), f"buffer {name}"
            found[name] = self._held(key, buffer, True) or ""
        return found

    def _code_of(self, kind):
        """What the code of a recipe's class does; read once."""
        if kind not in self._codes:
            self._codes[kind] = "within itself"
            self._codes[kind] = own_code([kind], text_of=self._of_code)
        return self._codes[kind]

    def _of_code(self, key, value, is_state):
        """The digest of a value that code of a recipe holds.

        The word that a function or hyperparameter holds may name a folder.
        """
        holder = key[0] if key else ""
        held = isinstance(value, str) and not isinstance(holder, str)
        return self._held(key, with_folders(value, bare=held), is_state)

    def _held(self, key, value, is_state):
        """The digest of a value, as it was given where it is state."""
        if not is_state:
            return self.digest(value)
        if self.state is None:
            return None
        self._within += 1
        try:
            return self.state.digest_of(key, lambda: self.digest(value))
        finally:
            self._within -= 1

    def _object(self, value):
        """The class of an object, and its settings."""
        kind = full_name(type(value))
        if hasattr(value, "get_vocab") and hasattr(value, "to_str"):
            return "object", kind, self.digest(rust_tokenizer(value))
        if isinstance(value, torch.jit.ScriptModule):
            found = {"its script": script_of(value)}
            found.update(value.named_parameters())
            found.update(value.named_buffers())
            return "object", kind, *self._mapping("settings", found)
        parts = {}
        if is_own(type(value)):
            parts["code of its class"] = self._code_of(type(value))
        contents = contents_of(value)
        if is_own(type(value)):  # a named tuple, say
            contents = with_folders(contents)
        parts.update(contents)
        if is_rich(value):
            parts.update(self._attributes(value))
            return "object", kind, *self._mapping("settings", parts)
        if _has_no_attributes(value) and not contents:
            # of an extension: what it would be pickled as, where that is said
            found = pickled(value)
            if found is UNREADABLE:
                _warn_of(kind)
                return UNREADABLE, kind, str(id(value))
            parts["as pickled"] = found
            return "object", kind, *self._mapping("settings", parts)
        besides = pickled_besides(value)
        parts.update(besides)
        parts.update(self._attributes(value, told=bool(besides)))
        if isinstance(value, torch.nn.Module):
            parts["its hooks"] = own_hooks(value)
            parts.update(value.named_parameters(recurse=False))
            parts.update(self._buffers(value))
            parts.update(value.named_children())
        return "object", kind, *self._mapping("settings", parts)


def _is_of_package(value):
    """Whether a value of a module is there for its code, or for a run of it."""
    if isinstance(value, (types.ModuleType, type, logging.Logger, Brain)):
        return True
    if isinstance(value, logging.LoggerAdapter):
        return True
    function = getattr(value, "__wrapped__", value)  # of lru_cache
    named = callable(value) and hasattr(value, "__qualname__")
    return named and not (is_own(function) or is_own_wrapper(value))


def _file_named_by(content):
    """The digest of a file that bytes are the path of; None without."""
    if b"\0" in content or not 0 < len(content) <= 4096:
        return None
    if not os.path.isfile(content):
        return None
    return plain_words(os.fsdecode(os.path.abspath(content)))


def _has_no_attributes(value):
    return not hasattr(value, "__dict__") and not slots_of(type(value))


def _is_readable(value):
    return pickled(value) is not UNREADABLE


def _value_in_context(variable):
    """The value of a variable of the context; None where it has none."""
    try:
        return variable.get()
    except LookupError:
        return None


@functools.lru_cache(maxsize=256)
def _warn_of(kind):
    """Says once why nothing is found again."""
    logger.warning(
        f"An object of {kind} does not tell what it holds. So scores and "
        "statistics that were computed with it are not used again by another "
        "process. A `__reduce__` of its class would tell."
    )


def _is_foreign_setting(value, name, entry):
    """Whether an attribute that methods of an installed class write as well is a
    setting: one that its constructor sets, as the tokenizer that another holds.
    Of SpeechBrain's, whose objects count batches and keep keys and values that a
    decoder has computed, tokenizers and objects of the recipe alone."""
    kind = type(value)
    if package_of(kind) not in _DEEP:
        return hasattr(entry, "get_vocab") or is_own(type(entry))
    if isinstance(value, torch.nn.Module):
        return name == "generation_config"
    return name in set_at_first(kind)


def _is_wrapper(value):
    """Whether an object stands for a function, as that of ``lru_cache`` does."""
    return (
        callable(value)
        and not isinstance(value, (type, types.FunctionType, types.MethodType))
        and isinstance(getattr(value, "__wrapped__", None), types.FunctionType)
        and not is_own_wrapper(value)
    )


def _is_empty(cell):
    try:
        return cell.cell_contents is cell  # raises where there is none
    except ValueError:
        return True


def _hash(*words):
    result = hashlib.sha256()
    for word in words:
        if not isinstance(word, bytes):
            word = str(word).encode("utf-8", "surrogatepass")
        # with its length, so that no two lists of words run together
        result.update(f"{len(word)}:".encode())
        result.update(word)
    return result.hexdigest()
