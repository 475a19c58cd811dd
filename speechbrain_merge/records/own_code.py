"""What the code of a recipe does, as opposed to that of installed packages.

A score holds for the code that decoded: a recipe whose ``compute_objectives``
normalises text in another way counts other errors. The code of installed
packages goes by their versions; that of a recipe has none, and is edited
between two runs. So the whole text of its modules counts (see
``speechbrain_merge.records.recipe_texts``), and the values that the names which
it reads have when the recipe runs (see
``speechbrain_merge.records.source_slice``), but for those that its functions
write. Variables of the environment that it reads count, and files beside it that
it names. Comments, docstrings and layout do not count.

Code without a text (of a notebook, or of ``exec``) counts by what Python
compiled of it, with the functions, classes and plain values that it names.

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
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.records.compiled_code import (
    compiled,
    defaults_of,
    entries_read,
    global_names,
)
from speechbrain_merge.records.named_files import files_in
from speechbrain_merge.records.own_functions import (
    functions_of,
    is_own,
    is_own_wrapper,
)
from speechbrain_merge.records.packages import versions_with
from speechbrain_merge.records.parsed_module import is_special
from speechbrain_merge.records.recipe_modules import file_of
from speechbrain_merge.records.recipe_texts import imported_early, texts_of
from speechbrain_merge.records.source_slice import (
    Slice,
    binds,
    changed_by,
    given_to_yaml,
    kept_notes,
    made_by_yaml,
    name_at,
    slice_of,
)

_CONSTANTS = (bool, str, bytes, int, float, complex, type(None), re.Pattern)
_CONTAINERS = (tuple, list, set, frozenset, dict)
_NOTES = ("__module__", "__doc__", "__qualname__", "__firstlineno__")


def plain_value(key: tuple, value: Any, is_state: bool) -> Optional[str]:
    """The text of a plain value of a module or class, where nothing writes it.

    Arguments
    ---------
    key : tuple of str
        Where it is found.
    value : object
        The value.
    is_state : bool
        Whether functions write or change it.

    Returns
    -------
    str or None
        None where the value does not count.
    """
    return _constant(value) if _is_constant(value) and not is_state else None


def own_code(
    things: Iterable,
    leave_out: Iterable[str] = (),
    text_of: Callable[[tuple, Any, bool], Optional[str]] = plain_value,
) -> str:
    """A hash of what functions, classes and objects of a recipe do.

    Arguments
    ---------
    things : list of object
        Functions, classes, callable objects. Those of installed packages do not
        count. Of a class, its methods and those that it has from other classes
        of the recipe; of an object, its class.
    leave_out : list of str
        Names of methods that do not count.
    text_of : callable
        ``text_of(key, value, is_state) -> str or None``: what tells the value of a
        name from others, see ``plain_value``.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    walk = _Walk(set(leave_out), text_of)
    for thing in things:
        walk.follow(thing)
    words = walk.finish()
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def names_read(things: Iterable, leave_out: Iterable[str] = ()) -> set:
    """Names of attributes and texts that the code of a recipe reads.

    Arguments
    ---------
    things, leave_out
        As for ``own_code``.

    Returns
    -------
    set of str
        Names of hyperparameters are among them.
    """
    walk = _Walk(set(leave_out), plain_value)
    for thing in things:
        walk.follow(thing)
    walk.finish()
    return walk.sliced.reads


