"""A module of a recipe, taken apart: statements, and which of them bind a name.

Statements within others (below ``if``, ``for``, ``with``, ``try``) stand for
themselves, with the conditions that they stand under.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import dis
import functools
import importlib.util
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

from speechbrain_merge.records.recipe_modules import source_of

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED = (*FUNCTIONS, ast.ClassDef)
_KINDS = (object, type, int, dict, type(lambda: 0), types.ModuleType)
_CHANGES = {
    *("add", "append", "clear", "discard", "extend", "insert", "pop"),
    *("popitem", "register", "remove", "reverse", "setdefault", "sort"),
    "update",
}
_OF_PYTHON = {
    *(name for kind in _KINDS for name in dir(kind) if name[:2] == "__"),
    *("__abstractmethods__", "__all__", "__annotate__", "__build_class__"),
    *("__builtins__", "__cached__", "__classcell__", "__classdict__"),
    *("__conditional_annotations__", "__constants__", "__dataclass_fields__"),
    *("__dataclass_params__", "__debug__", "__file__", "__firstlineno__"),
    *("__getstate__", "__import__", "__loader__"),
    *("__match_args__", "__members__", "__objclass__", "__orig_bases__"),
    *("__package__", "__parameters__", "__path__", "__post_init__"),
    *("__slots__", "__spec__", "__static_attributes__", "__type_params__"),
    *("__version__", "__weakref__", "__wrapped__"),
}


@dataclass(eq=False)
class Unit:
    """A statement without others around it; one name of an import.

    Arguments
    ---------
    node : ast.stmt
        The statement.
    guards : list of ast.AST
        The conditions that it stands under.
    under_main : bool
        Whether that of a script is among them.
    imports : tuple, optional
        Of an import: module, name in it or None, and number of leading dots.
    reads, binds : set of str
        Names of the module.
    """

    node: ast.stmt
    guards: list
    under_main: bool
    imports: Optional[tuple] = None  # (module, name in it or None, depth)
    reads: set = field(default_factory=set)
    binds: set = field(default_factory=set)


class Parsed:
    """A module's statements, and which of them bind a name.

    Arguments
    ---------
    text : str
        Its text.
    name : str
        Its name.
    package : str
        The name of its package, which relative imports go by.
    """

    def __init__(self, text: str, name: str, package: str):
        self.name, self.package = name, package
        self.units = list(_units(ast.parse(text).body, [], False))
        self.stars = []
        for unit in self.units:
            if unit.imports is None:
                unit.reads, unit.binds = names_of(unit)
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

    def absolute(self, imports: tuple) -> str:
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
        return source_of(self.absolute(imports)) is not None


def _units(body, guards, under_main) -> Iterator[Unit]:
    """The statements of a module, those within others one by one."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for unit in imports_of(node):
                unit.guards, unit.under_main = guards, under_main
                yield unit
        elif isinstance(node, (ast.If, ast.While)):
            test = node.test
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(test)):
                yield Unit(_located(ast.Expr(test), node), guards, under_main)
            below = under_main or _asks_for_main(test)
            yield from _units(node.body, [*guards, test], below)
            other = _located(ast.UnaryOp(ast.Not(), test), test)
            yield from _units(node.orelse, [*guards, other], under_main)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            bound = ast.Assign([node.target], node.iter)
            yield Unit(_located(bound, node), guards, under_main)
            inner = [*guards, node.iter]
            yield from _units([*node.body, *node.orelse], inner, under_main)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            inner = [*guards, *(item.context_expr for item in node.items)]
            for item in node.items:
                if item.optional_vars is not None:
                    bound = ast.Assign([item.optional_vars], item.context_expr)
                    yield Unit(_located(bound, node), guards, under_main)
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
            yield Unit(node, guards, under_main)


def _located(node, at):
    return ast.fix_missing_locations(ast.copy_location(node, at))


def _asks_for_main(test):
    return any(
        isinstance(node, ast.Name) and node.id == "__name__"
        for node in ast.walk(test)
    )


