"""Which weights are matrices, and how to merge them as such.

Spectral methods work on matrices: a layer's map from its input to its output.
Everything else in a model (biases, norms, convolutions, and those tables that
only look like matrices) is merged by the mean of the task vectors, as in the
methods' reference implementations.

Two kinds of matrices need care. The rows of an embedding, and of the output
layer that often is the same tensor, are one vector a word, and no map between
spaces: they are left to the mean unless asked for. A fused projection of
queries, keys and values is three maps in one tensor, and merged as three.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.matrices import Matrices
>>> rule = Matrices()
>>> rule.is_matrix("encoder.layers.0.fc1.weight", (8, 4))
True
>>> rule.is_matrix("decoder.embed_tokens.weight", (100, 4))
False

Authors
 * The speechbrain_merge authors 2026
"""

import os

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.factorization import (
    DOUBLE,
    SINGLE,
    SOLVER_ERRORS,
)
from speechbrain_merge.methods.parameters import check_switch, check_whole
from speechbrain_merge.methods.rounding import noise_of, stored_type
from speechbrain_merge.methods.sphere import combination
from speechbrain_merge.weights import (
    common_ties,
    depth,
    join_projection,
    layout_of,
    matches,
    part,
    split_projection,
)

logger = get_logger(__name__)

NO_MATRICES = ("embedding", "output")


def check_scale(scale):
    """Checks a scale that belongs to all experts together.

    Arguments
    ---------
    scale : float or dict
        A number, or numbers by ``parts`` or ``depth`` in the form of
        ``speechbrain_merge.methods.coefficients``.

    Raises
    ------
    ValueError
        For anything else, also for one scale an expert: these methods mix
        the experts before they scale.
    """
    check_coefficient(scale, "scale")

    def refuse_experts(value, inside_depth=False):
        if isinstance(value, (list, tuple)) or (
            isinstance(value, dict) and "experts" in value
        ):
            raise ValueError(
                "`scale` multiplies what all experts became together: give "
                "one number, or numbers by 'parts' or 'depth', and not one "
                f"for each expert; got {value!r}."
            )
        if isinstance(value, dict):
            for inner in value.get("parts", {}).values():
                refuse_experts(inner)
            refuse_experts(value.get("default", 1.0))

    refuse_experts(scale)


