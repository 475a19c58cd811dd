"""Whether models have a common start, seen from their weights alone.

Fine-tuning turns a matrix a little. Two matrices that were initialised at random
and apart from each other stand at right angles: their cosine is 0 within
1/√n for n entries, and the mean of the two is a model of nothing. A fresh head
on one and the same pretrained encoder is the common case, since its layers fit
and its head does not. So the matrices outside the layers are looked at: heads,
token embeddings, and what a recipe puts between an encoder and a head.

Cosines that were measured with the recipe of the tests (two epochs, four
domains, a high learning rate of 0.02): experts of one start 0.49 to 0.91 with
each other, 0.45 to 0.69 with their start. Of different starts: −0.10 to −0.05
below the head. Heads on a tiny encoder learn the same words and are drawn
together: 0.20 to 0.32. Large heads barely are. `DIFFERENT` lies below
all that a common start gave. Heads that have become alike, whatever they began
as, are let pass.

Example
-------
>>> from speechbrain_merge.weights import open_weights
>>> base = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
>>> other = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
>>> tuned = open_weights({"ctc_lin.weight": base + 0.5 * other})
>>> fresh = open_weights({"ctc_lin.weight": other})
>>> first = open_weights({"ctc_lin.weight": base})
>>> [row.name for row in strangers(first, tuned)]
[]
>>> [row.name for row in strangers(first, fresh)]
['ctc_lin.weight']

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import dataclass
from typing import Callable, Optional

import torch

from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.parts import part

DIFFERENT = 0.15
"""A cosine below this is that of two starts."""

SMALLEST = 100
"""Matrices with fewer entries say nothing: chance alone gives 1/√100 = 0.1."""

# More entries say nothing more
_LARGEST = 1 << 20
_ROLES = ("output", "embedding", "feed_forward", "other")


@dataclass(frozen=True)
class Stranger:
    """A matrix that two models do not have from a common start.

    Arguments
    ---------
    name : str
        Of the tensor.
    cosine : float
        Between the two.
    """

    name: str
    cosine: float


def strangers(
    first: Weights, second: Weights, chosen: Optional[Callable] = None
) -> list[Stranger]:
    """The matrices outside the layers that show no common start.

    Arguments
    ---------
    first, second : Weights
        Two open models.
    chosen : callable, optional
        ``chosen(name) -> bool``: which tensors count.

    Returns
    -------
    found : list of Stranger
        In the order of the names.
    """
    found = []
    for name in first.names():
        if (
            name in second
            and first.shape(name) == second.shape(name)
            and name not in first.tied
            and is_telling(name, first)
            and (chosen is None or chosen(name))
        ):
            cosine = _cosine(first[name], second[name])
            if cosine is not None and cosine < DIFFERENT:
                found.append(Stranger(name, cosine))
    return found


def is_telling(name: str, weights: Weights) -> bool:
    """Whether a tensor's values tell where a model comes from.

    Arguments
    ---------
    name : str
        Of the tensor.
    weights : Weights
        The model.

    Returns
    -------
    bool
        True for matrices outside the layers that are learned from a random
        start: heads, embeddings of tokens, layers of their own.
    """
    where, shape = part(name), weights.shape(name)
    own = name.rpartition(".")[2]
    return (
        where.layer is None
        and where.role in _ROLES
        and where.projection != "position"
        and len(shape) >= 2
        and torch.Size(shape).numel() >= SMALLEST
        and weights.dtype(name).is_floating_point
        # running statistics follow the data, whatever a model began as
        and not own.startswith(("_", "running_", "moving_"))
    )


def _cosine(first, second):
    step = first.numel() // _LARGEST + 1
    pair = [
        tensor.reshape(-1)[::step].to(torch.float64)
        for tensor in (first, second)
    ]
    length = pair[0].norm() * pair[1].norm()
    if not torch.isfinite(length) or length == 0:
        return None
    return ((pair[0] @ pair[1]) / length).item()
