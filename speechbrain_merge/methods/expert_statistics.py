"""Statistics that data-driven methods need of each expert, and where to look.

Fisher merging and RegMean weigh experts by what a pass over data says of them
(``speechbrain_merge.brain.statistics`` makes that pass), as optimal transport
does by activations. A method takes the outcome as one source an expert: files,
or mappings from names to tensors, in the order of the experts or by their
labels.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.expert_statistics import open_statistics
>>> found = open_statistics([{"w": torch.ones(1)}], ["digits"], "fisher")
>>> found[0]["w"]
tensor([1.])

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Any

from speechbrain_merge.weights import Weights, open_weights


def check_statistics(statistics: Any) -> None:
    """Checks the form of the statistics when a method is made.

    Arguments
    ---------
    statistics : list, dict or None
        One source an expert, in order, or by label.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if statistics is not None and not isinstance(
        statistics, (list, tuple, dict)
    ):
        raise ValueError(
            "`statistics` must be a list with one file or mapping for each "
            "expert, in their order, or a mapping from their labels to such; "
            f"got {type(statistics).__name__}."
        )


def open_statistics(
    statistics: Any, labels: list[str], method: str
) -> list[Weights]:
    """Opens the statistics of each expert.

    Arguments
    ---------
    statistics : list, dict or None
        As the method was given them.
    labels : list of str
        The experts' labels, in their order.
    method : str
        The method's name, for errors.

    Returns
    -------
    opened : list of Weights
        In the order of the experts.

    Raises
    ------
    ValueError
        When there is none, or not one for each expert.
    """
    if statistics is None:
        raise ValueError(
            f"Merge method '{method}' needs statistics of each expert over "
            "data: give `statistics`, or let `collect_statistics` of "
            "speechbrain_merge.brain.statistics collect them."
        )
    if isinstance(statistics, dict):
        missing = [label for label in labels if label not in statistics]
        if missing:
            raise ValueError(
                f"Merge method '{method}' has no statistics of the experts "
                f"{missing}; it has those of {sorted(statistics)}."
            )
        statistics = [statistics[label] for label in labels]
    if len(statistics) != len(labels):
        raise ValueError(
            f"{len(statistics)} statistics were given for {len(labels)} "
            "experts: give one for each, in their order."
        )
    opened = [open_weights(source) for source in statistics]
    for each in opened:
        for name in each:
            if each.dtype(name).is_complex:
                raise ValueError(
                    f"{each.label}: '{name}' is complex, which no statistics "
                    "are. Collect them again."
                )
    return opened


def check_names(opened: list[Weights], experts: list[Weights]) -> None:
    """Raises a ValueError unless the statistics are those of these models.

    Arguments
    ---------
    opened : list of Weights
        The statistics.
    experts : list of Weights
        The models.
    """
    for statistics in opened:
        if not set(statistics.names()) & set(experts[0].names()):
            raise ValueError(
                f"{statistics.label} has statistics of none of the experts' "
                f"tensors. It has {statistics.names()[:3]}, the experts have "
                f"{experts[0].names()[:3]}."
            )
        if set(statistics.names()) != set(opened[0].names()):
            odd = set(statistics.names()) ^ set(opened[0].names())
            raise ValueError(
                f"{statistics.label} and {opened[0].label} have statistics of "
                f"different tensors, e.g. {sorted(odd)[:3]}."
            )
