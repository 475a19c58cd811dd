"""PCB-Merging: weights compete within and between experts.

Du et al., "Parameter competition balancing for model merging", NeurIPS 2024.
Every entry of every task vector gets a score: how large it is within its
expert (intra), times how well it goes with the other experts there (inter).
The entries with the best scores are kept, and averaged with the scores as
weights.

The authors released two files that differ. In both, ``N`` maps the magnitudes
of a task vector, its extremes clipped, to [0, 1], and intra is ``exp(T N²)``.

- ``variant="pairs"``, the default: ``inter_t = Σ_s tanh(N_t sgn τ_t · N_s sgn
  τ_s)``, clipped at 1 % (``pcb_ES.py``). It has the paper's sum over pairs of
  normalised task vectors, and like the paper's formula it does not depend on
  the scale of the task vectors.
- ``variant="sum"``: ``inter_t = tanh(τ_t · Σ_s τ_s)``, clipped at 0.01 %
  (``pcb-merging.py``).

Scores, clipping and shares are over the whole model. A task vector of one
magnitude throughout, for which the authors' code divides by zero, has ``N = 1``
(or 0, if it is zero).

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import PCB
>>> base = {"w": torch.zeros(4)}
>>> experts = [
...     {"w": torch.tensor([4.0, 0.1, -2.0, 0.0])},
...     {"w": torch.tensor([2.0, 0.2, 3.0, 0.1])},
... ]
>>> PCB(ratio=0.5)(experts, base)
{'w': tensor([2., 0., 0., 0.])}

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.parameters import check_choice, check_number
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import add_to_base, merged_names
from speechbrain_merge.methods.whole_model import (
    count_entries,
    model_statistics,
)

# Share clipped at each end of a task vector's magnitudes.
CLIPPED = {"pairs": 0.01, "sum": 0.0001}


@register("pcb")
class PCB(MergeMethod):
    """``θ_0 + Σ λ_t s_t ⊙ τ_t / Σ s_t``, ``s_t`` the best normalised scores.

    Arguments
    ---------
    ratio : float
        Share of the entries of each task vector that is kept, in (0, 1].
    scale : float, list or dict
        ``λ``, in any form of ``speechbrain_merge.methods.coefficients``; the
        authors search between 0.8 and 1.3 for each expert.
    variant : str
        ``"pairs"`` or ``"sum"``, as above.

    Example
    -------
    >>> import torch
    >>> experts = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([2.0])}]
    >>> PCB(ratio=1)(experts, base={"w": torch.tensor([1.0])})
    {'w': tensor([2.5000])}
    """

    needs_base = True
    piecewise = True

    def __init__(self, ratio=0.1, scale=1.0, variant="pairs"):
        super().__init__()
        check_number(ratio, "ratio", above=0, at_most=1)
        check_coefficient(scale, "scale")
        check_choice(variant, "variant", tuple(CLIPPED))
        self.ratio, self.scale, self.variant = ratio, scale, variant

    def prepare(self, experts, base):
        """Finds where magnitudes are clipped, and which scores are kept."""
        number = count_entries(experts[0], merged_names(experts))
        if number == 0:
            return None
        share = CLIPPED[self.variant]
        # positions in ascending order, rounded as the authors round them
        low, high = int(number * share), max(int(number * (1 - share) - 1), 0)
        clips = model_statistics(
            self,
            experts,
            base,
            lambda name, where, vectors: [one.abs_() for one in vectors],
            [number - low, number - high],
            signed=False,
        )
        kept = min(int(number * (1 - self.ratio)), number - 1)
        ends = model_statistics(
            self,
            experts,
            base,
            lambda name, where, vectors: self._scores(vectors, clips),
            [number - kept, 1],
        )
        return clips, ends

    def merge_pieces(self, name, experts, base):
        """Averages the task vectors of one tensor, weighted by their scores."""
        scales = resolve(
            self.scale, name, len(experts), self.labels, self.depths
        )

        def change(vectors, where):
            total = divisor = 0
            clips, ends = self.found
            for vector, score, scale, clip, end in zip(
                vectors, self._scores(vectors, clips), scales, clips, ends
            ):
                weight = _normalise(score.clamp_(*end), *end)
                clipped = vector.abs().clamp_(*clip).mul_(vector.sign_())
                total = total + clipped.mul_(weight).mul_(scale)
                divisor = divisor + weight
            return total / divisor.clamp_(min=1e-12)

        return add_to_base(change, experts, base)

    def _scores(self, vectors, clips):
        """Intra times inter, for one piece of every task vector."""
        number = len(vectors)
        sizes = [
            _normalise(vector.abs().clamp_(*clip), *clip)
            for vector, clip in zip(vectors, clips)
        ]
        if self.variant == "sum":
            total = sum(vectors)
            inter = [(vector * total).tanh_() for vector in vectors]
        else:
            signed = [
                size * vector.sign() for size, vector in zip(sizes, vectors)
            ]
            inter = [0] * number
            for first in range(number):
                for second in range(first, number):
                    pair = (signed[first] * signed[second]).tanh_()
                    inter[first] = inter[first] + pair
                    if second != first:
                        inter[second] = inter[second] + pair
        # A common factor of all scores leaves no trace in the end; with
        # exp(−T) here, many experts do not overflow.
        return [
            size.square_().sub_(1).mul_(number).exp_().mul_(score)
            for size, score in zip(sizes, inter)
        ]


def _normalise(values, low, high):
    """Maps [low, high] to [0, 1], in place."""
    if high == low:
        return values.fill_(1.0 if high > 0 else 0.0)
    return values.sub_(low).div_(high - low)
