r"""Tall matrices, a block of rows at a time.

Of a matrix ``X`` with many rows and few columns, such as an embedding, spectral
methods need two things: its Gram matrix ``XᵀX``, which is a sum over the rows,
and products ``XA``, of which each row belongs to one row of ``X``. So ``X``
itself is never needed as a whole: a task vector is subtracted, and converted,
while a block of its rows is in the processor's cache.

Example
-------
>>> import torch
>>> tall = Tall(torch.tensor([[1.0, 2.0], [0.0, 1.0], [2.0, 0.0]]))
>>> tall.gram(torch.float64)[0]
tensor([[5., 2.],
        [2., 5.]], dtype=torch.float64)
>>> tall.times(torch.ones(2, 1)).T
tensor([[3., 1., 2.]])

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Iterator, Sequence
from typing import Optional, Union

import torch

from speechbrain_merge.methods.pieces import suited
from speechbrain_merge.weights import release

BLOCK = 1 << 20
"""Entries of a block that matrices are multiplied by: 4 MB in float32."""

SUMMED = 1 << 15
"""Entries of a block that is added up, in the processor's cache."""

# Squares are far from the ends of float32 where their sum is within these.
LEAST_SUM, LARGEST_SUM = 2.0**-40, 2.0**60


def row_blocks(shape: Sequence[int], entries: int = BLOCK) -> list[slice]:
    """Blocks of the rows of a matrix.

    Arguments
    ---------
    shape : tuple of int
        ``(m, n)``.
    entries : int
        How many entries a block has, about.

    Returns
    -------
    blocks : list of slice

    Example
    -------
    >>> row_blocks((5, 3), entries=6)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    number, columns = shape
    step = max(1, entries // max(1, columns))
    return [
        slice(start, min(start + step, number))
        for start in range(0, number, step)
    ]


def walk_rows(tensors: Sequence[torch.Tensor], entries: int) -> Iterator[slice]:
    """Blocks of rows, and releases memory of mapped files on the way.

    What is left at the end, all of a small matrix, is released by whoever is
    done with the tensor: to map pages anew takes time.

    Arguments
    ---------
    tensors : list of torch.Tensor
        ``[m, n]``, all of one shape.
    entries : int
        As of ``row_blocks``, for a processor's cache.

    Yields
    ------
    where : slice
        Some rows.
    """
    begun, columns = 0, tensors[0].shape[1]
    large = tensors[0].numel() > BLOCK
    entries = suited(tensors[0], entries)
    for where in row_blocks(tensors[0].shape, entries):
        yield where
        if large and (where.stop - begun) * columns >= BLOCK:
            for tensor in tensors:
                release(tensor[begun : where.stop])
            begun = where.stop


class TaskVector:
    """``θ_t − θ_0`` of one matrix, of which some rows are made at a time.

    Arguments
    ---------
    model : torch.Tensor
        The matrix of an expert, ``[m, n]``.
    base : torch.Tensor
        That of the base.

    Example
    -------
    >>> vector = TaskVector(torch.ones(3, 2), torch.eye(3, 2))
    >>> vector.rows(slice(0, 1), torch.float64)
    tensor([[0., 1.]], dtype=torch.float64)
    """

    def __init__(self, model: torch.Tensor, base: torch.Tensor):
        self.model, self.base = model, base
        self.shape = model.shape
        self.device, self.is_cuda = model.device, model.is_cuda

    @property
    def T(self) -> "TaskVector":
        """The matrix turned."""
        return TaskVector(self.model.T, self.base.T)

    def rows(self, where: slice, dtype: torch.dtype) -> torch.Tensor:
        """Some rows in a type: the exact difference, rounded to it once.

        Of a matrix of several blocks, what lies in mapped files is released.
        It can be asked for again.
        """
        wide = torch.promote_types(self.model.dtype, dtype)
        own, anchor = self.model[where], self.base[where]
        made = (own.to(wide) - anchor.to(wide)).to(dtype)
        if self.model.numel() > BLOCK:
            release(own)
            release(anchor)
        return made


class TaskVectors(Sequence):
    """The task vectors of one matrix, each made when it is asked for.

    Arguments
    ---------
    models : list of torch.Tensor
        The matrix of each expert, ``[m, n]``.
    base : torch.Tensor
        ``[m, n]``.

    Example
    -------
    >>> vectors = TaskVectors(
    ...     [torch.zeros(1, 2), torch.eye(1, 2)], torch.ones(1, 2)
    ... )
    >>> sum(vectors)
    tensor([[-1., -2.]], dtype=torch.float64)
    >>> vectors.total()
    tensor([[-1., -2.]], dtype=torch.float64)
    """

    def __init__(self, models: list[torch.Tensor], base: torch.Tensor):
        self.models, self.base = models, base
        self.shape = base.shape

    def __len__(self):
        return len(self.models)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return TaskVectors(self.models[number], self.base)
        return self.by_rows(number).rows(slice(None), torch.float64)

    def by_rows(self, number: int) -> TaskVector:
        """The task vector of one expert, to be made a block at a time."""
        return TaskVector(self.models[number], self.base)

    def total(self) -> torch.Tensor:
        """Their sum in float64, added up while it is in the cache."""
        summed = self.base.new_empty(self.shape, dtype=torch.float64)
        for where in walk_rows([*self.models, self.base], SUMMED):
            anchor = self.base[where].to(torch.float64)
            part = summed[where].zero_()
            for model in self.models:
                own = model[where].to(torch.float64, copy=True)
                part.add_(own.sub_(anchor))
        return summed


class Tall:
    """A matrix with at least as many rows as columns.

    Arguments
    ---------
    matrix : torch.Tensor or TaskVector
        ``X``, ``[m, n]``.
    """

    def __init__(self, matrix: Union[torch.Tensor, TaskVector]):
        self.matrix, self.shape = matrix, matrix.shape
        self._grams: dict = {}
        self._eigen: dict = {}

    def gram(self, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
        """The Gram matrix, which is computed once for each type.

        Arguments
        ---------
        dtype : torch.dtype
            The type to multiply in.

        Returns
        -------
        gram : torch.Tensor
            ``XᵀX / size²``, ``[n, n]``.
        size : float
            A power of two; 1 unless squares would overflow or vanish.
        """
        if dtype not in self._grams:
            gram, size = self._gram(dtype, 1.0), 1.0
            if not LEAST_SUM < float(gram.trace()) < LARGEST_SUM:
                largest = max(
                    float(block.abs().max())
                    for _, block in self._blocks(torch.float64, 1.0)
                )
                size = 2.0 ** math.frexp(largest)[1]
                gram = self._gram(dtype, size)
            self._grams[dtype] = gram, size
        return self._grams[dtype]

    def eigen(
        self, dtype: torch.dtype
    ) -> Optional[tuple[torch.Tensor, torch.Tensor, float]]:
        """Squared singular values and right singular vectors, computed once.

        Arguments
        ---------
        dtype : torch.dtype
            The type to compute in.

        Returns
        -------
        squares : torch.Tensor
            Of ``X / size``, ``[n]``, ascending.
        vectors : torch.Tensor
            ``[n, n]``.
        size : float
            As of ``gram``. ``None`` instead of all three where the solver
            fails.
        """
        if dtype not in self._eigen:
            gram, size = self.gram(dtype)
            try:
                self._eigen[dtype] = (*torch.linalg.eigh(gram), size)
            except torch.linalg.LinAlgError:
                self._eigen[dtype] = None
        return self._eigen[dtype]

    def times(self, right: torch.Tensor, size: float = 1.0) -> torch.Tensor:
        """A product with another matrix.

        Arguments
        ---------
        right : torch.Tensor
            ``A``, ``[n, k]``. Its type is multiplied in.
        size : float
            As of ``gram``.

        Returns
        -------
        product : torch.Tensor
            ``XA / size``, ``[m, k]``.
        """
        product = right.new_empty(self.shape[0], right.shape[1])
        for where, block in self._blocks(right.dtype, size):
            torch.mm(block, right, out=product[where])
        return product

    def whole(self) -> torch.Tensor:
        """All of it, in float64."""
        return self._rows(slice(None), torch.float64)

    def _gram(self, dtype, size):
        """The Gram matrix of ``X / size``, blocks of it added in float64."""
        columns = self.shape[1]
        gram = torch.zeros(
            columns, columns, dtype=torch.float64, device=self.matrix.device
        )
        for _, block in self._blocks(dtype, size):
            gram.add_(block.T @ block)
        return gram.to(dtype)

    def _blocks(self, dtype, size):
        """Blocks of rows of ``X / size``, and which they are."""
        for where in row_blocks(self.shape, suited(self.matrix, BLOCK)):
            if size == 1:
                yield where, self._rows(where, dtype)
            else:
                wide = self._rows(where, torch.float64)
                yield where, (wide / size).to(dtype)

    def _rows(self, where, dtype):
        """Some rows in a type."""
        if isinstance(self.matrix, TaskVector):
            return self.matrix.rows(where, dtype)
        return self.matrix[where].to(dtype)
