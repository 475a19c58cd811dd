"""The text of a recipe's modules, as it was when the run began.

A recipe's module is one of no installed package: these go by their versions.
``remember`` looks at all that are there, early in a run, so that a file that is
edited while the run goes on is not taken for what the run computes with.

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from typing import Optional

from speechbrain_merge.records.file_hashes import content_or_name

_PACKAGES = ("speechbrain", "speechbrain_merge")

_texts: dict = {}
"""Module to its ``__spec__`` and text; a module that is reloaded has another."""

_COMPILED = (".pyc", *importlib.machinery.EXTENSION_SUFFIXES)
_extensions: dict = {}
"""Module to itself and the sha256 of its file."""


def is_of_recipe(module: str) -> bool:
    """Whether a module is a recipe's, and of no installed package.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    bool
    """
    if module.partition(".")[0] in (*_PACKAGES, *sys.builtin_module_names):
        return False
    file = _told(sys.modules.get(module), "__file__")
    return file is None or not is_installed(str(file))  # none: of a notebook


def _told(module, name):
    """What a module says of itself; some import others when they are asked."""
    return getattr(module, "__dict__", {}).get(name)


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file is of an installed package, or of Python.

    Arguments
    ---------
    file : str
        Its path.

    Returns
    -------
    bool
    """
    places = _installed()
    return file.startswith(places) or os.path.realpath(file).startswith(places)


@functools.cache
def _installed():
    """Where packages are, with and without links."""
    kinds = ("stdlib", "purelib", "platlib", "scripts")
    places = [sysconfig.get_path(kind) for kind in kinds]
    places += [os.path.realpath(place) for place in places]
    return tuple(place + os.sep for place in places)


def remember() -> None:
    """Reads the text of every module of the recipe that is there by now."""
    for name in list(sys.modules):
        if is_of_recipe(name):
            _text_of(name)
            extension_of(name)


def source_of(module: str) -> Optional[tuple]:
    """The text of a recipe's module, which need not be imported.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    tuple or None
        Text and name of the package; None where it has no text.
    """
    if not module or not is_of_recipe(module):
        return None
    if module in sys.modules:
        text = _text_of(module)
        package = _told(sys.modules[module], "__package__") or ""
    else:
        spec = _spec_of(module)
        file = None if spec is None else spec.origin
        if file is None or not file.endswith(".py") or is_installed(file):
            return None
        text, package = text_in(file), spec.parent
    return None if text is None else (text, package)


def file_of(module: str) -> Optional[str]:
    """The file of a recipe's module, which need not be imported.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    str or None
        None where it is of no recipe, or there is none.
    """
    if not module or not is_of_recipe(module):
        return None
    known = sys.modules.get(module)
    spec = _spec_of(module) if known is None else None
    file = getattr(spec, "origin", None) or _told(known, "__file__")
    return None if file is None or is_installed(str(file)) else str(file)


def extension_of(module: str) -> Optional[str]:
    """The content of a recipe's compiled extension, when it was first looked at.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    str or None
        Its sha256; None where the module is no such extension.
    """
    file = file_of(module)
    if file is None or not file.endswith(_COMPILED):
        return None
    known = sys.modules.get(module)
    if known is None:
        return content_or_name(file)
    if _extensions.get(module, (None,))[0] is not known:
        _extensions[module] = (known, content_or_name(file))
    return _extensions[module][1]


def _spec_of(module):
    """Where a module that is not imported lies; nothing is run."""
    path, spec = None, None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


def is_package(module: str) -> bool:
    """Whether modules of the recipe may lie in one without a text.

    Arguments
    ---------
    module : str
        Its name.

    Returns
    -------
    bool
    """
    if not module or not is_of_recipe(module):
        return False
    known = sys.modules.get(module) or _spec_of(module)
    return bool(
        _told(known, "__path__")
        or getattr(known, "submodule_search_locations", None)
    )


def _text_of(module):
    """The text of an imported module when it was first looked at."""
    known = sys.modules[module]
    spec = _told(known, "__spec__")
    if module in _texts:
        before = _texts[module]
        if before[0] is known and before[1] is spec:
            return before[2]
    file = _told(known, "__file__")
    text = text_in(file) if file and str(file).endswith(".py") else None
    _texts[module] = (known, spec, text)
    return text


def text_in(file: str) -> Optional[str]:
    """The text of a file of Python.

    Arguments
    ---------
    file : str
        Its path.

    Returns
    -------
    str or None
        None where it cannot be read as such.
    """
    try:
        with open(file, "rb") as stream:
            return importlib.util.decode_source(stream.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


remember()