class _Walk:
    """Follows live functions and classes; their texts where they have them."""

    def __init__(self, leave_out, text_of):
        self.leave_out, self.text_of = leave_out, text_of
        self.waiting: list = []
        self.seen: dict = {}  # by id, with what keeps it alive
        self.read: dict = {}
        self.noted: dict = {}  # those of which the values were read
        self.found: list = []
        self.attributes: list = []  # of classes: class, name and value
        self.starts: list = []
        self.shortened: set = set()
        self.held: list = []  # by functions: paths, dicts
        self.dicts: list = []  # hyperparameters: holder, name and dict
        self.by_keys: set = set()  # modules and names of those among them
        self.sliced = Slice()
        self.modules: set = set()  # those of what is followed

    def finish(self):
        """All that counts, in an order that processes share."""
        values: dict = {}
        while self.waiting:
            while self.waiting:
                thing = self.waiting.pop(0)
                if isinstance(thing, type):
                    self._class(thing)
                else:
                    self._function(thing)
            self.sliced = slice_of(self.starts, self.shortened, self.leave_out)
            # what is imported late is there in one run, and not yet in another
            early = imported_early([*sorted(self.modules), "__main__"])
            for (module, name), is_state in self.sliced.bound.items():
                known = vars(sys.modules.get(module, types.ModuleType("")))
                if (
                    name not in known
                    or module not in early
                    or (module, name) in values
                    or name in given_to_yaml(module)
                ):
                    continue
                if self._is_read_by_keys(module, name, known[name]):
                    if (module, name) not in self.by_keys:
                        self.by_keys.add((module, name))
                        self.dicts.append((module, name, known[name]))
                    continue
                values[module, name] = self._held(
                    (module, name), known[name], is_state
                )
            for module, name in sorted(self.sliced.named):
                known = vars(sys.modules.get(module, types.ModuleType("")))
                if (
                    name in known
                    and module in early
                    and (module, name) not in values
                ):
                    values[module, name] = self._named(
                        (module, name), known[name]
                    )
            for holder, name, entries in self.dicts:
                for each in sorted(self.sliced.reads.intersection(entries)):
                    key = holder, f"{name}[{each!r}]"
                    if key not in values:
                        values[key] = self._held(key, entries[each], False)
            for kind, name, value in self.attributes:
                is_state = name in self.sliced.attributes | kept_notes(kind)
                key = kind.__module__, f"{kind.__qualname__}.{name}"
                if key not in values:
                    values[key] = self._held(key, value, is_state)
        modules = self.modules.union(name for name, _ in self.sliced.bound)
        texts = texts_of(sorted(modules))
        return [
            self.found,
            texts.digests,
            versions_with(texts.packages),
            sorted(
                f"{key[1]} = {text}"
                for key, text in values.items()
                if text is not None
            ),
            [
                (name, os.environ[name])
                for name in sorted(self.sliced.reads.intersection(os.environ))
            ],
            self._files(),
        ]

    def _held(self, key, value, is_state):
        """The text of a value; the code of functions and classes is followed."""
        if isinstance(value, (type, types.ModuleType)) or functions_of(value):
            self.follow(value)
            if isinstance(value, types.MethodType):
                value = value.__self__
            elif not is_own_wrapper(value):
                return None
        return self.text_of(key, value, is_state)

    def _named(self, key, value):
        """The text of what stands for a function or class that a text names.

        Of these themselves, whose text counts, the values that they hold.
        """
        if isinstance(value, type):
            if is_own(value) and id(value) not in self.noted:
                self.noted[id(value)] = value
                for name, member in sorted(vars(value).items()):
                    self._member(value, name, member)
            return None
        functions = functions_of(value)
        for each in functions:
            self._values_of(each)
        if functions and not is_own_wrapper(value):
            return None
        return self._held(key, value, False)

    def _member(self, kind, name, member):
        """What a member of a class that a text names holds counts."""
        if name in self.leave_out and kind.__name__ in self.shortened:
            return
        if isinstance(member, type):
            self._named((), member)
        elif functions := functions_of(member):
            for each in functions:
                self._values_of(each)
            if is_own_wrapper(member):
                self.attributes.append((kind, name, member))
        elif name not in _NOTES and _is_value(name, member):
            self.attributes.append((kind, name, member))

    def _values_of(self, function):
        """The defaults of a function, and what was noted of it, count."""
        if not is_own(function) or id(function) in self.noted:
            return
        self.noted[id(function)] = function
        start = _start_of(function)
        counted = set() if start is None else changed_by(*start)
        for name, value in defaults_of(function).items():
            if start is not None and _is_folder(value):
                continue  # as little as in any text of a function
            self._of_function(function, name, value, name in counted)
        for name, value in sorted(vars(function).items()):
            if not is_special(name):
                text = self._value(value, (function, f".{name}"), True)
                self.found.append(f".{name} = {text}")

    def _is_read_by_keys(self, module, name, value):
        """Whether a name holds hyperparameters of which texts say the keys."""
        return (
            isinstance(value, dict)
            and name in made_by_yaml(module)
            and (module, name) not in self.sliced.whole
        )

    def _files(self):
        """The content of files that the code names: beside it, in the working
        folder, beside a file that a function holds, in a dict that it holds."""
        reads = self.sliced.reads
        held = [
            value
            for each in self.held
            for value in (
                [each[name] for name in reads.intersection(each)]
                if isinstance(each, Mapping)
                else [each]
            )
            if isinstance(value, (str, Path)) and os.path.isfile(value)
        ]
        beside = [
            *held,
            *(
                file
                for module, _ in (
                    *self.starts,
                    *self.sliced.bound,
                    *self.sliced.named,
                )
                if (file := file_of(module))
            ),
        ]
        folders = {os.path.dirname(os.path.abspath(file)) for file in beside}
        paths = files_in({*folders, os.getcwd()}, reads)
        texts = {
            self.text_of((path,), path, False)
            for path in paths.union(map(os.path.abspath, held))
        }
        return sorted(text for text in texts if text is not None)

    def follow(self, thing):
        """Functions and classes of a value count from now on."""
        if id(thing) in self.seen:
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, type):
            self.waiting += [kind for kind in thing.__mro__ if is_own(kind)]
        elif functions := functions_of(thing):
            self.waiting += functions
            if is_own_wrapper(thing):
                self.follow(type(thing))
        elif is_own(type(thing)):
            self.waiting += [k for k in type(thing).__mro__ if is_own(k)]
        if isinstance(thing, functools.partial):
            wrapper = [thing.func] if is_own_wrapper(thing.func) else []
            for each in (*wrapper, *thing.args, thing.keywords):
                self.found.append(self._value(each))
        elif isinstance(thing, types.MethodType):
            self.follow(thing.__self__)

    def _class(self, kind):
        if not self._is_new(kind):
            return
        self.modules.add(kind.__module__)
        self.found.append(kind.__qualname__)
        outermost = kind.__qualname__.partition(".")[0]
        written = binds(kind.__module__, outermost)
        if written:
            self.starts.append((kind.__module__, outermost))
            self.shortened.add(kind.__name__)
        for name, member in sorted(vars(kind).items()):
            if name in self.leave_out or name in _NOTES:
                continue
            if functions := functions_of(member):
                self.waiting += functions
                if is_own_wrapper(member):
                    self.attributes.append((kind, name, member))
            elif _is_constant(member) or (written and _is_value(name, member)):
                self.attributes.append((kind, name, member))
            elif not written:
                self.found.append(f"{name} = {self._value(member)}")

    def _function(self, function):
        if not is_own(function) or not self._is_new(function):
            return
        code = function.__code__
        self.modules.add(function.__globals__.get("__name__", ""))
        self.found.append(function.__qualname__)
        start = _start_of(function)
        cells = dict(zip(code.co_freevars, function.__closure__ or ()))
        counted = set() if start is None else changed_by(*start)
        for name, cell in cells.items():
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            if isinstance(value, dict):
                read = entries_read(code, name)
                if read is not None:
                    value = {each: value[each] for each in read & set(value)}
            self._of_function(function, name, value, name in counted)
        self._values_of(function)
        self.found.append(compiled(code))
        if start is not None:
            self.starts.append(start)
        for name in global_names(code):
            if is_special(name) or name not in function.__globals__:
                continue  # they tell where it lies, and who runs it
            value = function.__globals__[name]
            if start is None or isinstance(value, types.FunctionType):
                self.found.append(f"{name} = {self._value(value)}")

    def _of_function(self, function, name, value, is_state):
        """A value that a function holds counts from now on."""
        if isinstance(value, (str, Path, Mapping)):
            self.held.append(value)
        if isinstance(value, dict) and not _is_plain(value):
            self.dicts.append((function, name, value))
            return
        text = self._value(value, (function, name), is_state)
        if text is not None:
            self.found.append(f"{name} = {text}")

    def _is_new(self, thing):
        new = id(thing) not in self.read
        self.read[id(thing)] = thing
        return new

    def _value(self, value, key=(), is_state=False):
        """A text for values; functions, classes and objects are followed."""
        if is_state:
            return self.text_of(key, value, True)
        if _is_constant(value):
            return self.text_of(key, value, False)
        if isinstance(value, dict) and _is_plain(value):
            rows = [
                f"{self._value(name)}: {self._value(each, key)}"
                for name, each in value.items()
            ]
            return f"dict {sorted(rows)}"
        if isinstance(value, (set, frozenset)) and _is_plain(value):
            return f"set {sorted(map(self._value, value))}"
        if isinstance(value, (list, tuple)) and _is_plain(value):
            return f"list {[self._value(each) for each in value]}"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if not isinstance(value, _CONTAINERS):
            self.follow(value)
        if isinstance(value, types.MethodType):
            value = value.__self__
        if hasattr(value, "__qualname__") and not is_own_wrapper(value):
            return value.__qualname__
        return self.text_of(key, value, False)


