"""The schedules of the learning rate that a run of this recipe may have.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain.nnet.schedulers import LinearWarmupScheduler

from speechbrain_merge.training import SlantedTriangularScheduler


def learning_rate_schedule(
    kind, lr, steps, warmup_steps=0, cut_fraction=0.1, ratio=32
):
    """A schedule by its name, called with the optimizer before each step.

    Arguments
    ---------
    kind : str
        "linear": up to `lr` and down to 0. "slanted": the slanted triangle of
        ULMFiT and of the Average of Domain Experts.
    lr : float
        The peak of "linear"; of "slanted" it is the optimizer's own.
    steps : int
        Where the rate would be lowest.
    warmup_steps : int
        Up to the peak of "linear".
    cut_fraction : float
        Up to the peak of "slanted", as a part of the steps.
    ratio : float
        The peak of "slanted" over its lowest rate.

    Returns
    -------
    LinearWarmupScheduler or SlantedTriangularScheduler

    Example
    -------
    >>> learning_rate_schedule("slanted", lr=1.0, steps=10).cut
    1
    """
    if kind == "linear":
        return LinearWarmupScheduler(lr, warmup_steps, steps)
    if kind == "slanted":
        return SlantedTriangularScheduler(steps, cut_fraction, ratio)
    raise ValueError(f"schedule is {kind!r}, expected 'linear' or 'slanted'.")
