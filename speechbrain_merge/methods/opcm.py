r"""OPCM: experts merged one after the other, each beside what is there already.

Orthogonal Projection-based Continual Merging (Tang et al., "Merging Models on
the Fly Without Retraining", arXiv:2501.09522). Experts come one at a time, and
old ones need not be kept: of each new task vector, what lies in the strongest
directions of the merged one is left out, so that it does not disturb what was
merged before. The length of the merged task vector stays the mean length of
those of the experts.

With ``A_1 = τ_1`` and the singular value decomposition ``A_{t−1} = U diag(σ) Vᵀ``,
of whose values the first ``r`` have at most a part ``alpha`` of the sum:

- ``τ̃_t = τ_t`` without its entries ``u_iᵀ τ_t v_j`` for ``i, j ≤ r``, and
  without those for ``i = j``;
- ``A_t = A_{t−1} + τ̃_t`` in matrices; ``A_{t−1} + τ_t`` in other tensors;
- ``θ = θ_0 + A_T · mean_t ‖τ_t‖ / ‖A_T‖``, norms over the whole model.

One expert is given back, and the order of the experts matters.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import OPCM
>>> base = {"fc.weight": torch.zeros(2, 2)}
>>> first = {"fc.weight": torch.diag(torch.tensor([3.0, 0.0]))}
>>> second = {"fc.weight": torch.diag(torch.tensor([1.0, 3.0]))}
>>> merged = OPCM()([first, second], base)["fc.weight"]
>>> torch.equal(merged[0, 0], merged[1, 1])  # of the second, [0, 0] is left out
True

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
from typing import Any, NamedTuple, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.base import is_finite
from speechbrain_merge.methods.coefficients import resolve
from speechbrain_merge.methods.devices import computed
from speechbrain_merge.methods.factorization import decompose
from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.one_thread import single_thread
from speechbrain_merge.methods.parameters import check_number, check_whole
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.task_vectors import merged_names
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import digest

logger = get_logger(__name__)

RECORDED = "recorded"

# The entry of a merged file's metadata that says how to go on from it
RECORD = "opcm"


class Sequence(NamedTuple):
    """The findings of the first pass of ``OPCM``.

    Arguments
    ---------
    layouts, aliases : dict
        As of ``speechbrain_merge.methods.matrices.Fused``.
    before : dict
        Of how many experts the first one was made, and its growth.
    growth : float
        ``‖A_T‖`` beside the mean length of the experts' task vectors.
    experts : int
        How many experts are in the merge.
    base : str
        The digest of the base.
    """

    layouts: dict
    aliases: dict
    before: dict
    growth: float = 1.0
    experts: int = 1
    base: str = ""


@register("opcm")
class OPCM(MatrixMethod):
    """``θ_0 + A_T · mean_t ‖τ_t‖ / ‖A_T‖``, experts in the order given.

    A merge can go on from an earlier one, without the experts that it was made
    of: give the earlier merge as the first expert, and ``previous``. A merge
    stage does it for the domains of a pool (``hparams/continual.yaml``).

    Directions of ``A`` that are no stronger than the rounding errors of the
    weights as they were stored (``speechbrain_merge.methods.rounding``) take
    nothing away from a new expert; in the authors' code LAPACK chooses some.

    Arguments
    ---------
    scale : float or dict
        Multiplies the merged task vector, also by part or depth
        (``speechbrain_merge.methods.coefficients``).
    alpha : float
        From 0 (a new expert loses the diagonal alone) to 1. The authors use
        0.5.
    previous : dict, str or None
        Says that the first expert is a merge by this method, with a scale of
        1. ``"recorded"``: its file says the rest. Else a dict: ``experts`` is
        the number that it was made of, and ``growth`` is what the log of that
        merge says, ``‖A‖`` beside the mean length. Where ``growth`` is missing
        it is taken to be ``√experts``, as it is for task vectors that are
        orthogonal to each other.
    exclude, conv_as_matrix, split_projections, heads
        Which matrices are projected
        (``speechbrain_merge.methods.matrices.MatrixMethod``).

    Example
    -------
    >>> OPCM(alpha=1.2)
    Traceback (most recent call last):
    ...
    ValueError: `alpha` must be a number at least 0 and at most 1, got 1.2.
    """

    goes_on = True

    def __init__(
        self,
        scale=1.0,
        alpha=0.5,
        previous: Union[dict, str, None] = None,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            scale, exclude, conv_as_matrix, split_projections, heads
        )
        check_number(alpha, "alpha", at_least=0, at_most=1)
        if previous not in (None, RECORDED):
            check_previous(previous)
        self.alpha, self.previous = alpha, previous

    def prepare(self, experts, base):
        """The lengths of the task vectors and of what they are merged to."""
        fused = super().prepare(experts, base)
        content = digest(base)
        before = self._previous_of(experts[0], content)
        self.found = Sequence(fused.layouts, fused.aliases, before)

        def squares(name):
            """Squared norms: of each expert's task vector, and of ``A``."""
            tensors = [base[name], *(expert[name] for expert in experts)]
            if not all(map(is_finite, tensors)):
                return [0.0] * len(tensors)  # reported when it is merged

            def lengths(tensors):
                """Where these are."""
                anchor, *models = tensors
                wide = anchor.to(torch.float64)
                squared = [
                    float((model.to(torch.float64) - wide).square().sum())
                    for model in models
                ]
                merged = self._accumulated(name, models, anchor)
                return [*squared, float(merged.square().sum())]

            return computed(self, name, lengths, tensors)

        found = self.each(squares, merged_names(experts), "merge in sequence")
        *lengths, total = [
            math.sqrt(math.fsum(column)) for column in zip(*found)
        ]
        old = before["experts"]
        number = old + len(lengths) - 1
        mean = (old * lengths[0] + math.fsum(lengths[1:])) / number
        growth = total / mean if mean > 0 else 0.0
        logger.info(
            "opcm: to go on from this merge, give it as the first expert and "
            "previous={experts: %d, growth: %.9g}.",
            number,
            growth,
        )
        return Sequence(*fused[:2], before, growth, number, content)

    def on_record(self):
        """What a merge that goes on from this one has to know."""
        if self.scale != 1:
            return {}  # it is longer or shorter than the experts' mean
        found = self.found
        state = {
            "experts": found.experts,
            "growth": found.growth,
            "base": found.base,
        }
        return {RECORD: json.dumps(state)}

    def _previous_of(self, first, content):
        """Of how many experts the first one was made, and its growth."""
        if self.previous is None:
            return {"experts": 1, "growth": 1.0}
        if self.previous != RECORDED:
            return _with_growth(self.previous)
        if RECORD not in first.metadata:
            raise ValueError(
                f"`previous` is '{RECORDED}', and {first.label} does not say "
                "that it is a merge by 'opcm' with a scale of 1. Give the file "
                "of such a merge as the first expert, or `previous` as a dict."
            )
        where = f"{first.label}, metadata '{RECORD}'"
        try:
            previous = parse_json(first.metadata[RECORD], where)
            known = content
            if isinstance(previous, dict):
                known = previous.pop("base", content)
            check_previous(previous)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if known != content:
            raise ValueError(
                f"{first.label} was merged around the base with the SHA-256 "
                f"{known}, and the base given now has {content}: a merge can "
                "only go on around its own base. Give that one."
            )
        return _with_growth(previous)

    def merge_tensor(self, name, experts, base):
        """Merges one tensor."""
        if self.found.growth == 0:  # nothing moved, or all of it cancels
            return base.clone()
        scale = resolve(self.scale, name, 1, depths=self.depths)[0]
        merged = self._accumulated(name, experts, base)
        moved = base.to(torch.float64).add(
            merged, alpha=scale / self.found.growth
        )
        return moved.to(base.dtype)

    def _accumulated(self, name, experts, base):
        """``A_T`` of one tensor, in float64 and in its shape."""
        if self.sees(name, base):
            return self.formula_of(name, experts, base)
        anchor = base.to(torch.float64)
        first, *others = (e.to(torch.float64) - anchor for e in experts)
        return sum(others, first * self.found.before["growth"])

    def merge_matrix(self, vectors, threads, ladder, noise):
        """``A_T`` of one matrix."""
        first, *others = vectors
        total = first * self.found.before["growth"]
        with single_thread():
            for number, vector in enumerate(others, 1):
                total = total + beside(
                    vector, total, self.alpha, noise.first(number).of_sum()
                )
        return total


