"""Sign election and disjoint merge: the second half of TIES.

Experts that move a weight in opposite directions cancel out in a sum. TIES
(Yadav et al., NeurIPS 2023) lets them vote: the sign of the sum of the task
vectors is elected, entry by entry, and only experts of that sign take part.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.election import merge_elected
>>> vectors = [torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 2.0])]
>>> merge_elected(vectors, [1.0, 1.0])
tensor([3., 2.])

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch


def count_votes(
    vectors: list[torch.Tensor], weights: Optional[list[float]] = None
) -> torch.Tensor:
    """The sum of task vectors, whose sign is elected.

    Arguments
    ---------
    vectors : list of torch.Tensor
        Sparse task vectors, of one shape.
    weights : list of float, optional
        One an expert: multiplies its vector.

    Returns
    -------
    votes : torch.Tensor
        A new tensor.
    """
    if weights is not None:
        vectors = [vector * weight for vector, weight in zip(vectors, weights)]
    votes = vectors[0].clone()
    for vector in vectors[1:]:
        votes += vector
    return votes


def merge_elected(
    vectors: list[torch.Tensor],
    scales: list[float],
    aggregate: str = "mean",
    tie: int = 1,
    weights: Optional[list[float]] = None,
) -> torch.Tensor:
    """Merges the task vectors whose sign was elected.

    Zeros do not take part, neither in the vote nor in the mean.

    Arguments
    ---------
    vectors : list of torch.Tensor
        Sparse task vectors, of one shape.
    scales : list of float
        One an expert: multiplies its vector after the vote.
    aggregate : str
        ``"mean"`` over those that take part, their ``"sum"``, or the one of
        ``"max"`` magnitude.
    tie : int
        The sign, 1 or -1, that wins where votes cancel exactly.
    weights : list of float, optional
        One an expert: multiplies its vector before the vote. The mean is
        divided by the sum of the weights of those that take part.

    Returns
    -------
    merged : torch.Tensor
        Zero where no expert takes part.
    """
    if weights is None:
        weights = [1.0] * len(vectors)
    else:
        vectors = [vector * weight for vector, weight in zip(vectors, weights)]
    # half a vote for the sign that wins where votes cancel
    sign = count_votes(vectors).sign_().add_(tie / 2).sign_()

    def elected(vector, scale, weight):
        """What takes part of one vector, and its share of the divisor."""
        # with the elected sign turned to plus, those that take part are positive
        part = (vector * sign).clamp_(min=0)
        taken = part.sign()
        if weight != 1:
            taken *= weight
        if scale != 1:
            part *= scale
        return part, taken

    merged, count = elected(vectors[0], scales[0], weights[0])
    for vector, scale, weight in zip(vectors[1:], scales[1:], weights[1:]):
        part, taken = elected(vector, scale, weight)
        count += taken
        if aggregate == "max":
            larger = part.abs() > merged.abs()
            merged = torch.where(larger, part, merged)
        else:
            merged += part
    if aggregate == "mean":
        # where nobody takes part, the numerator is zero as well
        if all(weight == 1 for weight in weights):
            merged /= count.clamp_(min=1)  # whole numbers
        else:
            merged /= count.masked_fill_(count == 0, 1)
    return merged.mul_(sign)
