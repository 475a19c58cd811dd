"""Weights for the checkpoints of one training that act as a decay of its rate.

A merge of the last checkpoints of a training is what the training would have
come to under a smaller learning rate: the step from one checkpoint to the next
counts with the total weight of all checkpoints after it. So any decay of the
learning rate has its weights, and the decay can be chosen after the training
(Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
LLM Pre-training", arXiv 2507.17634).

Let ``θ_n … θ_{n+k}`` be the checkpoints and ``1 ≥ w_1 ≥ … ≥ w_k ≥ 0`` the decay
on the way from each to the next, relative to the learning rate that was used.
Then::

    θ_n + Σ_{j=1..k} w_j (θ_{n+j} − θ_{n+j−1}) = Σ_{j=0..k} c_j θ_{n+j}
    c_0 = 1 − w_1,   c_j = w_j − w_{j+1},   c_k = w_k

This is exact for the updates as they were. A training with the smaller rate
would have computed later gradients at other weights, so that the two differ by
what the loss is curved on the way.

A decay by name reaches zero where the next checkpoint would be, with
``t = j / (k + 1)``:

=======================  =====================  ==============================
name                     ``w_j``                weights
=======================  =====================  ==============================
``linear``               ``1 − t``              all equal: the mean
``cosine``               ``(1 + cos πt) / 2``   largest in the middle
``inverse_square_root``  ``1 − √t``             largest for the oldest
=======================  =====================  ==============================

The last one is the decay that is known as 1-sqrt (Hägele et al., arXiv
2405.18392). It is what we take the paper's "inverse square root decay" for.

Example
-------
>>> from speechbrain_merge.methods import Average, trajectory_weights
>>> trajectory_weights("linear", 4)
[0.25, 0.25, 0.25, 0.25]
>>> [round(weight, 3) for weight in trajectory_weights("cosine", 4)]
[0.146, 0.354, 0.354, 0.146]
>>> import torch
>>> path = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 2.0, 3.0)]
>>> Average("inverse_square_root")(path)
{'w': tensor([0.9269])}

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import Union

DECAYS = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "inverse_square_root": lambda t: 1 - math.sqrt(t),
}
"""Name of a decay to ``w`` as a function of ``t``, which goes from 0 to 1."""


def trajectory_weights(
    shape: Union[str, Sequence[float]], number: int
) -> list[float]:
    """The weights of the last checkpoints of a training that equal a decay.

    Arguments
    ---------
    shape : str or list of float
        The decay: ``"linear"``, ``"cosine"`` or ``"inverse_square_root"``, or
        the ``w_1 … w_k`` themselves.
    number : int
        How many checkpoints there are, ``k + 1``.

    Returns
    -------
    weights : list of float
        ``c_0 … c_k``, the oldest checkpoint's first. None is negative, and
        they sum to one.

    Raises
    ------
    ValueError
        For an unknown name, a decay that increases or leaves [0, 1], or one of
        another length than ``number − 1``.

    Example
    -------
    >>> trajectory_weights([1.0, 0.75, 0.25], 4)
    [0.0, 0.25, 0.5, 0.25]
    >>> trajectory_weights("cosine", 1)
    [1.0]
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"`number` is {number!r}: expected 1 or more.")
    if isinstance(shape, str):
        check_shape(shape)
        decay = [DECAYS[shape](Fraction(j, number)) for j in range(1, number)]
    else:
        decay = _checked(shape, number)
    # w_0 is the learning rate as it was; after the last one nothing follows
    decay = [1, *decay, 0]
    return [float(decay[j] - decay[j + 1]) for j in range(number)]


def check_shape(shape: str) -> None:
    """Raises where a decay of this name is not known.

    Arguments
    ---------
    shape : str
        Its name.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    if shape not in DECAYS:
        raise ValueError(
            f"there is no decay '{shape}': expected one of {', '.join(DECAYS)}."
        )


def _checked(decay, number):
    """A decay that is given by its values."""
    decay = list(decay)
    numbers = [
        isinstance(w, Real) and not isinstance(w, bool) and 0 <= w <= 1
        for w in decay
    ]
    if not all(numbers) or decay != sorted(decay, reverse=True):
        raise ValueError(
            f"`shape` is {decay}: expected numbers from 1 down to 0, none "
            "larger than the one before it."
        )
    if len(decay) != number - 1:
        raise ValueError(
            f"`shape` has {len(decay)} values for {number} checkpoints: "
            f"expected {number - 1}, one for each step between them."
        )
    return decay
