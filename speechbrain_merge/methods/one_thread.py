"""Decompositions on one thread each, several side by side.

LAPACK on matrices of a few hundred rows gains little from more threads, its
results would depend on their number, and there are always several matrices to
work on at once.

Example
-------
>>> from speechbrain_merge.methods.one_thread import spread
>>> spread(lambda number: number**2, [1, 2, 3], threads=2)
[1, 4, 9]

Authors
 * The speechbrain_merge authors 2026
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable

import torch

_threads_lock = threading.Lock()
_inside = []  # one entry for each thread that is in single_thread now
_outside = [0]  # the number of threads that torch had before the first


@contextmanager
def single_thread() -> Iterator[None]:
    """Torch works on one thread inside, in the calling thread.

    Torch keeps this number for each thread, but gives new threads the last
    one that was set anywhere; so what was there before the first thread came
    in is kept, and set again by each that leaves.
    """
    with _threads_lock:
        if not _inside:
            _outside[0] = torch.get_num_threads()
        _inside.append(True)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            _inside.pop()
            torch.set_num_threads(_outside[0])


def spread(
    function: Callable[[Any], Any], items: Sequence, threads: int = 1
) -> list:
    """Runs a function over items, each on one thread, several side by side.

    Arguments
    ---------
    function : callable
        Takes an item.
    items : list
        What to run it on.
    threads : int
        How many at once. The results do not depend on it.

    Returns
    -------
    results : list
        In the order of the items.
    """
    threads = min(threads, len(items))
    if threads <= 1:
        with single_thread():
            return [function(item) for item in items]
    pool = ThreadPoolExecutor(
        threads, initializer=lambda: torch.set_num_threads(1)
    )
    with single_thread(), pool:
        return list(pool.map(function, items))
