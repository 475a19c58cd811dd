"""The k-th largest value of a whole model, exactly, without holding the model.

TIES keeps the largest 20 % of a task vector: it needs the one magnitude that
separates them from the rest. A model may be larger than memory, so the value is
found by reading it a few times. Floating-point numbers of one sign are ordered
like the integers that their bits spell, which turns the search into narrowing
an interval of integers: each pass counts how many values lie above the interval
and makes a histogram of those inside, and the interval shrinks to the one bin
that holds the k-th. Where it starts does not matter for the answer, only for
the number of passes: a small sample of the model mostly lets it start so narrow
that one pass is enough.

Example
-------
>>> import torch
>>> from speechbrain_merge.methods.thresholds import order_statistics
>>> values = torch.tensor([3.0, -1.0, 2.0, 0.5])
>>> def read(see, sample):
...     see(0, values)  # a real model would be read in many pieces
>>> order_statistics(read, [(0, 1), (0, 3)], 4, torch.float32)
[3.0, 0.5]

Authors
 * The speechbrain_merge authors 2026
"""

import threading

import numpy as np
import torch

# Most bins of a histogram, as a power of two: 8 MB, little beside a model, and
# enough to tell apart all float32 values between two neighbouring percentiles.
# A small model needs fewer.
MOST_BINS, FEWEST_BINS = 20, 10

# How far from the sampled quantile the interval reaches, as a share of all
# entries, and the least number of entries for which sampling pays.
MARGIN = 0.01
WORTH_SAMPLING = 1 << 20


def order_statistics(read, wanted, number, dtype, signed=True):
    """Largest values of given ranks, each over all that a row of values has.

    Arguments
    ---------
    read : callable
        Called as ``read(see, sample)``; calls ``see(row, values)`` for all
        values of all rows, in pieces, in any order and from any thread. With
        ``sample=True`` a small part of the values is enough.
    wanted : list of tuple
        Pairs of row (an int) and rank: 1 asks for the largest value of the
        row, ``number`` for the smallest.
    number : int
        How many values a row has.
    dtype : torch.dtype
        ``torch.float32`` or ``torch.float64``: the type of the values.
    signed : bool
        Whether values may be negative; magnitudes are read faster.

    Returns
    -------
    statistics : list of float
        One for each pair in ``wanted``.

    Raises
    ------
    ValueError
        For a rank that does not exist.
    """
    for row, rank in wanted:
        if not 1 <= rank <= number:
            raise ValueError(f"There is no rank {rank} among {number} values.")
    searches = [_Search(row, rank, number, dtype) for row, rank in wanted]
    if number >= WORTH_SAMPLING:
        _start_near(read, searches, dtype, signed)
    lock = threading.Lock()
    while any(search.value is None for search in searches):
        active = [search for search in searches if search.value is None]
        for search in active:
            search.begin()

        def see(row, values, active=active):
            bits = _ordered_bits(values, dtype, signed)
            for search in active:
                if search.row == row:
                    search.count(bits, lock)

        read(see, False)
        for search in active:
            search.narrow()
    return [_value(search.value, dtype, signed) for search in searches]


def at_least(vector, threshold):
    """The entries of at least a magnitude; the others become zero.

    Entries exactly at the threshold are kept, all of them.

    Arguments
    ---------
    vector : torch.Tensor
        Floating point.
    threshold : float
        A magnitude.

    Returns
    -------
    kept : torch.Tensor

    Example
    -------
    >>> at_least(torch.tensor([1.0, -2.0, 3.0]), 2.0)
    tensor([ 0., -2.,  3.])
    """
    if threshold <= 0:
        return vector
    # hardshrink, the one fused operation for this, keeps what is larger: so
    # ask for what is larger than the next number below.
    kind = np.float64 if vector.dtype == torch.float64 else np.float32
    reached = kind(threshold)
    if float(reached) < threshold:
        reached = np.nextafter(reached, kind(np.inf))
    below = np.nextafter(reached, kind(0))
    return torch.nn.functional.hardshrink(vector, float(below))


