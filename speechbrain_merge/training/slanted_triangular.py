"""The slanted triangular learning rate: quickly up, slowly down.

A short, steep rise lets fine-tuning find the region of the new task; the long
decline refines it there (ULMFiT: Howard & Ruder, 2018). Of N steps, with

    cut = floor(N * cut_fraction)
    p   = t / cut                                         for t < cut
    p   = 1 - (t - cut) / (cut * (1 / cut_fraction - 1))  from there on

step t has the rate ``peak * (1 + p * (ratio - 1)) / ratio``: from peak / ratio
up to the peak, and back to peak / ratio.

The peak of each group of the optimizer is the rate that the group has when
the schedule first meets it, so that layer-wise decay keeps its ratios, and it
is never read again, so that nothing drifts. In a Brain the schedule is called
before the step that it is meant for::

    def on_fit_batch_start(self, batch, should_step):
        if should_step:
            self.hparams.lr_annealing(self.optimizer)

Example
-------
>>> weight = torch.nn.Parameter(torch.zeros(1))
>>> optimizer = torch.optim.SGD([weight], lr=3.2)
>>> schedule = SlantedTriangularScheduler(20, cut_fraction=0.1, ratio=32)
>>> [round(schedule(optimizer)[1], 3) for step in range(4)]
[0.1, 1.65, 3.2, 3.028]

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
from numbers import Integral, Real

import torch

from speechbrain.utils import checkpoints
from speechbrain_merge.pool.meta import check_saved_with, saved_with
from speechbrain_merge.records.checked import (
    fields,
    listed,
    number,
    optional,
    whole,
)
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.written_check import read_written, with_check

_state = fields(
    {
        "n_steps": whole(0),
        "peaks": optional(listed(number(0))),
        "current_lr": optional(number(0)),
    },
    {"saved": optional(number())},
)
"""What a checkpoint keeps of a schedule."""


@checkpoints.register_checkpoint_hooks
class SlantedTriangularScheduler:
    """Sets the rates of an optimizer for its next step.

    One schedule belongs to one optimizer, and to the recoverables of the
    checkpointer: it counts the steps and knows the peaks.

    Arguments
    ---------
    num_training_steps : int
        Steps of the optimizer in the whole training, N. After them the rate
        stays at the peak over the ratio. It is there a little earlier when
        N * cut_fraction is not whole, since the formula rounds it down.
    cut_fraction : float
        Where the peak is, as a fraction of the steps.
    ratio : float
        The peak over the lowest rate.

    Raises
    ------
    ValueError
        When an argument is out of range, or the rise has less than one step.

    Example
    -------
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> groups = [{"params": [weight], "lr": 0.9}]
    >>> optimizer = torch.optim.SGD(groups, lr=1.0)
    >>> schedule = SlantedTriangularScheduler(10, cut_fraction=0.5, ratio=3)
    >>> before, after = schedule(optimizer)
    >>> optimizer.param_groups[0]["lr"] == 0.9 / 3
    True
    """

    def __init__(self, num_training_steps, cut_fraction=0.1, ratio=32):
        for name, value in {
            "num_training_steps": num_training_steps,
            "cut_fraction": cut_fraction,
            "ratio": ratio,
        }.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"`{name}` must be a number, got {value!r}.")
        if (
            not isinstance(num_training_steps, Integral)
            or num_training_steps < 2
        ):
            raise ValueError(
                "`num_training_steps` must be a whole number of at least 2, "
                f"got {num_training_steps}."
            )
        if not 0 < cut_fraction < 1:
            raise ValueError(
                f"`cut_fraction` must be between 0 and 1, got {cut_fraction}."
            )
        if not 1 <= ratio < math.inf:
            raise ValueError(f"`ratio` must be at least 1, got {ratio}.")
        # 0.29 * 100 is a little less than 29
        self.cut = math.floor(num_training_steps * cut_fraction + 1e-9)
        if self.cut < 1:
            raise ValueError(
                f"`cut_fraction` {cut_fraction} of {num_training_steps} steps "
                "leaves no step to rise in. Take a larger fraction, at least "
                f"{1 / num_training_steps:.3g}."
            )
        self.num_training_steps = num_training_steps
        self.cut_fraction = cut_fraction
        self.ratio = ratio
        self.n_steps = 0
        self.peaks = None
        self.current_lr = None

    def scale(self, step):
        """The rate of a step relative to the peak.

        Arguments
        ---------
        step : int
            Number of the step, from 0.

        Returns
        -------
        float
            Between 1 / ratio and 1.
        """
        if step < self.cut:
            height = step / self.cut
        else:
            decline = self.cut * (1 / self.cut_fraction - 1)
            # Below 0 the formula goes on, to rates that are negative
            height = max(0.0, 1 - (step - self.cut) / decline)
        return (1 + height * (self.ratio - 1)) / self.ratio

    def __call__(self, opt):
        """Sets the rates of the next step.

        Arguments
        ---------
        opt : torch.optim.Optimizer
            All of whose groups are set, each by its own peak.

        Returns
        -------
        current_lr : float
            The highest rate of a group before.
        lr : float
            The highest rate of a group now; also ``self.current_lr``.

        Raises
        ------
        ValueError
            When the optimizer has another number of groups than at first.
        """
        groups = opt.param_groups
        if self.peaks is None:
            self.peaks = [float(group["lr"]) for group in groups]
        if len(self.peaks) != len(groups):
            raise ValueError(
                f"The schedule began with an optimizer of {len(self.peaks)} "
                f"groups, and this one has {len(groups)}. Each optimizer "
                "needs a schedule of its own, and a training that goes on "
                "the groups that it began with."
            )
        before = max(float(group["lr"]) for group in groups)
        scale = self.scale(self.n_steps)
        for group, peak in zip(groups, self.peaks):
            if isinstance(group["lr"], torch.Tensor):
                # Kept in place by graphs that hold on to it
                group["lr"].fill_(peak * scale)
            else:
                group["lr"] = peak * scale
        self.n_steps += 1
        self.current_lr = max(self.peaks) * scale
        return before, self.current_lr

    @checkpoints.mark_as_saver
    def save(self, path):
        """Saves steps and peaks, as JSON, which keeps every digit."""
        state = {
            "n_steps": self.n_steps,
            "peaks": self.peaks,
            "current_lr": self.current_lr,
            "saved": saved_with(path),
        }
        write_whole(path, json.dumps(with_check(state)))

    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch=False):
        """Goes on where `save` was called."""
        del end_of_epoch  # the step is all that counts
        state = _state(read_written(path), str(path))
        check_saved_with(path, state.get("saved"))
        self.n_steps = state["n_steps"]
        self.peaks = state["peaks"]
        self.current_lr = state["current_lr"]
