"""Groups of one optimizer whose rates keep their ratios under any scheduler.

SpeechBrain's schedulers write one rate into all groups of an optimizer, and
some read the rate of the first group before. Here each group has a ``ratio`` to
the full rate. The rate that a scheduler wrote is taken for the full one, and the
one that it reads is the full one too, as the first group has a ratio of 1.

Example
-------
>>> groups = [
...     {"params": [torch.nn.Parameter(torch.ones(1))], "ratio": ratio}
...     for ratio in (2.0, 1.0)
... ]
>>> optimizer = torch.optim.SGD(groups, lr=0.1)
>>> put_full_rate_first(optimizer, 0.1)
>>> keep_ratios(optimizer)
>>> [group["lr"] for group in optimizer.param_groups]
[0.1, 0.2]

Authors
 * The speechbrain_merge authors 2026
"""

import math

import torch


def full_rate_first(group: dict) -> tuple:
    """Sorts groups: a ratio of 1, then from the highest to the lowest."""
    full = math.isclose(group["ratio"], 1.0, rel_tol=1e-9)
    return not full, -group["ratio"]


def put_full_rate_first(optimizer: torch.optim.Optimizer, rate: float):
    """Makes the first group one with the full rate.

    ``ReduceLROnPlateau`` reads the rate of the first group, and writes a
    multiple of it into all groups as the full rate. Were the first group's
    ratio another than 1, the rate would be multiplied by it at each reading.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        Its groups have a ``ratio`` each. Where none has a ratio of 1, it gets
        one more group, without parameters.
    rate : float
        The full rate.
    """
    groups = optimizer.param_groups
    if all(full_rate_first(group)[0] for group in groups):
        optimizer.add_param_group(
            {"params": [], "name": "full rate", "ratio": 1.0, "lr": rate}
        )
    groups.sort(key=full_rate_first)


def check_names(optimizer: torch.optim.Optimizer, state: dict):
    """Refuses the state of an optimizer with other groups.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        Its groups have a ``name`` each.
    state : dict
        What its ``load_state_dict`` is given.

    Raises
    ------
    ValueError
        When the names of the groups differ.
    """
    own = [group["name"] for group in optimizer.param_groups]
    saved = [group.get("name") for group in state["param_groups"]]
    if own != saved:
        raise ValueError(
            f"The saved optimizer has the groups {saved}, and this one has "
            f"{own}: their states do not belong together. Set `decay`, "
            "`others` and what is frozen as they were in the saved training, "
            "or start without the saved optimizer."
        )


def keep_ratios(optimizer: torch.optim.Optimizer, *arguments):
    """Makes one rate that was written into all groups the top layer's.

    Groups of different ratios never have equal rates but by such a writer,
    so that this changes nothing where a schedule keeps the ratios.
    """
    groups = optimizer.param_groups
    if len({group["ratio"] for group in groups}) == 1:
        return
    if len({float(group["lr"]) for group in groups}) == 1:
        for group in groups:
            group["lr"] = group["lr"] * group["ratio"]
