"""WUDI: a merged task vector that disturbs no expert's inputs.

"Whoever Started the Interference Should End It" (Cheng et al., ICML 2025,
arXiv:2503.08099). The rows of a layer's task vector lie in the space of the
inputs that the layer saw in fine-tuning. So the difference between the merged
task vector and an expert's should vanish on the expert's own rows; a few hundred
steps of Adam make it small for all experts, without data.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods import WUDI
>>> base = {"w": torch.zeros(2, 2)}
>>> expert = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
>>> WUDI(steps=10)([expert], base)
{'w': tensor([[3., 0.],
        [0., 1.]])}

Authors
 * The speechbrain_merge authors 2026
"""

import math

import torch

from speechbrain_merge.methods.matrices import NO_MATRICES, MatrixMethod
from speechbrain_merge.methods.one_thread import single_thread, spread
from speechbrain_merge.methods.parameters import check_number, check_whole
from speechbrain_merge.methods.pieces import suited
from speechbrain_merge.methods.registry import register
from speechbrain_merge.methods.tall import BLOCK, Tall, TaskVector, row_blocks

# Rows that one thread optimises at a time. The rows of a matrix do not know of
# each other, so this changes no result, and is the same for every number of
# threads.
ROWS = 256


# Adam's own parameters, as torch sets them.
DECAY, DECAY_OF_SQUARES, FLOOR = 0.9, 0.999, 1e-8


def length_of(vector: TaskVector) -> float:
    """The Frobenius norm of a task vector, of some rows at a time."""
    with single_thread():
        squares = [
            float(vector.rows(where, torch.float64).square().sum())
            for where in row_blocks(vector.shape, suited(vector, BLOCK))
        ]
    return math.sqrt(math.fsum(squares))


@register("wudi")
class WUDI(MatrixMethod):
    """``θ_0 + scale · τ``, where Adam takes ``τ`` from ``Σ τ_t`` to a low
    ``Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖²``; the mean for all but matrices.

    The gradient, ``2 (τ G − C)`` with ``G = Σ τ_tᵀτ_t/‖τ_t‖²`` and
    ``C = Σ τ_t τ_tᵀτ_t/‖τ_t‖²``, needs one product of matrices a step, whatever
    the number of experts. The steps are those of the reference implementation.
    The lowest point of the loss, which has a closed form, is far from where 300
    steps lead, so the steps are the method. An expert that did not move is
    left out (the reference divides by zero).

    Arguments
    ---------
    steps : int
        Steps of Adam; 300 in the paper.
    learning_rate : float
        Of Adam, with its usual other parameters; 1e-5 in the paper.
    scale : float or dict
        Multiplies the result, also by part or depth
        (``speechbrain_merge.methods.coefficients``).
    exclude : list of str
        Patterns of matrices that the mean merges: by default embeddings and
        output layers, whose rows are words.
    conv_as_matrix : bool
        Whether convolutions are matrices ``[out, in · …]``.
    split_projections : bool
        Whether fused queries, keys and values are merged apart.
    heads : int or None
        Attention heads of fused projections, where the weights do not tell.
    """

    def __init__(
        self,
        steps=300,
        learning_rate=1e-5,
        scale=1.0,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        super().__init__(
            scale, exclude, conv_as_matrix, split_projections, heads
        )
        check_whole(steps, "steps")
        check_number(learning_rate, "learning_rate", above=0)
        self.steps, self.learning_rate = steps, learning_rate

    def merge_matrix(self, vectors, threads, ladder, noise):
        """Descends from the sum of one matrix of each expert.

        What Adam moves is ``E`` of ``τ = Σ τ_t + E``, with the gradient
        ``2 (E G + R)``, ``R = Σ τ_t G − C``. ``R`` is summed in float64: a
        gradient that is zero is not rounded to a number whose sign Adam would
        follow. The steps are in the precision of the weights, which is the
        first of the ladder; the rounding errors of the weights do not matter.
        """
        dtype = ladder[0][0]
        with single_thread():
            descended = vectors.total()
        each = [vectors.by_rows(number) for number in range(len(vectors))]
        lengths = spread(length_of, each, threads)
        moved = [pair for pair in zip(each, lengths) if pair[1]]
        if not moved:
            return descended
        outputs, inputs = vectors.shape
        step = outputs if descended.is_cuda else ROWS
        blocks = [slice(at, at + step) for at in range(0, outputs, step)]
        # more inputs than all rows: two thin products are cheaper
        thin = inputs > 2 * outputs * len(moved)
        gram, residual = [], torch.zeros_like(descended)
        for vector, length in moved:
            with single_thread():
                if inputs < outputs:
                    factor, size = Tall(vector).gram(torch.float64)
                    factor *= (size / length) ** 2
                else:
                    factor = vector.rows(slice(None), torch.float64) / length

            def add_up(rows, vector=vector, factor=factor):
                """The contribution of one expert to some rows."""
                difference = descended[rows] - vector.rows(rows, torch.float64)
                if inputs < outputs:
                    residual[rows].addmm_(difference, factor)
                else:
                    residual[rows].addmm_(difference @ factor.T, factor)

            spread(add_up, blocks, threads)
            with single_thread():
                narrow = factor.to(dtype)
                done = thin or inputs < outputs
                gram.append(narrow if done else narrow.T @ narrow)
        if thin:
            stacked = torch.cat(gram)
            gram = [stacked.T, stacked]
        else:
            gram = [sum(gram)]

        def descend(rows):
            """All steps of some rows, from where they start."""
            descended[rows] += self._descend(gram, residual[rows].to(dtype))

        spread(descend, blocks, threads)
        return descended

    def _descend(self, gram, residual):
        """All steps of some rows.

        The rule is that of ``torch.optim.Adam``, which itself would take
        seconds to import its compiler.
        """
        change = torch.zeros_like(residual)
        first, second = change.clone(), change.clone()
        *left, last = gram
        for step in range(1, self.steps + 1):
            product = change
            for matrix in left:
                product = product @ matrix
            gradient = torch.addmm(residual, product, last).mul_(2)
            first.lerp_(gradient, 1 - DECAY)
            second.mul_(DECAY_OF_SQUARES)
            second.addcmul_(gradient, gradient, value=1 - DECAY_OF_SQUARES)
            size = second.sqrt().div_((1 - DECAY_OF_SQUARES**step) ** 0.5)
            change.addcdiv_(
                first,
                size.add_(FLOOR),
                value=-self.learning_rate / (1 - DECAY**step),
            )
        return change
