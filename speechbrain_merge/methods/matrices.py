"""Methods on matrices: which weights are such, and how to merge them.

Spectral methods work on matrices: a layer's map from its input to its output.
Each is a ``MatrixMethod`` with one formula, ``merge_matrix``; what the weights
of a model have to go through before and after it is here, once, and so is how
many threads a formula may take and in which precision it factorizes.

Everything else in a model (biases, norms, convolutions, and those tables that
only look like matrices) is merged by the mean of the task vectors, as in the
methods' reference implementations.

Two kinds of matrices need care. The rows of an embedding, and of the output
layer that often is the same tensor, are one vector a word, and no map between
spaces: they are left to the mean unless asked for. (A layer that SpeechBrain's
recipes save by its number alone, as ``4.w.weight``, is taken for an output layer,
also where it is a projection within a transducer. ``exclude`` takes names.) A fused projection of
queries, keys and values is three maps in one tensor, and merged as three.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.matrices import MatrixMethod
>>> class Largest(MatrixMethod):
...     "The task vector of the largest norm, matrix by matrix."
...
...     def merge_matrix(self, vectors, threads, ladder, noise):
...         return max(vectors, key=torch.Tensor.norm)
>>> base = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(1)}
>>> experts = [{name: base[name] + step for name in base} for step in (1, 3)]
>>> Largest()(experts, base)
{'fc.weight': tensor([[3., 3.],
        [3., 3.]]), 'fc.bias': tensor([2.])}
>>> Largest().is_matrix((100, 4), "decoder.embed_tokens.weight")
False

Authors
 * The speechbrain_merge authors 2026
"""

