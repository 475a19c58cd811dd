"""The names of a recipe's modules that its functions come to.

The text of a recipe counts as a whole (see
``speechbrain_merge.records.recipe_texts``). What the text does not say is the
value that a name has: a table that was read from a file, say. Of the values in a
module those count that a function comes to, so that those of the training and of
the results do not. So the text is sliced. From a name, the statements that bind
or change it; from these, the names that they read; and so on, into the other
modules of the recipe.

Of a module that is used otherwise than by its attributes, all names are read.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import builtins
import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Optional

from speechbrain_merge.records.parsed_module import (
    NAMED,
    changed_attributes,
    changed_names,
    parsed_module,
)
from speechbrain_merge.records.recipe_modules import is_package
from speechbrain_merge.records.statement import statement

_PARSING = "parse_arguments"
_LOADING = "load_hyperpyyaml"
_OF_YAML = {_LOADING, "create_experiment_directory"}


@dataclass
class Slice:
    """What some names come to.

    Arguments
    ---------
    bound : dict
        Module and name of all that these bind, and whether functions bind or
        change it while they run.
    named : set
        Module and name of the functions and classes among them.
    attributes : set
        Names of attributes that functions and methods write.
    reads : set
        Names of attributes that are read, and texts: names of hyperparameters and
        files are among them.
    whole : set
        Module and name of what is used otherwise than by keys that a text says.
    """

    bound: dict = field(default_factory=dict)
    named: set = field(default_factory=set)
    attributes: set = field(default_factory=set)
    reads: set = field(default_factory=set)
    whole: set = field(default_factory=set)


def slice_of(
    starts: Iterable,
    shortened: Iterable[str] = (),
    leave_out: Iterable[str] = (),
) -> Slice:
    """The statements that names of modules come to.

    Arguments
    ---------
    starts : list of tuple
        Module and the name in it.
    shortened : list of str
        Names of classes that count without some of their methods.
    leave_out : list of str
        These methods.

    Returns
    -------
    Slice

    Example
    -------
    >>> slice_of([("json", "dumps")]).bound
    {}
    """
    walk = _Walk(set(shortened), set(leave_out))
    for module, name in starts:
        walk.name(module, name, ())
    walk.finish()
    return walk.found()


def binds(module: str, name: str) -> bool:
    """Whether the text of a recipe's module binds a name.

    Arguments
    ---------
    module, name : str
        The module, which is imported, and the name.

    Returns
    -------
    bool
    """
    parsed = parsed_module(module) if module in sys.modules else None
    return parsed is not None and name in parsed.bindings


def name_at(module: str, line: int) -> Optional[str]:
    """A name that the statement at some line of a module binds.

    Arguments
    ---------
    module : str
        The module.
    line : int
        Counted from one.

    Returns
    -------
    str or None
    """
    parsed = parsed_module(module) if module in sys.modules else None
    for unit in parsed.units if parsed else ():
        end = getattr(unit.node, "end_lineno", None)
        if end is not None and unit.node.lineno <= line <= end and unit.binds:
            return min(unit.binds)
    return None


def changed_by(module: str, name: str) -> set:
    """Names of variables that the text of a module's name changes.

    Arguments
    ---------
    module, name : str
        The module, and what it binds: a function, say.

    Returns
    -------
    set of str
    """
    parsed = parsed_module(module)
    if parsed is None:
        return set()
    return {
        each
        for place in parsed.bindings.get(name, ())
        for each in changed_names(parsed.units[place].node)
    }


def given_to_yaml(module: str) -> set:
    """Names of a script that hold its command line, for its YAML alone.

    Arguments
    ---------
    module : str
        The module.

    Returns
    -------
    set of str
        What ``speechbrain.parse_arguments`` gave, as long as no other statement
        reads it than those that load the YAML. The hyperparameters say what
        came of it.

    Example
    -------
    >>> given_to_yaml("json")
    set()
    """
    parsed = parsed_module(module)
    found: set = set()
    others: set = set()
    for unit in parsed.units if parsed else ():
        called = _called(unit.node)
        if _PARSING in called:
            found |= unit.binds
        elif not called & _OF_YAML:
            others |= unit.reads
    return found - others


def made_by_yaml(module: str) -> set:
    """Names of a script that hold what its YAML says: its hyperparameters.

    Arguments
    ---------
    module : str
        The module.

    Returns
    -------
    set of str
        Names that statements with ``load_hyperpyyaml`` bind.
    """
    parsed = parsed_module(module)
    return {
        name
        for unit in (parsed.units if parsed else ())
        if _LOADING in _called(unit.node)
        for name in unit.binds
    }


def _is_followed(parsed, function):
    """Whether a function is the recipe's own, so that its text is read."""
    places = parsed.bindings.get(function, ()) if function else ()
    units = [parsed.units[place] for place in places]
    return bool(units) and all(
        isinstance(unit.node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (
            unit.imports is not None
            and parsed_module(parsed.absolute(unit.imports)) is not None
        )
        for unit in units
    )


def _called(tree):
    """Names of the functions that are called in a statement."""
    calls = [each.func for each in ast.walk(tree) if isinstance(each, ast.Call)]
    return {getattr(each, "attr", getattr(each, "id", None)) for each in calls}


@functools.lru_cache(maxsize=4096)
def kept_notes(kind: type) -> set:
    """Names of attributes of which the methods of a recipe's class keep notes.

    Arguments
    ---------
    kind : type
        A class, whose bases count as well.

    Returns
    -------
    set of str
        Of ``self.heard.append(…)`` and ``self.heard[…] = …``: ``heard``.
    """
    found: set = set()
    for each in kind.__mro__:
        parsed = parsed_module(each.__module__)
        if parsed is None:
            continue
        name = each.__qualname__.partition(".")[0]
        for place in parsed.bindings.get(name, ()):
            for node in ast.walk(parsed.units[place].node):
                if (
                    isinstance(node, ast.ClassDef)
                    and node.name == each.__name__
                ):
                    found |= {
                        private_name(each, changed)
                        for changed in changed_attributes(node)
                    }
    return found


def private_name(kind: type, name: str) -> str:
    """The name under which Python keeps an attribute that a class writes.

    Arguments
    ---------
    kind : type
        The class whose text has the name.
    name : str
        As the text has it.

    Returns
    -------
    str

    Example
    -------
    >>> class Rules: ...
    >>> private_name(Rules, "__words"), private_name(Rules, "words")
    ('_Rules__words', 'words')
    """
    owner = kind.__name__.lstrip("_")
    if name[:2] != "__" or name[-2:] == "__" or not owner:
        return name
    return f"_{owner}{name}"


class _Walk:
    """Follows names through modules."""

    def __init__(self, shortened, leave_out):
        self.shortened = frozenset(shortened)
        self.leave_out = frozenset(leave_out)
        self.seen: dict = {}  # module: places of its statements
        self.waiting: list = []
        self.done: set = set()

    def name(self, module, name, rest):
        """Follows a name of a module, and the attributes that are read of it."""
        if (module, name, rest) in self.done:
            return
        self.done.add((module, name, rest))
        parsed = parsed_module(module)
        if parsed is None:
            return
        for place in parsed.bindings.get(name, ()):
            unit = parsed.units[place]
            if place not in self.seen.setdefault(module, set()):
                self.seen[module].add(place)
                self.waiting.append((parsed, unit))
                if isinstance(unit.node, NAMED):  # may be here for a change
                    self.name(module, unit.node.name, ())
            if unit.imports is not None:
                self.imported(parsed, unit.imports, rest)
        if name not in parsed.bindings and not hasattr(builtins, name):
            for other in parsed.stars:
                self.name(other, name, rest)

    def imported(self, parsed, imports, rest):
        """Follows what an import gives, as far as it is used."""
        module, name = parsed.absolute(imports), imports[1]
        self.module(module, rest if name is None else (name, *rest))

    def module(self, module, rest):
        """Follows attributes of a module; without any, all of it."""
        parsed = parsed_module(module)
        if parsed is None and not is_package(module):
            return
        if not rest:
            for unit in parsed.units if parsed else ():
                for name in () if unit.under_main else unit.binds:
                    self.name(module, name, ())
        elif parsed is not None and (
            rest[0] in parsed.bindings or parsed.stars
        ):
            self.name(module, rest[0], rest[1:])
        if rest and (parsed is None or rest[0] not in parsed.bindings):
            self.module(f"{module}.{rest[0]}", rest[1:])

    def finish(self):
        """Follows all that the statements read."""
        while self.waiting:
            parsed, unit = self.waiting.pop()
            if unit.imports is not None:
                continue
            about = statement(unit, self.shortened, self.leave_out)
            for name, rest in about.chains:
                if name in about.reads:
                    self.name(parsed.name, name, rest)
                for imports in about.imports.get(name, ()):
                    self.imported(parsed, imports, rest)

    def found(self):
        """The slice."""
        result = Slice()
        for module, places in self.seen.items():
            parsed = parsed_module(module)
            units = [parsed.units[place] for place in sorted(places)]
            about = [
                statement(unit, self.shortened, self.leave_out)
                for unit in units
            ]
            for unit, each in zip(units, about):
                result.reads |= each.words
                result.whole |= {
                    (module, name)
                    for name, function in each.whole
                    if not _is_followed(parsed, function)
                }
                names, in_function = unit.binds, isinstance(unit.node, NAMED)
                if in_function:
                    names = names - {unit.node.name}
                    result.named.add((module, unit.node.name))
                    result.attributes |= each.written
                for name in () if unit.imports is not None else names:
                    known = result.bound.get((module, name), False)
                    result.bound[module, name] = in_function or known
        return result
