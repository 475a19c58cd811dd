"""Parts of a fingerprint that stand for something else than the object given.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from speechbrain_merge.records.file_hashes import is_folder, named_path


@dataclass(frozen=True)
class OwnCode:
    """What functions and classes of a recipe do, as a part of a fingerprint.

    Arguments
    ---------
    things : tuple of object
        As for ``own_code``.
    leave_out : tuple of str
        Names of methods that do not count.
    """

    things: tuple
    leave_out: tuple = ()


@dataclass(frozen=True)
class Attributes:
    """Some attributes of an object, without its class, as a part of a fingerprint.

    Arguments
    ---------
    owner : object
        The object.
    names : frozenset of str
        Those that count.
    """

    owner: Any
    names: frozenset


@dataclass(frozen=True)
class Folder:
    """A folder that counts by what it holds, as a part of a fingerprint.

    Arguments
    ---------
    path : str or Path
        The folder.
    """

    path: Union[str, Path]


@dataclass(frozen=True)
class GivenTo:
    """A value that methods write, as it was given; a part of a fingerprint.

    Arguments
    ---------
    owner : object
        Whose attribute it is.
    name : str
        Of the attribute.
    value : object
        The value that is there now.
    """

    owner: Any
    name: str
    value: Any


def has_folders(value: Any) -> bool:
    """Whether ``with_folders`` found a folder.

    Arguments
    ---------
    value : object
        What it gave.

    Returns
    -------
    bool
    """
    if type(value) is types.SimpleNamespace:
        value = vars(value)
    if type(value) is dict:
        value = list(value.values())
    if type(value) is list:
        return any(map(has_folders, value))
    return isinstance(value, Folder)


def with_folders(value: Any, bare: bool = True) -> Any:
    """A value in which texts that name folders are ``Folder``.

    Arguments
    ---------
    value : object
        A text, or plain containers and namespaces of texts; others stay.
    bare : bool
        Whether a text that is a single word may name a folder. In containers it
        does not, as words that are said may be called like one.

    Returns
    -------
    object
    """
    if isinstance(value, (str, Path)):
        named = bare or isinstance(value, Path) or os.sep in value
        if named and is_folder(value):
            return Folder(named_path(str(value)))
        return value
    if type(value) in (list, tuple):
        return [with_folders(each, False) for each in value]
    if type(value) is dict:
        return {key: with_folders(each, False) for key, each in value.items()}
    if type(value) is types.SimpleNamespace:
        return types.SimpleNamespace(**with_folders(vars(value)))
    return value
