"""Permutations that are learned by the loss.

What lies near in weights need not compute alike: a map that minimises the
distance between two models can leave their mean worse than none at all. Here
the loss of the mean chooses the map. Each step of a *learner* says which mean
to look at, and takes the gradient of the loss there; whoever drives it
(``speechbrain_merge.brain.matching``) has the data.

``StraightThrough`` keeps a permutation in each step, ``SinkhornRebasin`` makes
it soft. Both count labelled batches like a training; budgets have to.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from typing import Optional

from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_merge.methods.transport.sinkhorn import SinkhornRebasin
from speechbrain_merge.methods.transport.straight_through import StraightThrough

LEARNERS = {
    "straight_through": StraightThrough,
    "sinkhorn": SinkhornRebasin,
}


def check_learning(learning: Optional[Mapping]) -> dict:
    """The options of learning, with defaults, checked.

    Arguments
    ---------
    learning : dict, optional
        ``learner`` ("straight_through" or "sinkhorn"), ``steps``,
        ``learning_rate``, ``share``, ``start`` ("weights", "activations" or
        "identity": the map to start from), ``check_every`` (steps between two
        looks at the selection set, which chooses the map), ``batch_size``
        (null: the recipe's of validation) and ``seed``.

    Returns
    -------
    dict

    Example
    -------
    >>> check_learning({"steps": 100})["learner"]
    'straight_through'
    """
    known = {
        "learner": "straight_through",
        "steps": 300,
        "learning_rate": 1e-3,
        "share": 0.5,
        "start": "activations",
        "check_every": 50,
        "batch_size": None,
        "seed": 0,
    }
    unknown = set(learning or {}) - set(known)
    if unknown:
        raise ValueError(
            f"`learning` has {', '.join(sorted(map(str, unknown)))}; expected "
            f"any of {', '.join(known)}."
        )
    known.update(learning or {})
    check_choice(known["learner"], "learner", tuple(LEARNERS))
    check_choice(
        known["start"], "start", ("weights", "activations", "identity")
    )
    check_whole(known["steps"], "steps", at_least=1)
    check_whole(known["check_every"], "check_every", at_least=1)
    check_whole(known["seed"], "seed")
    if known["batch_size"] is not None:
        check_whole(known["batch_size"], "batch_size", at_least=1)
    check_number(known["learning_rate"], "learning_rate", above=0)
    check_number(known["share"], "share", at_least=0, at_most=1)
    return known
