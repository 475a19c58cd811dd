"""Words for values without parts: numbers, texts, paths, classes.

See ``speechbrain_merge.records.object_reader``.

Authors
 * The speechbrain_merge authors 2026
"""

import enum
import os
import types
from collections.abc import Iterable
from numbers import Number
from typing import Any, Optional

import numpy
import torch

from speechbrain_merge.records.file_hashes import (
    content_of,
    matching_files,
    named_path,
)
from speechbrain_merge.records.object_content import is_rich
from speechbrain_merge.records.own_functions import is_own
from speechbrain_merge.records.packages import version_of
from speechbrain_merge.records.recipe_modules import is_of_recipe


def plain_words(value: Any, folders: Iterable[str] = ()) -> Optional[str]:
    """Words for a value without parts.

    Arguments
    ---------
    value : object
        Any.
    folders : list of str
        Absolute: folders that may be moved.

    Returns
    -------
    str or None
        None for a value with parts. A text that names a file counts by its
        content, and any other path as a path.

    Example
    -------
    >>> plain_words("one"), plain_words(1), plain_words(["one"])
    ('text one', 'number 1', None)
    """
    if is_code(value) or is_rich(value):
        return None
    if value is None or isinstance(value, (bool, torch.dtype)):
        return f"constant {value}"
    if isinstance(value, (str, os.PathLike)):
        return _words_of_text(
            os.fspath(value), isinstance(value, os.PathLike), folders
        )
    if isinstance(value, numpy.generic):
        return plain_words(value.item(), folders)
    if isinstance(value, Number):
        return f"number {value!r}"
    if isinstance(value, torch.device):
        return "a device"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, type):
        return f"class {full_name(value)}"
    return None


def _words_of_text(text, is_path, folders):
    """Words for a text; what it names if that is a file or a folder."""
    if isinstance(text, bytes):
        return f"bytes {text!r}"
    if len(text) > 4096 or "\n" in text:
        return f"text {text}"
    place = named_path(text)
    whole = os.path.abspath(place)
    if os.sep not in place and not os.path.isfile(place):
        return f"text {text}"
    for folder in folders:
        if whole == folder or whole.startswith(folder + os.sep):
            return f"in the results: {os.path.relpath(whole, folder)}"
    if os.path.isfile(place):
        try:
            return f"file {content_of(place)}"
        except OSError:  # not for us to read
            return f"text {text}"
    if files := matching_files(place):
        return f"files {files}"
    if os.path.isdir(place) or (is_path and os.path.isabs(place)):
        return "a path"
    if os.path.isabs(place) and os.path.exists(_first_folder(place)):
        return "a path"  # of what is made later, in a folder that may move
    # a name on the hub, a word with a slash, or /between/ two
    return f"text {text}"


def is_code(value: Any) -> bool:
    """Whether a value is a class or a module of a recipe, or one of the values
    that such a class has.

    Arguments
    ---------
    value : object
        Any.

    Returns
    -------
    bool
    """
    if isinstance(value, enum.Enum):
        return True
    if isinstance(value, types.ModuleType):
        return is_of_recipe(value.__name__)
    return isinstance(value, type) and is_own(value)


def full_name(thing: Any) -> str:
    """A class or function, and the version of the package that it is from.

    Arguments
    ---------
    thing : class or function
        Of any module; that of a script, which is run under any name, is left out.

    Returns
    -------
    str

    Example
    -------
    >>> import json
    >>> full_name(json.JSONDecoder)
    'json.decoder.JSONDecoder'
    """
    module = getattr(thing, "__module__", None) or ""
    module = "" if module == "__main__" else module
    version = version_of(module.partition(".")[0])
    return f"{module}.{thing.__qualname__} {version}".rstrip()


def _first_folder(text):
    """The folder below the root that an absolute path begins with."""
    return os.sep + text.lstrip(os.sep).partition(os.sep)[0]
