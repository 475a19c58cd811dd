"""A fingerprint of live objects: the same settings, the same sixty-four letters.

Finished work is found by a fingerprint of everything that decided it. For a
recipe that is everything that its YAML made: numbers and words, lists, the
objects of ``!new:`` with the values inside them, the functions of ``!name:``,
and the files that these point to. The text of the YAML alone would not do. It
does not know what was overridden on the command line or set by the script, and
a Brain never sees it. So the objects themselves are read.

An object is its class and its settings (see
``speechbrain_merge.records.object_settings``); a class of the recipe, rather than
of an installed package, also by what its code does. The state that its methods
write does not count, but as a recipe gave it where that is known (see
``speechbrain_merge.records.given_state``). Tensors and arrays count by value,
wherever they are; a file by its content; so does a folder that an object of the
recipe holds. Other folders, and a missing file below one that is there, do not
count; a text that begins with a slash and is no such path is a text. So the
fingerprint is the same in a new process, on another device, and after the
results were moved.

Example
-------
>>> class Decoder:
...     def __init__(self, beam):
...         self.beam, self.decoded = beam, 0
...
...     def decode(self):
...         self.decoded += 1
>>> decoder = Decoder(8)
>>> before = fingerprint({"decoder": decoder, "words": ["one", "two"]})
>>> decoder.decode()
>>> before == fingerprint({"decoder": decoder, "words": ["one", "two"]})
True
>>> decoder.beam = 16
>>> before == fingerprint({"decoder": decoder, "words": ["one", "two"]})
False

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Optional

import numpy
import torch

from speechbrain_merge.records.given_state import GivenState
from speechbrain_merge.records.object_reader import ObjectReader

_DEEPEST = 10_000
"""Calls within one another, of Python's."""


def fingerprint(
    value: Any,
    folders: Iterable = (),
    skip: Optional[Callable] = None,
    state: Optional[GivenState] = None,
) -> str:
    """The fingerprint of any object.

    Arguments
    ---------
    value : object
        What to know again: plain data, modules, objects of any class.
    folders : list of str or Path
        Folders that may be moved. A path below one counts by its place in it,
        and not by the content of the file, which may be a result.
    skip : callable, optional
        ``skip(object) -> bool``: True for what does not count, wherever it is
        found.
    state : GivenState, optional
        What is known of the state that objects were given.

    Returns
    -------
    str
        64 hexadecimal digits.

    Example
    -------
    >>> fingerprint([1, 2.0, "a"]) == fingerprint((1, 2.0, "a"))
    True
    >>> fingerprint({"a": 1}) == fingerprint({"a": True})
    False
    """
    roots = [os.path.abspath(folder) for folder in folders]
    with _deeper():
        return ObjectReader(roots, skip, state).digest(value)


def look_at(
    value: Any, folders: Iterable, skip: Optional[Callable], state: GivenState
) -> list:
    """Tells a state of everything that objects hold.

    Arguments
    ---------
    value, folders, skip
        As for ``fingerprint``.
    state : GivenState
        Which is looking.

    Returns
    -------
    list
        The objects by whose ids the state is known: while they live, these are
        unique.
    """
    roots = [os.path.abspath(folder) for folder in folders]
    reader = ObjectReader(roots, skip, state)
    with _deeper():
        reader.digest(value)
    return reader.owners


@contextlib.contextmanager
def _deeper():
    """Objects may hold one another, and functions a table of themselves."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def plain(value: Any) -> Any:
    """A value whose text tells it from others.

    Arguments
    ---------
    value : object
        A value of a dataset's row, for instance.

    Returns
    -------
    object
        The value itself; of tensors and arrays, whose text leaves out most of
        the numbers, the fingerprint.

    Example
    -------
    >>> plain(1.5)
    1.5
    >>> plain(torch.zeros(2000)) == plain(1e-6 * torch.ones(2000))
    False
    """
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return fingerprint(value)
    return value
