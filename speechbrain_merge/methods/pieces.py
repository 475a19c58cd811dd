"""Tensors, a piece at a time.

Most formulas treat each entry of a tensor alone. They walk over it in pieces
that fit in the processor's cache, which is the fastest way to do several cheap
things to each entry, and needs no memory for what lies between the inputs and
the result. The pieces are always the same ones, so that a method gives the same
bits however the tensors are read.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.pieces import pieces
>>> pieces(70000)
[slice(0, 32768, None), slice(32768, 65536, None), slice(65536, 70000, None)]

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.weights import release

# 128 kB of float32: a piece of each of a few experts and some intermediate
# results stay in the second-level cache. Random numbers are drawn by piece.
PIECE = 1 << 15

# Where nothing depends on the bounds of pieces, they are longer: a thread then
# holds Python's lock for a smaller part of its time, and the others wait less.
BLOCK = 1 << 17

# On a GPU a kernel on fewer takes no longer than its launch. A matrix of 4096
# by 4096 is whole.
ON_GPU = 1 << 24

# A sample of a model is the first 512 of each 32768 entries.
SAMPLE = 1 << 9

# How many pieces are walked over before their memory is let go of: 4 MB of each
# tensor, so that the system is not asked too often.
KEPT = 32


def suited(tensor, step):
    """How many entries a piece has, on the device of a tensor.

    Arguments
    ---------
    tensor : torch.Tensor
        To be gone through.
    step : int
        How many suit a processor's cache.

    Returns
    -------
    step : int
        The same; on a GPU ``ON_GPU``.
    """
    return ON_GPU if tensor.is_cuda else step


def pieces(number, sample=False, step=PIECE):
    """The slices of the pieces of a flat tensor.

    Arguments
    ---------
    number : int
        How many entries the tensor has.
    sample : bool
        Whether to give the short beginnings of the pieces only.
    step : int
        How many entries a piece has.

    Returns
    -------
    pieces : list of slice
    """
    length = SAMPLE if sample else step
    return [
        slice(start, min(start + length, number))
        for start in range(0, number, step)
    ]


def walk(tensors, sample=False, step=None):
    """Iterates over pieces of flat tensors, and releases memory on the way.

    Mapped files would otherwise all be in memory at the end of the walk.

    Arguments
    ---------
    tensors : list of torch.Tensor
        Flat tensors.
    sample : bool
        Whether the short beginnings of the pieces are enough.
    step : int
        How many entries a piece has. By default as suits the device of the
        first.

    Yields
    ------
    where : slice
        The piece.
    """
    begun, step = 0, step or suited(tensors[0], PIECE)
    for where in pieces(tensors[0].numel(), sample, step):
        yield where
        if where.stop - begun >= KEPT * PIECE:
            for tensor in tensors:
                release(tensor[begun : where.stop])
            begun = where.stop
    for tensor in tensors:
        release(tensor[begun:])
