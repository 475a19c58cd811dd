"""Whether the source of an export stays as it is while it is exported.

An export opens its source more than once: for its tensors, its numbers of
attention heads, its record and its digest. A file that is replaced in between
would give a folder with the weights of one model and the record of another. So
an export notes the state of the files when it begins, and looks again when the
folder is complete, before it takes its place.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.records.file_hashes import file_state

_begun: ContextVar[Optional[dict]] = ContextVar("_begun", default=None)


def steady(name: str) -> Callable:
    """Decorates an export, whose source has to stay as it is meanwhile.

    Arguments
    ---------
    name : str
        Of the argument that is the source.

    Returns
    -------
    callable
        A decorator.
    """

    def decorate(export):
        signature = inspect.signature(export)

        @functools.wraps(export)
        def watched(*arguments, **keywords):
            given = signature.bind(*arguments, **keywords).arguments
            with _watched(given.get(name)):
                return export(*arguments, **keywords)

        return watched

    return decorate


def check_steady() -> None:
    """Raises where the source of the export was replaced meanwhile.

    Raises
    ------
    ValueError
        Naming the file.
    """
    for path, before in (_begun.get() or {}).items():
        if _state(path) != before:
            raise ValueError(
                f"{path} was replaced, written to or removed while it was "
                "exported: the folder would have parts of two models. Export "
                "it again, when nothing writes there."
            )


@contextmanager
def _watched(source: Any) -> Iterator[None]:
    token = _begun.set({path: _state(path) for path in _files(source)})
    try:
        yield
    finally:
        _begun.reset(token)


def _files(source):
    """The files of a source: itself, or those that lie in a folder."""
    source = getattr(source, "path", source)
    if not isinstance(source, (str, os.PathLike)):
        return []
    path = Path(source)
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.is_file())
    return [path] if path.is_file() else []


def _state(path):
    """What changes when another file takes the place, or it is written."""
    state = file_state(path)
    return state and state[:4]  # the last time is of a new link to it, too
