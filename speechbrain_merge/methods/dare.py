"""DARE: drop most of a task vector at random, and rescale the rest.

Yu et al., "Language models are Super Mario", ICML 2024: fine-tuning is so
redundant that 90 % of its changes can be dropped, if the others are divided by
the share that is kept, which leaves the expectation as it was. Sparse task
vectors then collide less when they are added.

What the references disagree on: mergekit's ``rescale`` restores the sum of
magnitudes instead (the factor is then random), and its ``dare_ties`` adds up
the experts that agree where the authors and PEFT take their mean, which is
what ``combine="ties"`` does here.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import DARE
>>> base = {"w": torch.zeros(6)}
>>> DARE(drop_rate=0.5, seed=1)([{"w": torch.ones(6)}], base)
{'w': tensor([2., 0., 2., 2., 2., 0.])}

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
    check_switch,
    check_whole,
)
from speechbrain_merge.methods.pieces import pieces
from speechbrain_merge.methods.randomness import uniform
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import add_to_base, scaled_sum
from speechbrain_merge.methods.thresholds import at_least
from speechbrain_merge.methods.whole_model import (
    majority_sign,
    model_thresholds,
)


@register("dare")
class DARE(MergeMethod):
    """``θ_0 + Σ λ_t m_t ⊙ τ_t / (1 − p)``, ``m_t`` one with probability 1 − p.

    Arguments
    ---------
    drop_rate : float
        ``p``: share of entries dropped, in [0, 1).
    rescale : bool
        Whether to divide by ``1 − p``.
    combine : str
        ``"linear"`` adds the sparse task vectors up; ``"ties"`` elects a sign
        and averages over the experts that agree.
    density : float
        With ``combine="ties"``: share of the whole task vector that survives a
        trim by magnitude, after the drop (as the authors' code does; mergekit
        and PEFT do not trim, the default).
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``.
    seed : int
        The same seed drops the same entries, whatever the number of workers.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
    >>> DARE(drop_rate=0)(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([5.])}
    """

    needs_base = True
    piecewise = True

    def __init__(
        self,
        drop_rate=0.9,
        rescale=True,
        combine="linear",
        density=1.0,
        scale=1.0,
        seed=0,
    ):
        super().__init__()
        check_number(drop_rate, "drop_rate", at_least=0, below=1)
        check_switch(rescale, "rescale")
        check_choice(combine, "combine", ("linear", "ties"))
        check_number(density, "density", above=0, at_most=1)
        if combine == "linear" and density != 1:
            raise ValueError(
                "`density` trims before a vote: with `combine='linear'` it "
                f"must stay 1, got {density!r}. `drop_rate` says how much is "
                "dropped."
            )
        check_coefficient(scale, "scale")
        check_whole(seed, "seed")
        self.drop_rate, self.rescale = drop_rate, rescale
        self.combine, self.density = combine, density
        self.scale, self.seed = scale, seed
        # a vote may pass a NaN over, a sum cannot
        self.shows_faults = combine == "linear"

    def prepare(self, experts, base):
        """With votes: thresholds and the majority sign of the whole model."""
        if self.combine == "linear":
            return None
        thresholds = [0.0] * len(experts)
        if self.density < 1:
            thresholds = model_thresholds(
                self, experts, base, self.density, self._drop
            )
        sign = majority_sign(self, experts, base, thresholds, self._drop)
        return thresholds, sign

    def merge_pieces(self, name, experts, base):
        """Drops entries of one tensor and combines the rest."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )

        def change(vectors, where):
            sparse = self._drop(name, where, vectors)
            if self.combine == "linear":
                return scaled_sum(sparse, scales)
            thresholds, tie = self.found
            trimmed = [
                at_least(vector, threshold)
                for vector, threshold in zip(sparse, thresholds)
            ]
            return merge_elected(trimmed, scales, tie=tie)

        return add_to_base(change, experts, base)

    def _drop(self, name, where, vectors):
        """Sets entries of each piece to zero at random, in place."""
        if self.drop_rate == 0:
            return vectors
        for expert, vector in enumerate(vectors):
            kept = self._draw(expert, name, where).ge_(self.drop_rate)
            vector.mul_(kept.to(vector.device))
            if self.rescale:
                vector.div_(1 - self.drop_rate)
        return vectors

    def _draw(self, expert, name, where):
        """Random numbers of a place, by piece where it is several."""
        start = where.start
        drawn = [
            uniform(
                self.seed,
                expert,
                name,
                slice(start + one.start, start + one.stop),
            )
            for one in pieces(where.stop - start)
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