def imports_of(node: ast.AST) -> Iterator[Unit]:
    """A unit for each name that an import binds.

    Arguments
    ---------
    node : ast.stmt
        A statement; one that is no import gives none.

    Yields
    ------
    Unit
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            module = alias.name if alias.asname else bound
            one = ast.Import([alias])
            yield Unit(one, [], False, (module, None, 0), binds={bound})
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            imports = (node.module or "", alias.name, node.level)
            part = ast.ImportFrom(node.module, [alias], node.level)
            bound = alias.asname or alias.name
            yield Unit(part, [], False, imports, binds={bound})


def names_of(unit: Unit) -> tuple[set, set]:
    """Names of the module that a statement reads, and that it binds.

    As Python resolves them: a parameter hides a name of the module.

    Arguments
    ---------
    unit : Unit
        The statement.

    Returns
    -------
    reads, binds : set of str
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
    return {n for n in reads if not is_special(n)}, binds


@functools.lru_cache(maxsize=4096)
def changed_names(tree: ast.AST) -> set:
    """Names whose objects some code changes, or that it counts up from within.

    Arguments
    ---------
    tree : ast.AST
        The code.

    Returns
    -------
    set of str

    Example
    -------
    >>> code = "def f():\\n nonlocal n\\n n += 1\\n seen.append(n)\\n d[n] = 1"
    >>> sorted(changed_names(ast.parse(code)))
    ['d', 'n', 'seen']
    """
    found = {_base(place) for place in _filled(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Nonlocal):
            found |= set(node.names)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                found.add(_base(node))
    return found


def changed_attributes(tree: ast.AST) -> set:
    """Names of attributes of ``self`` whose objects some code changes.

    Arguments
    ---------
    tree : ast.AST
        The code of a class.

    Returns
    -------
    set of str

    Example
    -------
    >>> code = "def f(self):\\n self.seen.append(1)\\n self.d[1] = self.beam"
    >>> sorted(changed_attributes(ast.parse(code)))
    ['d', 'seen']
    """
    return {
        place.attr
        for place in _filled(tree)
        if isinstance(place, ast.Attribute)
        and isinstance(place.value, ast.Name)
        and place.value.id == "self"
    }


def _filled(tree) -> Iterator[ast.expr]:
    """What some code puts things in, or takes them out of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            if isinstance(node.ctx, (ast.Store, ast.Del)):
                yield node.value
        elif isinstance(node, ast.Call) and isinstance(
            node.func, ast.Attribute
        ):
            if node.func.attr in _CHANGES:
                yield node.func.value


def _changed(unit):
    """Names whose objects a statement changes, or is handed to at import."""
    found = changed_names(unit.node)
    handed: list = []
    if isinstance(unit.node, ast.Expr) and not unit.under_main:
        handed = [unit.node]
    elif isinstance(unit.node, NAMED):
        handed = list(unit.node.decorator_list)
    for each in handed:
        found |= {n.id for n in ast.walk(each) if isinstance(n, ast.Name)}
    return found & unit.reads


def _base(node):
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_special(name: str) -> bool:
    """Whether a name is one that Python itself sets, or knows of classes.

    Arguments
    ---------
    name : str
        Of a variable or an attribute.

    Returns
    -------
    bool

    Example
    -------
    >>> is_special("__file__"), is_special("__fillers__")
    (True, False)
    """
    return name in _OF_PYTHON


def parsed_module(module: str) -> Optional[Parsed]:
    """A module of a recipe, taken apart.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    Parsed or None
        None where it is of no recipe, or has no text.

    Example
    -------
    >>> parsed_module("json") is None
    True
    """
    source = source_of(module)
    return None if source is None else _parse(source[0], module, source[1])


@functools.lru_cache(maxsize=256)
def _parse(text, module, package):
    try:
        return Parsed(text, module, package)
    except (SyntaxError, ValueError, RecursionError):
        return None
