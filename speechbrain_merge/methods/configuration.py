"""The parameters of a merge method, from which it can be made again.

A merged file says by this how it was made, and a merge is found again by it.
Files that parameters name (statistics, maps) are known by their content.

Example
-------
>>> from speechbrain_merge.methods import LayerScaled, TaskArithmetic
>>> LayerScaled(TaskArithmetic(), first=0, last=1).configuration()
{'method': {'method': 'task_arithmetic', 'parameters': {'scale': 1.0}}, 'first': 0, 'last': 1}

Authors
 * The speechbrain_merge authors 2026
"""

import inspect
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from speechbrain_merge.records.file_hashes import file_state
from speechbrain_merge.weights import digest
from speechbrain_merge.weights.moved import MAP_SUFFIXES

_LONGEST = 4096


def configuration(method: Any) -> dict[str, Any]:
    """The parameters that made a method.

    Arguments
    ---------
    method : MergeMethod
        Has an attribute for each parameter of its constructor.

    Returns
    -------
    configuration : dict
        Constructor parameter to value; methods inside are given as
        ``{"method": name, "parameters": their configuration}``.
    """
    values = {}
    for parameter in inspect.signature(type(method)).parameters:
        value = getattr(method, parameter)
        if isinstance(value, torch.nn.Module):
            # a method in a method
            value = {"method": value.name, "parameters": configuration(value)}
        elif isinstance(value, torch.Tensor):
            value = value.tolist()
        values[parameter] = value
    return values


def files(method: Any) -> dict[str, str]:
    """The files among the parameters that made a method.

    Arguments
    ---------
    method : MergeMethod
        As for ``configuration``.

    Returns
    -------
    files : dict
        Path, as it was given, to the SHA-256 of its content; in the order of
        the parameters. Of a method in a method as well.

    Example
    -------
    >>> from speechbrain_merge.methods import Fisher
    >>> path = getfixture("tmp_path") / "a.fisher.safetensors"
    >>> _ = path.write_text("statistics")
    >>> method = Fisher(statistics=[str(path), "not/there.safetensors"])
    >>> [(Path(name).name, code[:8]) for name, code in files(method).items()]
    [('a.fisher.safetensors', '49d48431')]
    """
    found: dict = {}
    for path, parameter in _paths(method.configuration()):
        if _is_file(path):
            for file in (path, *_parts(path)):
                found[file] = _digest_once(file, file_state(file))
        elif parameter == "statistics" and os.path.isdir(path):
            found[path] = digest(Path(path))
    return found


def _paths(value: Any, parameter: str = "") -> Iterator[tuple[str, str]]:
    """All texts that may be paths, each with its parameter."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and len(text) < _LONGEST and "\0" not in text:
            yield text, parameter
    elif type(value) is dict:
        for key, each in value.items():
            # Statistics may be by label
            known = parameter == "statistics"
            yield from _paths(each, parameter if known else str(key))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _paths(each, parameter)


def _is_file(path):
    """Whether it is a file, and its name no word that one happens to have."""
    return (os.sep in path or "." in path) and os.path.isfile(path)


def _parts(path):
    """The parts of a map that lie beside it."""
    if Path(path).suffix not in MAP_SUFFIXES:
        return []
    from speechbrain_merge.methods.transport.symmetry_map import parts_beside

    return map(str, parts_beside(path))


@lru_cache(maxsize=256)
def _digest_once(path, state):
    """A search asks for the same files many times."""
    return digest(Path(path))
