"""Random numbers that do not depend on who asks first.

A method that drops weights at random must drop the same ones whatever the
order in which tensors are merged, and however many threads merge them. So
there is no stream of random numbers: the numbers for a piece of a tensor of an
expert are a function of the seed and of that place.

Example
-------
>>> from speechbrain_merge.methods.randomness import uniform
>>> uniform(0, 1, "encoder.weight", slice(0, 2))
tensor([0.9925, 0.9620])

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib

import numpy as np
import torch


def uniform(seed, expert, name, where):
    """Uniform numbers in [0, 1) for one place.

    Arguments
    ---------
    seed : int
        The method's seed.
    expert : int
        Position of the expert in the merge.
    name : str
        Name of the tensor.
    where : slice
        The piece of the flat tensor.

    Returns
    -------
    numbers : torch.Tensor
        In float32, of the length of the slice.
    """
    generator = _generator(seed, expert, name, where)
    length = where.stop - where.start
    return torch.from_numpy(generator.random(length, dtype=np.float32))


def normal(seed, expert, name, where):
    """Numbers of the standard normal distribution for one place.

    Arguments
    ---------
    seed : int
        The method's seed.
    expert : int
        Position of the expert in the merge.
    name : str
        Name of the tensor.
    where : slice
        The piece of the flat tensor.

    Returns
    -------
    numbers : torch.Tensor
        In float32, of the length of the slice.

    Example
    -------
    >>> normal(0, 0, "encoder.weight", slice(0, 2))
    tensor([-0.2989, -1.5720])
    """
    generator = _generator(seed, expert, name, where)
    length = where.stop - where.start
    return torch.from_numpy(generator.standard_normal(length, dtype=np.float32))


def _generator(seed, expert, name, where):
    """The generator of one place."""
    place = f"{seed}/{expert}/{where.start}/{name}".encode()
    state = int.from_bytes(hashlib.sha256(place).digest(), "little")
    return np.random.Generator(np.random.SFC64(state))