def kth_largest(values, rank, overwrite=False):
    """The k-th largest value of one tensor.

    Arguments
    ---------
    values : torch.Tensor
        Any shape.
    rank : int
        1 for the largest.
    overwrite : bool
        Whether the values may be put in another order, which saves a copy.

    Returns
    -------
    value : float

    Example
    -------
    >>> kth_largest(torch.tensor([1.0, 5.0, 3.0]), 2)
    3.0
    """
    if values.is_cuda:
        place = values.numel() - rank + 1
        return float(values.reshape(-1).kthvalue(place).values)
    flat = values.reshape(-1).numpy()
    place = flat.size - rank
    if not overwrite:
        flat = flat.copy()
    flat.partition(place)
    return float(flat[place])


class _Search:
    """An interval of bit patterns that holds the value of one rank."""

    def __init__(self, row, rank, number, dtype):
        self.row, self.rank, self.number = row, rank, number
        self.word = np.uint64 if dtype == torch.float64 else np.uint32
        self.top = int(np.iinfo(self.word).max)
        self.first, self.last = 0, self.top
        self.value = None

    def begin(self):
        """Empty counts for another pass."""
        width = self.last - self.first + 1
        bins = max(self.number.bit_length(), FEWEST_BINS)
        self.shift = max((width - 1).bit_length() - min(bins, MOST_BINS), 0)
        self.above = 0
        self.bins = np.zeros(((width - 1) >> self.shift) + 1, dtype=np.int64)

    def count(self, bits, lock):
        """Counts a piece of values."""
        above = np.count_nonzero(bits > self.word(self.last))
        offsets = bits - self.word(self.first)
        inside = np.flatnonzero(offsets <= self.word(self.last - self.first))
        offsets = offsets[inside] >> self.word(self.shift)
        with lock:
            self.above += above
            np.add.at(self.bins, offsets.astype(np.intp), 1)

    def narrow(self):
        """Shrinks the interval to the bin, or moves to where the value is."""
        descending = self.above + np.cumsum(self.bins[::-1])
        if self.rank <= self.above:
            self.first, self.last = self.last + 1, self.top
        elif self.rank > descending[-1]:
            self.first, self.last = 0, self.first - 1
        else:
            skipped = int(np.searchsorted(descending, self.rank))
            place = len(self.bins) - 1 - skipped
            first = self.first + (place << self.shift)
            self.last = min(self.last, first + (1 << self.shift) - 1)
            self.first = first
            if self.first == self.last:
                self.value = self.first
        del self.bins


def _start_near(read, searches, dtype, signed):
    """Starts each search between two percentiles of a sample."""
    rows = {search.row: [] for search in searches}

    def see(row, values):
        if row in rows:
            rows[row].append(_ordered_bits(values, dtype, signed))

    read(see, True)
    for row, seen in rows.items():
        sample = np.sort(np.concatenate(seen))[::-1]
        for search in searches:
            if search.row != row:
                continue
            place = search.rank / search.number * len(sample)
            reach = MARGIN * len(sample)
            if place - reach > 0:
                search.last = int(sample[int(place - reach)])
            if place + reach < len(sample):
                search.first = int(sample[int(place + reach)])


def _ordered_bits(values, dtype, signed):
    """Unsigned integers in the order of the floating-point values."""
    word = torch.int64 if dtype == torch.float64 else torch.int32
    values = values.to(dtype)
    if signed:
        # adding zero turns −0 into +0, which is equal to it with other bits
        bits = (values + 0.0).view(word)
        # larger bits of negative numbers are smaller values: turn all over
        turned = bits >> (63 if dtype == torch.float64 else 31)
        bits = bits ^ (turned | torch.iinfo(word).min)
    else:
        bits = values.contiguous().view(word)
    unsigned = np.uint64 if dtype == torch.float64 else np.uint32
    return bits.numpy().view(unsigned)


def _value(bits, dtype, signed):
    """The floating-point value that an ordered integer stands for."""
    double = dtype == torch.float64
    word, real = (np.uint64, np.float64) if double else (np.uint32, np.float32)
    sign = word(1 << (63 if double else 31))
    bits = word(bits)
    plain = bits
    if signed:
        plain = bits ^ sign if bits & sign else ~bits
    return float(np.array([plain], dtype=word).view(real)[0])