def beside(
    vector: torch.Tensor, merged: torch.Tensor, alpha: float, noise: float
) -> torch.Tensor:
    """A task vector without what would disturb a merged one.

    Arguments
    ---------
    vector, merged : torch.Tensor
        ``[m, n]``, float64.
    alpha : float
        Which part of the sum of the merged one's singular values is protected
        as a block.
    noise : float
        Directions of the merged one that are no stronger than this take
        nothing away.

    Returns
    -------
    rest : torch.Tensor
        ``[m, n]``.

    Example
    -------
    >>> merged = torch.diag(torch.tensor([3.0, 2.0, 1.0])).double()
    >>> beside(torch.ones(3, 3).double(), merged, 0.9, 0.0)
    tensor([[0., 0., 1.],
            [0., 0., 1.],
            [1., 1., 0.]], dtype=torch.float64)
    """
    found = decompose(merged, noise)
    values = found.values
    if len(values) == 0:
        return vector
    # all that come before the one that makes their sum exceed the part
    sums = values.cumsum(0)
    block = int((sums <= alpha * sums[-1]).sum())
    entries = found.left.T @ vector @ found.right
    taken = torch.diag(entries.diagonal())
    taken[:block, :block] = entries[:block, :block]
    return vector - found.left @ taken @ found.right.T


def _with_growth(previous):
    """What an earlier merge was; its growth as of orthogonal task vectors."""
    return {"growth": math.sqrt(previous["experts"]), **previous}


def check_previous(previous: Any) -> None:
    """Raises a ValueError unless this says what an earlier merge was."""
    known = {"experts", "growth"}
    if (
        not isinstance(previous, dict)
        or "experts" not in previous
        or set(previous) - known
    ):
        raise ValueError(
            "`previous` must say of how many experts the earlier merge was "
            "made, as in {experts: 3, growth: 1.7} (growth, from the log of "
            f"that merge, may be left out); got {previous!r}."
        )
    check_whole(previous["experts"], "previous: experts", at_least=1)
    if "growth" in previous:
        check_number(previous["growth"], "previous: growth", above=0)
