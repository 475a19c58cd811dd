"""DELLA: drop at random, but large changes less often.

Deep et al., "DELLA-Merging", 2024. Between pruning by magnitude (TIES) and at
random (DARE): the entries of each row of a task vector are ranked by
magnitude, the probability of being dropped falls linearly with the rank, and
what is kept is divided by its own probability of being kept. Then signs are
elected and those who agree averaged.

Rows are output channels: a matrix is ranked row by row, as in the authors'
code; a convolution's kernel, which that code cannot take, with all weights of
an output channel as one row; a vector is one row. ``window`` is the authors'
window size, the full width of the range of probabilities; mergekit's
``epsilon`` is half of it, and mergekit rescales to restore the sum of
magnitudes.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import DELLA
>>> base = {"w": torch.zeros(8)}
>>> expert = {"w": torch.arange(8.0)}
>>> DELLA(drop_rate=0.5, window=0.9, seed=1)([expert], base)
{'w': tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 7.2165, 7.3043, 7.3684])}

Authors
 * The speechbrain_merge authors 2026
"""

import torch

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.election import merge_elected
from speechbrain_merge.methods.parameters import (
    check_choice,
    check_number,
    check_whole,
)
from speechbrain_merge.methods.randomness import uniform
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import add_to_base, scaled_sum

# Rows are ranked together, so many at a time that they make up so many entries.
BLOCK = 1 << 18


@register("della")
class DELLA(MergeMethod):
    """``m_t ⊙ τ_t / (1 − p_t)``, ``p_t`` falling with the rank, then TIES.

    Arguments
    ---------
    drop_rate : float
        Mean probability of being dropped, in [0, 1).
    window : float
        The smallest entry of a row is dropped with probability
        ``drop_rate + window / 2``, the largest with ``drop_rate − window / 2``;
        both must lie between 0 and 1. With 0 this is DARE.
    combine : str
        ``"ties"`` elects a sign and averages over the experts that agree;
        ``"linear"`` adds the sparse task vectors up.
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``.
    seed : int
        The same seed drops the same entries, whatever the number of workers.

    Example
    -------
    >>> expert, base = {"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}
    >>> DELLA(drop_rate=0, window=0)([expert], base)
    {'w': tensor([3.])}
    """

    needs_base = True
    piecewise = True

    def __init__(
        self, drop_rate=0.3, window=0.14, combine="ties", scale=1.0, seed=0
    ):
        super().__init__()
        check_number(drop_rate, "drop_rate", at_least=0, below=1)
        check_number(window, "window", at_least=0, below=1)
        low, high = drop_rate - window / 2, drop_rate + window / 2
        if low < 0 or high >= 1:
            raise ValueError(
                "`drop_rate` ± `window` / 2 must lie between 0 and 1, got "
                f"{low:g} and {high:g}."
            )
        check_choice(combine, "combine", ("linear", "ties"))
        check_coefficient(scale, "scale")
        check_whole(seed, "seed")
        self.drop_rate, self.window, self.combine = drop_rate, window, combine
        self.scale, self.seed = scale, seed

    def merge_pieces(self, name, experts, base):
        """Prunes and combines one tensor, some rows at a time."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )
        height = base.shape[0] if base.dim() > 1 else 1
        width = max(base.numel() // max(height, 1), 1)

        def change(vectors, where):
            pruned = [
                self._prune(name, number, where, vector.view(-1, width))
                for number, vector in enumerate(vectors)
            ]
            return self._combine(pruned, scales).view(-1)

        step = max(1, BLOCK // width) * width
        return add_to_base(change, experts, base, step)

    def _prune(self, name, expert, where, vector):
        """Drops and rescales entries of some rows of one task vector."""
        kept = keep_probabilities(vector, self.drop_rate, self.window)
        draw = uniform(self.seed, expert, name, where).view(vector.shape)
        draw = draw.to(vector.device)
        return torch.where(draw < kept, vector / kept, 0.0)

    def _combine(self, vectors, scales):
        """Merges sparse task vectors."""
        if self.combine == "ties":
            return merge_elected(vectors, scales)
        return scaled_sum(vectors, scales)


def keep_probabilities(vector, drop_rate, window):
    """The probability with which each entry is kept, by its rank in its row.

    Entries of equal magnitude are ranked by position. A row of one entry has
    the mean probability.

    Arguments
    ---------
    vector : torch.Tensor
        Rows of a task vector, of shape (rows, entries).
    drop_rate : float
        Mean probability of being dropped.
    window : float
        Difference between the ends of a row.

    Returns
    -------
    probabilities : torch.Tensor
        Of the same shape and type.

    Example
    -------
    >>> keep_probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.2)
    tensor([[0.6000, 0.4000, 0.5000]])
    """
    width = vector.shape[1]
    if width == 1:
        return torch.full_like(vector, 1 - drop_rate)
    order = vector.abs().argsort(dim=1, stable=True)
    by_rank = torch.linspace(
        1 - drop_rate - window / 2,
        1 - drop_rate + window / 2,
        width,
        dtype=vector.dtype,
        device=vector.device,
    )
    probabilities = torch.empty_like(vector)
    return probabilities.scatter_(1, order, by_rank.expand(vector.shape))