class Matrices:
    """Takes the tensors of a model apart into matrices for a spectral method.

    Arguments
    ---------
    exclude : list of str
        Patterns (``speechbrain_merge.weights.matches``) of tensors that the
        mean merges although they have two dimensions. Of a tied tensor, any
        of its names is enough.
    conv_as_matrix : bool
        Whether a convolution of ``[out, in, …]`` is the matrix
        ``[out, in · …]``; if not, the mean merges it.
    split_projections : bool
        Whether a fused projection is merged as queries, keys and values
        apart.
    heads : int or None
        Number of attention heads, which the rows of SpeechBrain's fused
        projections are ordered by. ``None`` reads it from the relative
        position bias beside the projection (``RelPosMHAXL`` has one).
    """

    def __init__(
        self,
        exclude=NO_MATRICES,
        conv_as_matrix=False,
        split_projections=True,
        heads=None,
    ):
        if isinstance(exclude, str) or not all(
            isinstance(pattern, str) for pattern in exclude
        ):
            raise ValueError(
                "`exclude` must be a list of patterns such as 'embedding' or "
                f"'decoder.layers.0', got {exclude!r}."
            )
        for pattern in exclude:
            matches("weight", pattern)  # a misspelt pattern stops here
        check_switch(conv_as_matrix, "conv_as_matrix")
        check_switch(split_projections, "split_projections")
        if heads is not None:
            check_whole(heads, "heads", at_least=1)
        self.exclude = list(exclude)
        self.conv_as_matrix = conv_as_matrix
        self.split_projections = split_projections
        self.heads = heads
        self.layouts = {}
        self.depths = {}
        self.aliases = {}

    def prepare(self, experts):
        """Finds the fused projections and how their rows are ordered.

        Arguments
        ---------
        experts : list of Weights
            Open weights.

        Raises
        ------
        ValueError
            When the order of rows, or the number of heads that it goes by, is
            not known.
        """
        names = experts[0].names()
        self.depths = depth(names)
        self.aliases = {}
        for alias, kept in common_ties(experts).items():
            self.aliases.setdefault(kept, []).append(alias)
        self.layouts = {
            name: self._layout(name, experts[0])
            for name in names
            if self.split_projections
            and part(name).projection == "qkv"
            and self.is_matrix(name, experts[0].shape(name))
        }

    def is_matrix(self, name, shape):
        """Whether a spectral method sees this tensor.

        Arguments
        ---------
        name : str
            Name of the tensor.
        shape : tuple of int
            Its shape.

        Returns
        -------
        is_matrix : bool
        """
        if len(shape) < 2 or 0 in shape or part(name).kind == "bias":
            return False
        if len(shape) > 2 and not self.conv_as_matrix:
            return False
        return not any(
            matches(own, pattern)
            for own in (name, *self.aliases.get(name, []))
            for pattern in self.exclude
        )

    def merge(self, formula, name, experts, base, scale, workers=1):
        """``θ_0 + scale · formula(τ_1 … τ_T)``, or the mean for the rest.

        Arguments
        ---------
        formula : callable
            Takes the task vectors (list of float64 matrices), how many
            threads it may spread work over, the types to factorize in
            (``SINGLE`` or ``DOUBLE`` of ``factorization``) and the rounding
            errors in the task vectors (``rounding.Noise``); gives a matrix.
        name : str
            Name of the tensor.
        experts : list of torch.Tensor
            One tensor an expert.
        base : torch.Tensor
            The tensor of the base.
        scale : float or dict
            A checked scale.
        workers : int
            How many tensors are merged side by side: if more than one, a
            single tensor does not take more threads.

        Returns
        -------
        merged : torch.Tensor
        """
        factor = resolve(scale, name, 1, depths=self.depths)[0]
        if not self.is_matrix(name, tuple(base.shape)):
            part_of_each = factor / len(experts)
            return combination(
                [base, *experts],
                [1.0 - factor] + [part_of_each] * len(experts),
            )
        threads = (os.cpu_count() or 1) if workers == 1 else 1
        ladder = DOUBLE if base.dtype == torch.float64 else SINGLE
        matrices = [
            model.reshape(len(model), -1).to(torch.float64)
            for model in (base, *experts)
        ]
        infos = [stored_type(model) for model in (base, *experts)]

        def merged_task_vector(models):
            """The formula for one matrix of the base and each expert."""
            anchor, *moved = models
            noise = noise_of(moved, anchor, infos[1:], infos[0])
            vectors = [model - anchor for model in moved]
            return formula(vectors, threads, ladder, noise)

        try:
            if name in self.layouts:
                merged = self._merge_fused(merged_task_vector, name, matrices)
            else:
                merged = merged_task_vector(matrices)
        except SOLVER_ERRORS as error:
            raise ValueError(
                f"The singular values of {name} could not be computed, by any "
                f"of the solvers, in float64 ({error}). Leave this tensor to "
                "the mean by adding its name to the method's `exclude`."
            ) from error
        if not merged.any() and any(
            not torch.equal(matrix, matrices[0]) for matrix in matrices[1:]
        ):
            logger.warning(
                "%s stays as in the base: what the experts changed in it is "
                "no more than the rounding errors of %s. Merge checkpoints "
                "that were saved in a finer type, if there are such.",
                name,
                ", ".join(sorted({info.dtype for info in infos[1:]})),
            )
        merged = matrices[0].add(merged, alpha=factor)
        return merged.reshape(base.shape).to(base.dtype)

    def _merge_fused(self, formula, name, matrices):
        """Queries, keys and values apart."""
        layout, heads = self.layouts[name]
        split = [
            split_projection(name, matrix, heads, layout) for matrix in matrices
        ]
        merged = {
            projection: formula([parts[projection] for parts in split])
            for projection in ("q", "k", "v")
        }
        return join_projection(name, merged, heads, layout)

    def _layout(self, name, weights):
        """How the rows of a fused projection are ordered, and by how many heads."""
        try:
            layout, heads = layout_of(name, weights, self.heads)
        except ValueError:
            raise ValueError(
                f"{name} holds queries, keys and values, and neither its name "
                "nor anything beside it tells how their rows are ordered: "
                "give `split_projections=False` to merge the three as one "
                "matrix."
            ) from None
        if layout == "stacked":
            # whole heads follow each other: their number does not matter
            return layout, 1
        if heads is None:
            raise ValueError(
                f"{name} holds queries, keys and values, head after head, and "
                "nothing beside it says how many heads there are: give "
                "`heads` (as in the model's nhead), or "
                "`split_projections=False` to merge the three as one matrix."
            )
        return layout, heads
