"""Schedules of the learning rate by name, so that a YAML can leave it open.

A study fine-tunes in a slanted triangle what was trained with a linear decay,
with one and the same YAML::

    lr_annealing: !apply:speechbrain_merge.training.learning_rate_schedule
        kind: !ref <schedule>
        lr: !ref <lr>
        steps: !ref <lr_decay_steps>
        warmup_steps: !ref <warmup_steps>

A recipe that knows its schedule says ``!new:`` and its class instead.

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Union

from speechbrain.nnet.schedulers import LinearWarmupScheduler
from speechbrain_merge.training.slanted_triangular import (
    SlantedTriangularScheduler,
)


def learning_rate_schedule(
    kind: str,
    lr: float,
    steps: int,
    warmup_steps: int = 0,
    cut_fraction: float = 0.1,
    ratio: float = 32,
) -> Union[LinearWarmupScheduler, SlantedTriangularScheduler]:
    """A schedule that is called with the optimizer before each step.

    Arguments
    ---------
    kind : str
        "linear": up to `lr` and down to 0. "slanted": the slanted triangle of
        ULMFiT and of the Average of Domain Experts.
    lr : float
        The peak of "linear"; of "slanted" it is the optimizer's own.
    steps : int
        Where the rate is lowest.
    warmup_steps : int
        Steps up to the peak of "linear".
    cut_fraction : float
        Steps up to the peak of "slanted", as a part of all.
    ratio : float
        The peak of "slanted" over its lowest rate.

    Returns
    -------
    LinearWarmupScheduler or SlantedTriangularScheduler

    Raises
    ------
    ValueError
        When there is no such schedule.

    Example
    -------
    >>> learning_rate_schedule("slanted", lr=1.0, steps=10).cut
    1
    >>> learning_rate_schedule("cosine", lr=1.0, steps=10)
    Traceback (most recent call last):
    ...
    ValueError: `schedule` is 'cosine'; expected 'linear' or 'slanted'.
    """
    if kind == "linear":
        return LinearWarmupScheduler(lr, warmup_steps, steps)
    if kind == "slanted":
        return SlantedTriangularScheduler(steps, cut_fraction, ratio)
    raise ValueError(f"`schedule` is {kind!r}; expected 'linear' or 'slanted'.")
