"""First passes over the whole model, for TIES and methods like it.

Each reads the experts and the base a tensor at a time, on the threads that the
method was started with, and keeps a handful of numbers.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from typing import Any, Callable, Optional

import torch

from speechbrain_merge.methods.election import count_votes
from speechbrain_merge.methods.pieces import BLOCK, PIECE, walk
from speechbrain_merge.methods.task_vectors import (
    flat_task_vectors,
    merged_names,
    precision,
)
from speechbrain_merge.methods.thresholds import at_least, order_statistics
from speechbrain_merge.weights import Weights

# Takes name, slice and the task vectors there; gives them changed
Change = Callable[[str, slice, list[torch.Tensor]], list[torch.Tensor]]


def count_entries(weights: Weights, names: list[str]) -> int:
    """How many numbers the named tensors have.

    Arguments
    ---------
    weights : Weights
        Open mapping.
    names : list of str
        The tensors.

    Returns
    -------
    number : int
    """
    return sum(math.prod(weights.shape(name)) for name in names)


def read_pieces(
    method: Any,
    experts: list[Weights],
    base: Weights,
    use: Callable[[str, slice, list[torch.Tensor]], Any],
    what: str,
    sample: bool = False,
    step: int = PIECE,
) -> None:
    """Goes through the task vectors of a whole model, piece by piece.

    Arguments
    ---------
    method : MergeMethod
        On whose threads, and under whose name, the models are read.
    experts : list of Weights
        Open mappings.
    base : Weights
        Open mapping.
    use : callable
        Takes the name of a tensor, the slice that is looked at, and the task
        vectors there. Called from several threads.
    what : str
        What the progress bar says.
    sample : bool
        Whether the short beginnings of the pieces are enough.
    step : int
        How many entries a piece has.
    """

    def read_tensor(name):
        flat = [expert[name].reshape(-1) for expert in experts]
        anchor = base[name].reshape(-1)
        for where in walk([*flat, anchor], sample, step):
            use(name, where, flat_task_vectors(flat, anchor, where))

    method.each(read_tensor, merged_names(experts), f"{method.name}: {what}")


def model_statistics(
    method: Any,
    experts: list[Weights],
    base: Weights,
    change: Change,
    ranks: list[int],
    signed: bool = True,
    step: int = PIECE,
) -> list[list[float]]:
    """Order statistics of each expert's values over the whole model.

    Arguments
    ---------
    method : MergeMethod
        On whose threads, and under whose name, the models are read.
    experts : list of Weights
        Open mappings.
    base : Weights
        Open mapping.
    change : callable
        Takes name, slice and the task vectors there; gives the values to be
        ranked, one tensor an expert.
    ranks : list of int
        1 is the largest.
    signed : bool
        Whether values may be negative.
    step : int
        How many entries ``change`` gets at once.

    Returns
    -------
    statistics : list of list of float
        By expert, then by rank.
    """
    names = merged_names(experts)
    rows = range(len(experts))

    def read(see, sample):
        def use(name, where, vectors):
            for row, values in enumerate(change(name, where, vectors)):
                see(row, values)

        what = "sample" if sample else "first pass"
        size = PIECE if sample else step
        read_pieces(method, experts, base, use, what, sample, size)

    found = order_statistics(
        read,
        [(row, rank) for row in rows for rank in ranks],
        count_entries(experts[0], names),
        precision(experts[0], names),
        signed,
    )
    return [found[row * len(ranks) :][: len(ranks)] for row in rows]


def model_thresholds(
    method: Any,
    experts: list[Weights],
    base: Weights,
    density: float,
    change: Optional[Change] = None,
) -> list[float]:
    """The magnitude that the largest share of each task vector reaches.

    Arguments
    ---------
    method : MergeMethod
        On whose threads, and under whose name, the models are read.
    experts : list of Weights
        Open mappings.
    base : Weights
        Open mapping.
    density : float
        The share, below 1.
    change : callable, optional
        Takes name, slice and the task vectors there; gives them as they are to
        be counted, e.g. with some entries dropped.

    Returns
    -------
    thresholds : list of float
        One an expert: ``int(density · n) + 1`` entries have at least this
        magnitude, as in the authors' TIES.
    """
    number = count_entries(experts[0], merged_names(experts))
    if number == 0:
        return [0.0] * len(experts)

    def magnitudes(name, where, vectors):
        if change is not None:
            vectors = change(name, where, vectors)
        return [vector.abs_() for vector in vectors]

    rank = int(density * number) + 1
    found = model_statistics(
        method,
        experts,
        base,
        magnitudes,
        [rank],
        signed=False,
        step=BLOCK if change is None else PIECE,
    )
    return [values[0] for values in found]


def majority_sign(
    method: Any,
    experts: list[Weights],
    base: Weights,
    thresholds: list[float],
    change: Optional[Change] = None,
    weigh: Optional[Callable[[str], Optional[list[float]]]] = None,
) -> int:
    """The sign that more entries of the whole model elect.

    Arguments
    ---------
    method : MergeMethod
        On whose threads, and under whose name, the models are read.
    experts : list of Weights
        Open mappings.
    base : Weights
        Open mapping.
    thresholds : list of float
        The magnitude that an entry must have to take part, by expert.
    change : callable, optional
        As for ``model_thresholds``.
    weigh : callable, optional
        Takes the name of a tensor; gives what each expert's votes in it are
        multiplied by.

    Returns
    -------
    sign : int
        1 or -1.
    """
    balances = []

    def use(name, where, vectors):
        if change is not None:
            vectors = change(name, where, vectors)
        trimmed = list(map(at_least, vectors, thresholds))
        weights = None if weigh is None else weigh(name)
        # a list may be appended to from several threads
        balances.append(int(count_votes(trimmed, weights).sign_().sum()))

    step = BLOCK if change is None else PIECE
    read_pieces(method, experts, base, use, "majority sign", step=step)
    return 1 if sum(balances) > 0 else -1
