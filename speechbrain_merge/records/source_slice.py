"""The statements of a recipe's modules that a name of them comes to.

A function's own text says little about what it does: it reads dictionaries,
calls helpers, makes objects, and uses other modules. So the text is sliced. From
a name, the statements that bind or change it; from these, the names that they
read; and so on, into the other modules of the recipe. Modules of installed
packages are not followed, they go by their versions.

A statement counts by its syntax tree, with the conditions that it stands under:
comments, layout and docstrings do not count. What is below
``if __name__ == "__main__"`` counts where it binds a name that is read.

The text of a module is the one that it had when it was first looked at:
``remember`` looks at all of them, early in a run, so that a file that is edited
while the run goes on is not taken for what the run computes with.

What Python finds by a name that it computes (``getattr(module, name)``,
``importlib.import_module(name)``) is not found here: of a module that is used
otherwise than by its attributes, all counts.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import builtins
import copy
import dis
import functools
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Optional

_PACKAGES = ("speechbrain", "speechbrain_merge")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NAMED = (*_FUNCTIONS, ast.ClassDef)
_CHANGES = {
    *("add", "append", "clear", "discard", "extend", "insert", "pop"),
    *("popitem", "register", "remove", "reverse", "setdefault", "sort"),
    "update",
}

_texts: dict = {}
"""Module to its ``__spec__`` and text; a module that is reloaded has another."""


def is_of_recipe(module: str) -> bool:
    """Whether a module is a recipe's, and of no installed package.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    bool
    """
    if module.partition(".")[0] in (*_PACKAGES, *sys.builtin_module_names):
        return False
    file = _told(sys.modules.get(module), "__file__")
    return file is None or not _is_installed(str(file))  # none: of a notebook


def _told(module, name):
    """What a module says of itself; some import others when they are asked."""
    return getattr(module, "__dict__", {}).get(name)


@functools.cache
def _is_installed(file):
    places = _installed()
    return file.startswith(places) or os.path.realpath(file).startswith(places)


@functools.cache
def _installed():
    """Where packages are, with and without links."""
    places = [sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib")]
    places += [os.path.realpath(place) for place in places]
    return tuple(place + os.sep for place in places)


def remember() -> None:
    """Reads the text of every module of the recipe that is there by now."""
    for name in list(sys.modules):
        if is_of_recipe(name):
            _text_of(name)


@dataclass
class Slice:
    """What some names come to.

    Arguments
    ---------
    statements : list
        Of each module, the texts of the trees of its statements, in order.
    bound : set
        Module and name of all that these bind.
    """

    statements: list = field(default_factory=list)
    bound: set = field(default_factory=set)


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
    >>> slice_of([("json", "dumps")]).statements
    []
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
    parsed = _parsed(module) if module in sys.modules else None
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
    parsed = _parsed(module) if module in sys.modules else None
    for unit in parsed.units if parsed else ():
        end = getattr(unit.node, "end_lineno", None)
        if end is not None and unit.node.lineno <= line <= end and unit.binds:
            return min(unit.binds)
    return None


@dataclass
class _Unit:
    """A statement without others around it; one name of an import."""

    node: ast.AST
    guards: list
    under_main: bool
    imports: Optional[tuple] = None  # (module, name in it or None, depth)
    reads: set = field(default_factory=set)
    binds: set = field(default_factory=set)


class _Parsed:
    """A module's statements, and which of them bind a name."""

    def __init__(self, text, name, package):
        self.name, self.package = name, package
        self.units = list(_units(ast.parse(text).body, [], False))
        self.stars = []
        for unit in self.units:
            if unit.imports is None:
                unit.reads, unit.binds = _names_of(unit)
            elif unit.binds == {"*"}:
                self.stars.append(self.absolute(unit.imports))
        own = {
            name
            for unit in self.units
            for name in unit.binds
            if unit.imports is None or self._is_own(unit.imports)
        }
        self.bindings: dict = {}
        for place, unit in enumerate(self.units):
            if unit.imports is None:  # `functools.x()` changes no `functools`
                unit.binds |= _changed(unit) & own
            for name in unit.binds:
                self.bindings.setdefault(name, []).append(place)

    def absolute(self, imports):
        """The name of an imported module."""
        module, _, depth = imports
        if not depth:
            return module
        try:
            return importlib.util.resolve_name(
                "." * depth + module, self.package
            )
        except (ImportError, ValueError):
            return ""

    def _is_own(self, imports):
        return _source(self.absolute(imports)) is not None


