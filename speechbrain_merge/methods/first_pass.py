"""A function over the names of a whole model, in threads, with a progress bar.

What a method does in its first pass (``MergeMethod.prepare``) it does to one
tensor after the other, and a model has many.

Example
-------
>>> from speechbrain_merge.methods import Average
>>> Average().each(len, ["weight", "bias"], "count the letters")
[6, 4]

Authors
 * The speechbrain_merge authors 2026
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable

from tqdm import tqdm

from speechbrain_merge.methods.one_thread import single_thread


def each(
    method: Any,
    function: Callable[[str], Any],
    names: list[str],
    description: str,
) -> list:
    """Runs a function over names, on the threads that a method may use.

    Results come in the order of the names whatever the number of threads.

    Arguments
    ---------
    method : MergeMethod
        Its ``workers`` is the number of threads, and its ``show_progress`` says
        whether there is a bar.
    function : callable
        Takes a name.
    names : list of str
        What to run it on.
    description : str
        What the bar says.

    Returns
    -------
    results : list
        One a name.
    """
    bar = partial(
        tqdm,
        total=len(names),
        desc=description,
        disable=not method.show_progress,
    )
    with single_thread() if method.piecewise else nullcontext():
        if method.workers == 1:
            # no hand-overs between threads: they cost more than a small tensor
            return list(bar(map(function, names)))
        with ThreadPoolExecutor(method.workers) as pool:
            return list(bar(pool.map(function, names)))
