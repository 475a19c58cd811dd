"""Sequences: models that learn one domain after the other.

A sequence is trained (``in_turn``), trained and merged in turn
(``in_turn`` with ``merge_each``: after each domain the new expert is merged
with the model that it started from), or merged of experts that know nothing of
one another (``merge`` with ``stages``: of the first expert, the first two, …).
Each has a model after each domain, so that all of them can be compared.

Authors
 * The speechbrain_merge authors 2026
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Union

from speechbrain_merge.study.nodes import Merge, Node, Train


@dataclasses.dataclass(frozen=True)
class Sequence:
    """The models of a sequence.

    Arguments
    ---------
    start : str
        The model before the first domain.
    models : tuple of str
        The model after each domain.
    domains : tuple of str
        The domains, in their order.
    """

    start: str
    models: tuple
    domains: tuple


def sequence_of(node: Union[Train, Merge], nodes: Mapping) -> Sequence:
    """The sequence that a node is the last model of.

    Arguments
    ---------
    node : Train or Merge
        With ``stages``.
    nodes : dict
        Name to Node.

    Returns
    -------
    Sequence

    Example
    -------
    >>> a = Train("a", "a", "expert", domains=("x",))
    >>> b = Train("b", "b", "expert", domains=("y",), start="a")
    >>> turn = dataclasses.replace(b, stages=("a", "b"))
    >>> sequence_of(turn, {"a": a, "b": turn})
    Sequence(start='original', models=('a', 'b'), domains=('x', 'y'))
    """
    trained = [newest(nodes[name], nodes) for name in node.stages]
    return Sequence(
        start=trained[0].start,
        models=tuple(node.stages),
        domains=tuple(one.domains[0] for one in trained),
    )


def newest(node: Union[Train, Merge], nodes: Mapping) -> Train:
    """The training that a model of a sequence has more than that before it.

    Arguments
    ---------
    node : Train or Merge
        A training, or a merge with a training among its members.
    nodes : dict
        Name to Node.

    Returns
    -------
    Train
        Of a merge, the last member that was trained.
    """
    if isinstance(node, Train):
        return node
    members = [nodes[name] for name in node.members]
    return [member for member in members if isinstance(member, Train)][-1]


def merged_in_turn(
    name: str,
    order: tuple,
    settings: Mapping,
    method,
    planned: Mapping,
    shown: Mapping,
) -> Iterator[Node]:
    """Nodes that are trained on one domain after the other, merged in between.

    Arguments
    ---------
    name : str
        The last model's.
    order : tuple of str
        The domains.
    settings : dict
        What all trainings have in common, with the ``start`` of the first.
    method : MergeMethod
        Merges the model so far, the first member, with the new expert.
    planned : dict
        Name to Node of all models above; equal trainings are shared.
    shown : dict
        How the last model is shown and tested.

    Yields
    ------
    Node
        Each training, then its merge.
    """
    common = dict(settings)
    start, stages = common.pop("start"), []
    hidden = {**shown, "row": False, "tests": ()}
    for position, domain in enumerate(order, start=1):
        found = {"start": start, "domains": (domain,), **common}
        same = [
            node.name
            for node in planned.values()
            if node.kind == "train"
            and {key: getattr(node, key) for key in found} == found
        ]
        expert = same[0] if same else f"{name}-expert-{position}"
        if not same:
            yield Train(expert, **found, **{**hidden, "title": expert})
        last = position == len(order)
        merged = name if last else f"{name}-{position}"
        stages.append(merged)
        how = {**hidden, "title": merged}
        if last:
            how = {**shown, "stages": tuple(stages) if len(stages) > 1 else ()}
        yield Merge(
            merged,
            method=copy.deepcopy(method),
            members=(start, expert),
            **how,
        )
        start = merged


def merged_by_stage(
    read: Callable, specification: Mapping, context, shown: Mapping
) -> Iterator[Node]:
    """Merges of the first expert, of the first two, and so on.

    Arguments
    ---------
    read : callable
        ``read(specification, context, shown)`` gives the node of one merge.
    specification : dict
        The entry, with ``stages``. Members that are not trained on a domain
        are in all merges.
    context : Context
        Where the entry stands.
    shown : dict
        How the last merge is shown and tested.

    Yields
    ------
    Node
        All merges; the last has the names of all as its ``stages``.

    Raises
    ------
    ValueError
        Where there is nothing to go through one after the other.
    """
    where = context.where("stages")
    given = {k: v for k, v in specification.items() if k != "stages"}
    if isinstance(given.get("of"), Mapping):
        raise ValueError(f"{where} needs models in `of`, not runs.")
    if not isinstance(given.get("weights", {}), Mapping):
        raise ValueError(
            f"{where}: `weights` must name the models that they belong to, "
            "since there are fewer models in the first stages."
        )
    members = context.names(given.get("of") or [])
    experts = [m for m in members if _one_domain(context.planned.get(m))]
    if len(experts) < 2:
        raise ValueError(
            f"{where}: expected two models or more in `of` that are each "
            f"trained on one domain, and found {', '.join(experts) or 'none'}."
        )
    stages = []
    for number in range(1, len(experts) + 1):
        last = number == len(experts)
        name = context.name if last else f"{context.name}-{number}"
        left_out = experts[number:]
        part = {**given, "of": [m for m in members if m not in left_out]}
        if "weights" in given:
            part["weights"] = {
                m: w for m, w in given["weights"].items() if m not in left_out
            }
        hidden = {**shown, "title": name, "row": False, "tests": ()}
        [node] = read(
            part,
            dataclasses.replace(context, name=name),
            shown if last else hidden,
        )
        stages.append(name)
        yield dataclasses.replace(node, stages=tuple(stages)) if last else node


def _one_domain(node):
    """Whether a model is trained on a single domain."""
    return node is not None and node.kind == "train" and len(node.domains) == 1