def _start_of(function):
    """The name of a module whose text has the function; None without."""
    module = function.__globals__.get("__name__", "")
    known = getattr(sys.modules.get(module), "__file__", None)
    file = function.__code__.co_filename
    if known is None or os.path.basename(known) != os.path.basename(file):
        return None
    outermost = function.__qualname__.partition(".")[0]
    if not binds(module, outermost):
        outermost = name_at(module, function.__code__.co_firstlineno)
    return None if outermost is None else (module, outermost)


def _is_value(name, member):
    """Whether a member of a class is one that a recipe gives it."""
    if is_special(name) or name == "_abc_impl":
        return False
    # what a decorator of a package notes is no plain value
    return name[:2] != "__" or _is_plain(member)


def _is_folder(value):
    return isinstance(value, (str, Path)) and os.path.isdir(value)


def _is_constant(value):
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANTS)


def _constant(value):
    """The text of a constant; data and results may be moved."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, str) and os.path.isabs(value):
        return "a path"
    return repr(value)


def _is_plain(value, depth=8):
    """Whether all in a container is plain, or a function or class."""
    if isinstance(value, _CONTAINERS):
        rows = [*value, *(value.values() if isinstance(value, dict) else ())]
        return depth > 0 and all(_is_plain(each, depth - 1) for each in rows)
    return (
        _is_constant(value)
        or isinstance(value, type)
        or bool(functions_of(value))
    )
