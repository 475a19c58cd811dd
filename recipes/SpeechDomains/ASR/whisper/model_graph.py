"""The models of a study as a graph: which come of which.

An expert is trained from the original, an average is merged of experts, the next
round's experts are trained from that average. ``model_plan.py`` reads such a
graph from a YAML.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import difflib
from typing import Optional

from speechbrain_merge.methods import MergeMethod

ORIGINAL = "original"


@dataclasses.dataclass
class Model:
    """One model of a study.

    Arguments
    ---------
    name : str
        Of its run, its file and its folder.
    kind : str
        "original", "train", "merge" or "oracle".
    title : str
        Its name in tables and pictures.
    group : str
        What it is shown with.
    row : bool
        Whether it is shown.
    start : str, optional
        The model that its training starts from.
    domains : tuple of str
        The domains that it is trained on.
    settings : dict
        Of its training, other than all the study's experts have.
    method : MergeMethod, optional
        Merges its members.
    members : tuple of str
        The models that it is merged of.
    experts : dict
        Of an oracle: domain to the model that hears it; None to the model that
        hears all others.
    stages : tuple of str
        Of a sequence: the models after each domain.
    """

    name: str
    kind: str
    title: str
    group: str
    row: bool = True
    start: Optional[str] = None
    domains: tuple = ()
    settings: dict = dataclasses.field(default_factory=dict)
    method: Optional[MergeMethod] = None
    members: tuple = ()
    experts: dict = dataclasses.field(default_factory=dict)
    stages: tuple = ()

    @property
    def parents(self) -> tuple:
        """The models that have to be there before it."""
        several = [*self.members, *self.experts.values(), *self.stages]
        several = [self.start, *several] if self.start else several
        return tuple(n for n in dict.fromkeys(several) if n != self.name)


def with_ancestors(plan: list, only: Optional[list] = None) -> list:
    """Some models of a plan, and all that they come of.

    Arguments
    ---------
    plan : list of Model
        From ``model_plan.plan_models``.
    only : list of str, optional
        Names of the models wanted; default: all.

    Returns
    -------
    list of Model
        In the order of the plan. What is named is a row, and nothing else is.

    Example
    -------
    >>> start = Model(ORIGINAL, "original", ORIGINAL, "generalist")
    >>> a, b = (
    ...     Model(name, "train", name, "expert", start=ORIGINAL)
    ...     for name in "ab"
    ... )
    >>> [model.name for model in with_ancestors([start, a, b], ["b"])]
    ['original', 'b']
    """
    if only is None:
        return plan
    by_name = {model.name: model for model in plan}
    needed, waiting = {ORIGINAL}, list(only)
    for name in waiting:
        known(name, by_name, "`only`")
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += [p for p in by_name[name].parents if p not in needed]
    return [
        dataclasses.replace(model, row=model.name in {ORIGINAL, *only})
        for model in plan
        if model.name in needed
    ]


def trained_for(name: str, by_name: dict) -> list[str]:
    """The trainings that a model comes of, each once, itself included.

    Arguments
    ---------
    name : str
        The model.
    by_name : dict
        Name to Model.

    Returns
    -------
    list of str
    """
    found = {}
    waiting = [name]
    while waiting:
        model = by_name[waiting.pop()]
        if model.kind == "train":
            found[model.name] = None
        waiting += model.parents
    return sorted(found)


def known(name, planned, where):
    """The name of a model that is there; or an error that says which are.

    Arguments
    ---------
    name : str
        To be there.
    planned : dict
        Name to Model.
    where : str
        What asks for it.

    Returns
    -------
    str
    """
    if name not in planned:
        close = difflib.get_close_matches(name, planned, 1)
        hint = f"; is it '{close[0]}'?" if close else ""
        raise ValueError(
            f"{where}: no model '{name}' above it. There are "
            f"{', '.join(planned)}{hint}"
        )
    return name
