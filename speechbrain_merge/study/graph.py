"""The models of a study as a graph: which model is made from which.

An expert is trained from the original, an average is merged from experts, and
the next round of experts is trained from that average. Each model is a frozen
node that names its parents. ``study/plan.py`` reads the nodes from a YAML, and
``study/making.py`` makes them.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from speechbrain_merge.study.nodes import GENERALIST, Node


def with_ancestors(
    plan: Sequence[Node], only: Optional[Iterable] = None
) -> list[Node]:
    """Some nodes of a plan, and all that they are made from.

    Arguments
    ---------
    plan : list of Node
        In an order in which parents come first.
    only : list of str, optional
        The names of the nodes; default: all.

    Returns
    -------
    list of Node
        In the order of the plan. Nodes that are named are rows, the others
        are not.

    Example
    -------
    >>> from speechbrain_merge.study.nodes import Original, Train
    >>> start = Original("original", "original", "generalist")
    >>> a, b = (Train(name, name, "expert") for name in "ab")
    >>> [node.name for node in with_ancestors([start, a, b], ["b"])]
    ['original', 'b']
    """
    if only is None:
        return list(plan)
    by_name = {node.name: node for node in plan}
    waiting = [check_known(name, by_name, "`only`") for name in only]
    named, needed = set(waiting), set()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += by_name[name].parents
    named |= {node.name for node in plan if node.group == GENERALIST}
    return [
        dataclasses.replace(node, row=node.row and node.name in named)
        for node in plan
        if node.name in needed
    ]


def trainings_behind(name: str, by_name: Mapping) -> list[str]:
    """The trainings that a model is made from, itself included.

    That of the generalist, which all models have in common, does not count.

    Arguments
    ---------
    name : str
        The model.
    by_name : dict
        Name to Node.

    Returns
    -------
    list of str
        Each once, sorted.
    """
    found, seen, waiting = set(), set(), [name]
    while waiting:
        node = by_name[waiting.pop()]
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.kind == "train" and node.group != GENERALIST:
            found.add(node.name)
        waiting += node.parents
    return sorted(found)


def check_known(name: str, known: Iterable, where: str) -> str:
    """A name that exists; otherwise an error that lists those that do.

    Arguments
    ---------
    name : str
        The name that is asked for.
    known : collection of str
        The names that exist.
    where : str
        The YAML key that asks, for the message.

    Returns
    -------
    str
        The name.

    Raises
    ------
    ValueError
        When there is none of that name.

    Example
    -------
    >>> check_known("aode", ["child", "aoed"], "`only`")
    Traceback (most recent call last):
    ...
    ValueError: `only`: there is no model 'aode' here; did you mean 'aoed'? There are: child, aoed.
    """
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    raise ValueError(
        f"{where}: there is no model '{name}' here{hint} There are: "
        f"{', '.join(known) or 'none'}."
    )
