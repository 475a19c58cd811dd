"""Whether models have a common start, seen from their weights alone.

Fine-tuning turns a matrix a little. Two matrices that were initialised at random
and apart from each other stand at right angles: their cosine is 0 within
1/√n for n entries, and the mean of the two is a model of nothing. A fresh head
on one and the same pretrained encoder is the common case, since its layers fit
and its head does not. So the matrices outside the layers are looked at: heads,
token embeddings, and what a recipe puts between an encoder and a head. A model
that has none of them, such as a bare encoder, is known by its layers: it is of
another start where more than three quarters of the largest matrices are.

Cosines that were measured with the recipe of the tests (two epochs, four
domains, a high learning rate of 0.02): experts of one start 0.49 to 0.91 with
each other, 0.45 to 0.69 with their start. Of different starts: −0.10 to −0.05
below the head. Heads on a tiny encoder learn the same words and are drawn
together: 0.20 to 0.32. Large heads barely are. `DIFFERENT` lies below
all that a common start gave. Heads that have become alike, whatever they began
as, are let pass. Layers alone, of tiny encoders after 15 steps of Adam at 0.003
on noise: of one start 0.25 to 0.99 (Whisper, wav2vec2, Conformer), of different
starts −0.10 to 0.13.

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

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable, Optional

import torch

from speechbrain_merge.weights.adapters import UNFOLDABLE, factor_of
from speechbrain_merge.weights.mapped import release
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.parts import part

DIFFERENT = 0.15
"""A cosine below this is that of two starts."""

SMALLEST = 100
"""Matrices with fewer entries say nothing: chance alone gives 1/√100 = 0.1."""

# More entries say nothing more. They are taken in stretches: a merge waits
# while the pages of a file that they lie on are read.
_LARGEST = 1 << 17
_STRETCH = 1 << 10
_ROLES = ("output", "embedding", "feed_forward", "other")

_INSIDE = (
    "attention",
    "cross_attention",
    "feed_forward",
    "convolution",
    "other",
)
# So many matrices of the layers are read, the largest
_MOST = 16
_QUARTILE = 0.75
_ADAPTER = re.compile(
    "|".join(["adapter", *(p for p, _ in UNFOLDABLE.values())])
)


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
    """The matrices that show no common start.

    Those outside the layers are looked at; where there are none, the largest
    of the layers.

    Arguments
    ---------
    first, second : Weights
        Two open models.
    chosen : callable, optional
        ``chosen(name) -> bool``: which tensors count.

    Returns
    -------
    found : list of Stranger
        In the order of the names, or of the sizes of matrices of layers.
    """
    names = [
        name
        for name in first.names()
        if name in second
        and first.shape(name) == second.shape(name)
        and name not in first.tied
        and (chosen is None or chosen(name))
    ]
    outside = [name for name in names if is_telling(name, first)]
    found = _compared(first, second, outside)
    if not found:
        inside = [name for name in names if _is_layers_own(name, first)]
        inside.sort(key=lambda name: -torch.Size(first.shape(name)).numel())
        found = _compared(first, second, inside[:_MOST])
        # What began with zeros is as training made it: a few may differ
        cosines = sorted(row.cosine for row in found)
        if found and cosines[round(_QUARTILE * len(found) - 0.5)] >= DIFFERENT:
            return []
    return [row for row in found if row.cosine < DIFFERENT]


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
    where = part(name)
    return (
        where.layer is None
        and where.role in _ROLES
        and where.projection != "position"
        and _is_matrix(name, weights)
    )


def _is_layers_own(name, weights):
    """Whether a matrix is one of a layer, and of no adapter in it.

    The factors of adapters of one base begin at random, and apart.
    """
    where = part(name)
    return (
        where.layer is not None
        and where.role in _INSIDE
        and where.projection != "position"
        and factor_of(name) is None
        and _ADAPTER.search(name) is None
        and _is_matrix(name, weights)
    )


def _is_matrix(name, weights):
    """Whether a tensor is a learned matrix with entries enough."""
    shape = weights.shape(name)
    own = name.rpartition(".")[2]
    return (
        len(shape) >= 2
        and torch.Size(shape).numel() >= SMALLEST
        and weights.dtype(name).is_floating_point
        # running statistics follow the data, whatever a model began as
        and not own.startswith(("_", "running_", "moving_"))
    )


def _compared(first, second, names: Iterable) -> list[Stranger]:
    """The matrices that have a direction in both models, with the cosine."""
    found = []
    for name in names:
        pair = first[name], second[name]
        cosine = _cosine(*pair)
        for tensor in pair:
            release(tensor)
        if cosine is not None:
            found.append(Stranger(name, cosine))
    return found


def _cosine(first, second):
    pair = [_sample(tensor).to(torch.float64) for tensor in (first, second)]
    length = pair[0].norm() * pair[1].norm()
    if not torch.isfinite(length) or length == 0:
        return None
    return ((pair[0] @ pair[1]) / length).item()


def _sample(tensor):
    """All entries of a tensor, or stretches from its beginning to its end."""
    flat, step = tensor.reshape(-1), tensor.numel() // _LARGEST
    if step <= 1:
        return flat
    whole = flat.numel() // (step * _STRETCH) * step * _STRETCH
    return flat[:whole].view(-1, step * _STRETCH)[:, :_STRETCH].reshape(-1)
