"""The texts of a recipe's modules: any edit of them is another recipe.

Which statements of a recipe decide a score cannot be told from its text alone: a
script sets attributes, registers functions, builds names. So no statement is left
out. A module counts with all modules of the recipe that it imports, wherever it
imports them, and the script that runs is one of them. Comments, docstrings and
layout do not count, as the syntax tree has none; compiled extensions count by the
content of their file.

Where a text finds modules or code by a name that it computes
(``importlib.import_module(name)``, ``exec``), all files of Python count that are in
its folder, in a folder there, and in packages below these.

Installed packages count by their versions (see
``speechbrain_merge.records.packages``).

Example
-------
>>> texts_of(["json"]).digests
[]

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from speechbrain_merge.records.file_hashes import content_or_name
from speechbrain_merge.records.recipe_modules import (
    extension_of,
    file_of,
    is_of_recipe,
    source_of,
    text_in,
)

_BUILT_IN = {"__import__", "eval", "exec"}
_COMPUTED = {
    *("__import__", "exec_module", "find_spec", "import_from_path"),
    *("import_module", "iter_modules", "load_module", "load_source"),
    *("run_module", "run_path", "spec_from_file_location"),
    *("spec_from_loader", "walk_packages"),
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_OF_PYTHON = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
_OF_AN_EXPERIMENT = ("env.log", "pyvenv.cfg")


class Texts(NamedTuple):
    """What modules of a recipe come to.

    Arguments
    ---------
    digests : list of str
        Of the texts; in an order that names of modules do not decide, as a script
        may run under any.
    packages : set of str
        Names of the packages that these import.
    """

    digests: list
    packages: set


def texts_of(modules: Iterable[str]) -> Texts:
    """The texts of modules, and of all of the recipe that they import.

    Arguments
    ---------
    modules : list of str
        Their names. Those of installed packages have no text.

    Returns
    -------
    Texts
    """
    found, digests = Texts([], set()), set()
    for module, text, file in _reached(modules):
        if file is None:
            found.packages.add(module.partition(".")[0])
        elif text is None:
            digests.add(extension_of(module) or content_or_name(file))
        else:
            digests.add(_digest_of(text))
            if _read(text).computes:
                digests |= set(map(content_or_name, _files_beside(file)))
    found.digests.extend(sorted(digests))
    return found


def imported_early(modules: Iterable[str]) -> set:
    """The modules that are there as soon as some others are.

    Arguments
    ---------
    modules : list of str
        Names of modules of a recipe.

    Returns
    -------
    set of str
        These, and those that they import, but within functions.
    """
    return {module for module, _, _ in _reached(modules, late=False)}


def _reached(modules, late=True) -> Iterator[tuple]:
    """Name, text and file of each module that is reached; a module of an
    installed package has neither, and an extension no text."""
    waiting: list = [(module, None) for module in modules]
    seen: set = set()
    while waiting:
        module, importer = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        parent = module.rpartition(".")[0]
        if parent:
            waiting.append((parent, importer))
        source, file = source_of(module), file_of(module)
        if source is None and file is None and importer is not None:
            # on a path that the text adds when it runs
            source, file = _found_among(_files_beside(importer), module)
        yield module, None if source is None else source[0], file
        if source is not None:
            text, package = source
            imports = _absolute(_read(text), package, late)
            waiting += [(each, file) for each in imports]


class _Read(NamedTuple):
    """What a text imports: module, name in it or None, leading dots, and whether
    within a function; and whether it finds modules by names that it computes."""

    imports: list
    computes: bool


@functools.lru_cache(maxsize=1024)
def _read(text):
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return _Read([], True)
    imports: list = []
    computes = False
    waiting: list = [(tree, False)]
    while waiting:
        node, late = waiting.pop()
        if isinstance(node, ast.If) and _is_for_types(node.test):
            waiting += [(each, late) for each in node.orelse]
            continue
        if isinstance(node, ast.Import):
            imports += [(alias.name, None, 0, late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [
                (node.module or "", alias.name, node.level, late)
                for alias in node.names
            ]
        else:
            name = getattr(node, "id", None)  # not the `eval` of a module
            called = getattr(node, "attr", name)
            computes = computes or name in _BUILT_IN or called in _COMPUTED
        late = late or isinstance(node, _FUNCTIONS)
        waiting += [(each, late) for each in ast.iter_child_nodes(node)]
    return _Read(imports, computes)


def _is_for_types(test):
    """Whether a condition holds for checkers of types alone."""
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _absolute(read, package, within) -> Iterator[str]:
    """Names of what may be imported; a name in a module may be a module."""
    for module, name, depth, late in read.imports:
        if late and not within:
            continue
        if depth:
            try:
                module = importlib.util.resolve_name(
                    "." * depth + module, package
                )
            except (ImportError, ValueError):
                continue
        yield module
        if name in (None, "*") or not is_of_recipe(module):
            continue
        if file_of(f"{module}.{name}"):
            yield f"{module}.{name}"


@functools.lru_cache(maxsize=1024)
def _digest_of(text):
    """The sha256 of a text without comments, docstrings and layout."""
    try:
        tree = ast.parse(text)
        if "__doc__" not in text:
            _drop_docstrings(tree)
        text = ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError):
        pass  # as it is
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _drop_docstrings(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, False):
            node.body = node.body[1:]


def _found_among(files, module):
    """Source and file of a module that is one of some files."""
    for ending in (".py", f"{os.sep}__init__.py"):
        place = module.replace(".", os.sep) + ending
        for file in files:
            if file.endswith(os.sep + place):
                text = text_in(file)
                package = module if ending != ".py" else ""
                return None if text is None else (text, package), file
    return None, None


@functools.lru_cache(maxsize=256)
def _files_beside(file):
    """The files of Python that a module may find by a name, in order.

    They are looked for once in a process, as a folder may hold a corpus.
    """
    found: list = []
    waiting = [(os.path.dirname(os.path.abspath(file)), 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as inside:
                entries = {entry.name: entry for entry in inside}
        except OSError:  # not for us to read, or gone
            continue
        if depth and any(name in entries for name in _OF_AN_EXPERIMENT):
            continue  # it has a copy of the script
        if depth > 1 and "__init__.py" not in entries:
            continue
        for name, entry in entries.items():
            if name.startswith((".", "__pycache")):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, depth + 1))
            elif name.endswith(_OF_PYTHON) and entry.is_file():
                found.append(entry.path)
    return tuple(sorted(found))
