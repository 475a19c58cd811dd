"""What one statement of a recipe's module reads and writes.

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from speechbrain_merge.records.parsed_module import (
    FUNCTIONS,
    Unit,
    imports_of,
    names_of,
)


@dataclass(frozen=True)
class Statement:
    """What a statement reads and writes.

    Arguments
    ---------
    reads : set of str
        Names of the module.
    chains : list of tuple
        Each name, with the attributes that are taken of it.
    imports : dict
        Name to what imports within it give that name.
    words : set of str
        Names of attributes that are read, and texts.
    written : set of str
        Names of attributes that are written: counters, what was found.
    whole : set of tuple
        Names that are used otherwise than by ``name["key"]``, each with the
        function that it is passed to, or None.
    """

    reads: set
    chains: list
    imports: dict
    words: set
    written: set
    whole: set


@functools.lru_cache(maxsize=8192)
def statement(
    unit: Unit,
    shortened: frozenset = frozenset(),
    leave_out: frozenset = frozenset(),
) -> Statement:
    """What a statement of a module reads and writes.

    Arguments
    ---------
    unit : Unit
        The statement.
    shortened : frozenset of str
        Names of classes that count without some of their methods.
    leave_out : frozenset of str
        These methods.

    Returns
    -------
    Statement

    Example
    -------
    >>> unit = Unit(ast.parse("beam = options.beam").body[0], [], False)
    >>> sorted(statement(unit).words)
    ['beam']
    """
    short = _without(unit, shortened, leave_out)
    trees = [short.node, *short.guards]
    imports: dict = {}
    for node in ast.walk(short.node):
        for each in imports_of(node):
            (bound,) = each.binds
            imports.setdefault(bound, []).append(each.imports)
    words = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
    written = {
        node.attr
        for node in ast.walk(unit.node)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, (ast.Store, ast.Del))
    }
    return Statement(
        unit.reads if short is unit else names_of(short)[0],
        list(_chains(trees)),
        imports,
        words,
        written,
        {use for tree in trees for use in _used_whole(tree)},
    )


def _used_whole(tree) -> Iterator[tuple]:
    """Names that are used otherwise than by a key that the text says."""
    known: dict = {}  # by what is done with a name
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            if isinstance(node.slice, ast.Constant):
                known[node.value] = False
        elif isinstance(node, ast.Compare):
            asked = [type(each) for each in node.ops] in ([ast.In], [ast.NotIn])
            if asked and isinstance(node.left, ast.Constant):
                known[node.comparators[0]] = False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            passed = [*node.args, *(each.value for each in node.keywords)]
            known.update(dict.fromkeys(passed, node.func.id))
            for each in node.keywords:
                if each.arg is None:  # **name
                    known[each.value] = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            use = known.get(node)
            if use is not False:
                yield node.id, use


def _without(unit, shortened, leave_out):
    """The statement without the methods that are left out."""
    if not leave_out or not any(
        isinstance(each, ast.ClassDef) and each.name in shortened
        for each in ast.walk(unit.node)
    ):
        return unit
    node = copy.deepcopy(unit.node)
    for each in ast.walk(node):
        if isinstance(each, ast.ClassDef) and each.name in shortened:
            each.body = [
                part
                for part in each.body
                if not isinstance(part, FUNCTIONS) or part.name not in leave_out
            ] or [ast.copy_location(ast.Pass(), each)]
    return Unit(node, unit.guards, unit.under_main)


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