class _Walk:
    """Follows names through modules."""

    def __init__(self, shortened, leave_out):
        self.shortened, self.leave_out = shortened, leave_out
        self.seen: dict = {}  # module: places of its statements
        self.waiting: list = []
        self.done: set = set()

    def name(self, module, name, rest):
        """Follows a name of a module, and the attributes that are read of it."""
        if (module, name, rest) in self.done:
            return
        self.done.add((module, name, rest))
        parsed = _parsed(module)
        if parsed is None:
            return
        for place in parsed.bindings.get(name, ()):
            unit = parsed.units[place]
            if place not in self.seen.setdefault(module, set()):
                self.seen[module].add(place)
                self.waiting.append((parsed, unit))
                if isinstance(unit.node, _NAMED):  # may be here for a change
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
        parsed = _parsed(module)
        if parsed is None and not _is_package(module):
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
            short = self._short(unit)
            reads = unit.reads
            if short is not unit:
                reads, _ = _names_of(short)
            local: dict = {}
            for node in ast.walk(short.node):
                for each in _imports(node):
                    (bound,) = each.binds
                    local.setdefault(bound, []).append(each.imports)
            for name, rest in _chains([short.node, *short.guards]):
                if name in reads:
                    self.name(parsed.name, name, rest)
                for imports in local.get(name, ()):
                    self.imported(parsed, imports, rest)

    def found(self):
        """The slice."""
        result = Slice()
        for module, places in self.seen.items():
            parsed = _parsed(module)
            units = [parsed.units[place] for place in sorted(places)]
            result.statements.append([_dump(self._short(u)) for u in units])
            for unit in units:
                if unit.imports is None:
                    result.bound |= {(module, name) for name in unit.binds}
        result.statements.sort()
        return result

    def _short(self, unit):
        """The statement without the methods that are left out."""
        if not self.leave_out or not any(
            isinstance(each, ast.ClassDef) and each.name in self.shortened
            for each in ast.walk(unit.node)
        ):
            return unit
        node = copy.deepcopy(unit.node)
        for each in ast.walk(node):
            if isinstance(each, ast.ClassDef) and each.name in self.shortened:
                each.body = [
                    part
                    for part in each.body
                    if not isinstance(part, _FUNCTIONS)
                    or part.name not in self.leave_out
                ] or [ast.copy_location(ast.Pass(), each)]
        return _Unit(node, unit.guards, unit.under_main)


def _units(body, guards, under_main) -> Iterator[_Unit]:
    """The statements of a module, those within others one by one."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for unit in _imports(node):
                unit.guards, unit.under_main = guards, under_main
                yield unit
        elif isinstance(node, (ast.If, ast.While)):
            test = node.test
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(test)):
                yield _Unit(_located(ast.Expr(test), node), guards, under_main)
            below = under_main or _asks_for_main(test)
            yield from _units(node.body, [*guards, test], below)
            other = _located(ast.UnaryOp(ast.Not(), test), test)
            yield from _units(node.orelse, [*guards, other], under_main)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            bound = ast.Assign([node.target], node.iter)
            yield _Unit(_located(bound, node), guards, under_main)
            inner = [*guards, node.iter]
            yield from _units([*node.body, *node.orelse], inner, under_main)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            inner = [*guards, *(item.context_expr for item in node.items)]
            for item in node.items:
                if item.optional_vars is not None:
                    bound = ast.Assign([item.optional_vars], item.context_expr)
                    yield _Unit(_located(bound, node), guards, under_main)
            yield from _units(node.body, inner, under_main)
        elif hasattr(node, "handlers"):  # try, and try with except*
            yield from _units(node.body, guards, under_main)
            for handler in node.handlers:
                kinds = [] if handler.type is None else [handler.type]
                inner = [*guards, *kinds]
                yield from _units(handler.body, inner, under_main)
            rest = [*node.orelse, *node.finalbody]
            yield from _units(rest, guards, under_main)
        else:
            yield _Unit(node, guards, under_main)


def _located(node, at):
    return ast.fix_missing_locations(ast.copy_location(node, at))


def _asks_for_main(test):
    return any(
        isinstance(node, ast.Name) and node.id == "__name__"
        for node in ast.walk(test)
    )


def _imports(node) -> Iterator[_Unit]:
    """A unit for each name that an import binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            module = alias.name if alias.asname else bound
            one = ast.Import([alias])
            yield _Unit(one, [], False, (module, None, 0), binds={bound})
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            imports = (node.module or "", alias.name, node.level)
            part = ast.ImportFrom(node.module, [alias], node.level)
            bound = alias.asname or alias.name
            yield _Unit(part, [], False, imports, binds={bound})