import os
from typing import NamedTuple, Optional, Union

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.base import MergeMethod
from speechbrain_merge.methods.coefficients import check_coefficient, resolve
from speechbrain_merge.methods.factorization import (
    DOUBLE,
    SINGLE,
    SOLVER_ERRORS,
)
from speechbrain_merge.methods.parameters import check_switch, check_whole
from speechbrain_merge.methods.rounding import Noise, noise_of, stored_type
from speechbrain_merge.methods.sphere import combination
from speechbrain_merge.methods.tall import TaskVectors
from speechbrain_merge.weights import (
    Weights,
    common_ties,
    is_norm,
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


class Fused(NamedTuple):
    """The findings of the first pass of a ``MatrixMethod``.

    Arguments
    ---------
    layouts : dict
        Name of a fused projection to the order of its rows, and the number of
        heads that it goes by.
    aliases : dict
        Name of a tied tensor to its other names.
    """

    layouts: dict
    aliases: dict


class MatrixMethod(MergeMethod):
    """``θ_0 + scale · formula(τ_1 … τ_T)`` for matrices; else the mean.

    A subclass gives ``merge_matrix``.

    Arguments
    ---------
    scale : float or dict
        Multiplies what the formula gives, also by part or depth
        (``speechbrain_merge.methods.coefficients``).
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

    needs_base = True

    def __init__(
        self,
        scale: Union[float, dict] = 1.0,
        exclude=NO_MATRICES,
        conv_as_matrix: bool = False,
        split_projections: bool = True,
        heads: Optional[int] = None,
    ):
        super().__init__()
        check_scale(scale)
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
        self.scale, self.exclude = scale, list(exclude)
        self.conv_as_matrix = conv_as_matrix
        self.split_projections, self.heads = split_projections, heads

    def merge_matrix(
        self,
        vectors: TaskVectors,
        threads: int,
        ladder: tuple,
        noise: Noise,
    ) -> torch.Tensor:
        """The formula: one matrix out of the task vectors of each expert.

        Arguments
        ---------
        vectors : TaskVectors
            ``[m, n]``, float64, each made anew whenever it is asked for; or,
            by ``by_rows``, some rows at a time.
        threads : int
            How many threads it may spread work over. The result must not
            depend on it.
        ladder : tuple
            The types to factorize in: ``SINGLE`` or ``DOUBLE`` of
            ``speechbrain_merge.methods.factorization``.
        noise : Noise
            The rounding errors in the task vectors.

        Returns
        -------
        merged : torch.Tensor
            ``[m, n]``.
        """
        raise TypeError(f"{type(self).__name__} does not define merge_matrix.")

    def prepare(self, experts, base):
        """The fused projections, and the names of tied tensors.

        Raises
        ------
        ValueError
            When the order of the rows of a fused projection, or the number of
            heads that it goes by, is not known.
        """
        aliases: dict = {}
        for alias, kept in common_ties(experts).items():
            aliases.setdefault(kept, []).append(alias)
        first = experts[0]
        layouts = {
            name: self._layout(name, first)
            for name in first.names()
            if self.split_projections
            and part(name).projection == "qkv"
            and self.is_matrix(first.shape(name), name, *aliases.get(name, []))
        }
        return Fused(layouts, aliases)

    def is_matrix(self, shape: tuple, *names: str) -> bool:
        """Whether the formula sees a tensor.

        Arguments
        ---------
        shape : tuple of int
            Its shape.
        *names : str
            Its name, or all names of a tied one.

        Returns
        -------
        is_matrix : bool
        """
        if len(shape) < 2 or 0 in shape or part(names[0]).kind == "bias":
            return False
        if any(map(is_norm, names)):  # over frames and channels, say
            return False
        if len(shape) > 2 and not self.conv_as_matrix:
            return False
        return not any(
            matches(name, pattern) for name in names for pattern in self.exclude
        )

    def merge_tensor(self, name, experts, base):
        """Merges one tensor by the formula or, if it is no matrix, the mean."""
        factor = resolve(self.scale, name, 1, depths=self.depths)[0]
        if not self.sees(name, base):
            part_of_each = factor / len(experts)
            return combination(
                [base, *experts],
                [1.0 - factor] + [part_of_each] * len(experts),
            )
        change = self.formula_of(name, experts, base)
        if not change.any() and any(
            not torch.equal(expert, base) for expert in experts
        ):
            logger.warning(
                "%s stays as in the base: what the experts changed in it is "
                "no more than the rounding errors of %s. Merge checkpoints "
                "that were saved in a finer type, if there are such.",
                name,
                ", ".join(
                    sorted({stored_type(expert).dtype for expert in experts})
                ),
            )
        return combination([base, change], [1.0, factor])

    def sees(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the formula sees a tensor, under any of its names."""
        names = (name, *self.found.aliases.get(name, []))
        return self.is_matrix(tuple(tensor.shape), *names)

    def formula_of(
        self, name: str, experts: list[torch.Tensor], base: torch.Tensor
    ) -> torch.Tensor:
        """The formula on the matrix, or the matrices, of one tensor.

        Arguments
        ---------
        name : str
            Name of a tensor that the formula sees.
        experts : list of torch.Tensor
            The tensor of each expert.
        base : torch.Tensor
            The tensor of the base.

        Returns
        -------
        change : torch.Tensor
            What the formula makes of the task vectors, in the shape of the
            tensor.

        Raises
        ------
        ValueError
            When no solver can decompose a matrix.
        """
        # where tensors are merged side by side, one does not take more threads
        alone = self.workers == 1 and not base.is_cuda
        threads = (os.cpu_count() or 1) if alone else 1
        ladder = DOUBLE if base.dtype == torch.float64 else SINGLE
        if base.is_cuda:
            # where SpeechBrain allows TF32, products in float32 are too rough
            ladder = ladder[-1:]
        matrices = [model.reshape(len(model), -1) for model in (base, *experts)]
        infos = [stored_type(model) for model in (base, *experts)]

        def merged_task_vector(models):
            """The formula for one matrix of the base and each expert."""
            anchor, *moved = models
            noise = noise_of(moved, anchor, infos[1:], infos[0])
            vectors = TaskVectors(moved, anchor)
            return self.merge_matrix(vectors, threads, ladder, noise)

        try:
            if name in self.found.layouts:
                change = self._merge_fused(merged_task_vector, name, matrices)
            else:
                change = merged_task_vector(matrices)
        except SOLVER_ERRORS as error:
            raise ValueError(
                f"The singular values of {name} could not be computed, by any "
                f"of the solvers, in float64 ({error}). Leave this tensor to "
                "the mean by adding its name to the method's `exclude`."
            ) from error
        return change.reshape(base.shape)

    def _merge_fused(self, formula, name, matrices):
        """Queries, keys and values apart."""
        layout, heads = self.found.layouts[name]
        split = [
            split_projection(name, matrix, heads, layout) for matrix in matrices
        ]
        merged = {
            projection: formula([parts[projection] for parts in split])
            for projection in ("q", "k", "v")
        }
        return join_projection(name, merged, heads, layout)

    def _layout(self, name: str, weights: Weights):
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