def _names_of(unit):
    """Names of the module that a statement reads, and that it binds.

    As Python resolves them: a parameter hides a name of the module.
    """
    guards = [_located(ast.Expr(each), unit.node) for each in unit.guards]
    reads, binds = set(), set()
    for statement in (unit.node, *guards):
        tree = ast.Module([statement], [])
        try:
            code = compile(tree, "<slice>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # `from __future__`, say
            continue
        waiting = [(code, True)]
        while waiting:
            each, top = waiting.pop()
            for instruction in dis.get_instructions(each):
                action, _, kind = instruction.opname.partition("_")
                if kind not in ("NAME", "GLOBAL", "FROM_DICT_OR_GLOBALS"):
                    continue
                if action == "LOAD":
                    reads.add(instruction.argval)
                elif top or kind == "GLOBAL":
                    binds.add(instruction.argval)
            waiting += [
                (part, False)
                for part in each.co_consts
                if isinstance(part, types.CodeType)
            ]
    return {n for n in reads if not _is_special(n)}, binds


def _changed(unit):
    """Names whose objects a statement changes, or is handed to at import."""
    found = set()
    for node in ast.walk(unit.node):
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                found.add(_base(node))
        elif isinstance(node, ast.Call) and isinstance(
            node.func, ast.Attribute
        ):
            if node.func.attr in _CHANGES:
                found.add(_base(node.func))
    handed: list = []
    if isinstance(unit.node, ast.Expr) and not unit.under_main:
        handed = [unit.node]
    elif isinstance(unit.node, _NAMED):
        handed = list(unit.node.decorator_list)
    for each in handed:
        found |= {n.id for n in ast.walk(each) if isinstance(n, ast.Name)}
    return found & unit.reads


def _base(node):
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _chains(nodes) -> Iterator[tuple]:
    """Each name with the attributes that are taken of it."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        rest: list = []
        while isinstance(node, ast.Attribute):
            rest.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield node.id, tuple(rest)
        else:
            waiting += ast.iter_child_nodes(node)


def _dump(unit):
    """The text of a statement's tree, and of the conditions above it."""
    node = copy.deepcopy(unit.node)
    for each in ast.walk(node):
        if isinstance(each, _NAMED) and ast.get_docstring(each, False):
            each.body = each.body[1:]
    return "\n".join(map(ast.dump, [node, *unit.guards]))


def _is_special(name):
    """``__name__``, ``__file__``: where it lies, and who runs it."""
    return name.startswith("__") and name.endswith("__")


def _source(module):
    """Text and package of a recipe's module; None where it has none."""
    if not module or not is_of_recipe(module):
        return None
    if module in sys.modules:
        text = _text_of(module)
        package = _told(sys.modules[module], "__package__") or ""
    else:
        spec = _spec_of(module)
        file = None if spec is None else spec.origin
        if file is None or not file.endswith(".py") or _is_installed(file):
            return None
        text, package = _read(file), spec.parent
    return None if text is None else (text, package)


def _spec_of(module):
    """Where a module that is not imported lies; nothing is run."""
    path, spec = None, None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


def _is_package(module):
    """Whether modules of the recipe may lie in one without a text."""
    if not module or not is_of_recipe(module):
        return False
    known = sys.modules.get(module) or _spec_of(module)
    return bool(
        _told(known, "__path__")
        or getattr(known, "submodule_search_locations", None)
    )


def _text_of(module):
    """The text of an imported module when it was first looked at."""
    known = sys.modules[module]
    spec = _told(known, "__spec__")
    if module in _texts:
        before = _texts[module]
        if before[0] is known and before[1] is spec:
            return before[2]
    file = _told(known, "__file__")
    text = _read(file) if file and str(file).endswith(".py") else None
    _texts[module] = (known, spec, text)
    return text


def _read(file):
    try:
        with open(file, "rb") as stream:
            return importlib.util.decode_source(stream.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _parsed(module):
    source = _source(module)
    return None if source is None else _parse(source[0], module, source[1])


@functools.lru_cache(maxsize=256)
def _parse(text, module, package):
    try:
        return _Parsed(text, module, package)
    except (SyntaxError, ValueError, RecursionError):
        return None


remember()
