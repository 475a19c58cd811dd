"""The versions of the installed packages that code builds on.

A score holds for the packages that decoded: another version of SpeechBrain or of
transformers may decode in another way. Those that a recipe imports count, and
those that they require, so that an upgrade of anything else scores nothing again.

A package that was installed from a repository counts with its commit, and a
checkout of SpeechBrain that is used in place (``pip install -e``) with the text
of its modules, as it may be edited under one version.

Example
-------
>>> sorted({"torch", "numpy"} - set(versions_with(["speechbrain"])))
[]
>>> list(versions_with(["os"]))
['python']

Authors
 * The speechbrain_merge authors 2026
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from speechbrain_merge.records.file_hashes import file_fingerprint
from speechbrain_merge.records.recipe_modules import is_installed

_BUILD = re.compile(r"\+(cpu|cu\d+|rocm[\d.]+|xpu)$")
_OURS = "speechbrain_merge"


def versions_with(packages: Iterable[str]) -> dict:
    """The versions of packages, and of those that they require.

    Arguments
    ---------
    packages : list of str
        Names that are imported. Those of Python itself, and of what is not
        installed, have no version.

    Returns
    -------
    dict
        Name of a distribution to its version, in order; and that of Python, as
        far as the language goes.
    """
    known = _distributions()
    found = {"python": "{}.{}".format(*sys.version_info)}
    waiting = [name for each in packages for name in known.get(each, ())]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        required = _required(name)
        if required is not None:
            found[name] = _version(name)
            waiting += required
    return dict(sorted(found.items()))


@functools.cache
def version_of(package: str) -> str:
    """The version of what a class or function is from.

    Arguments
    ---------
    package : str
        The name that is imported.

    Returns
    -------
    str
        Empty for Python's own and for a recipe's.

    Example
    -------
    >>> version_of("collections")
    ''
    >>> version_of("numpy") == version_of("torch")
    False
    """
    names = _distributions().get(package, ())
    return " ".join(_version(name) for name in sorted(names))


@functools.cache
def _distributions():
    """Names that are imported to the distributions that they are from."""
    found: dict = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]
        if name is None:  # what an interrupted installation left
            continue
        told = (each.read_text("top_level.txt") or "").split()
        names = told or {
            file.parts[0].partition(".")[0] for file in each.files or ()
        }
        for top in names:
            found.setdefault(top, set()).add(_normal(name))
    # on the path, without the record of an installation
    found.setdefault("speechbrain", {"speechbrain"})
    return found


def _normal(name):
    return re.sub(r"[-_.]+", "_", name).lower()


@functools.cache
def _required(name):
    """Names of what a distribution requires here; None where it is not there."""
    try:
        lines = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return [] if name == "speechbrain" else None
    found = []
    for line in lines:
        try:
            each = Requirement(line)
        except InvalidRequirement:
            continue
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            found.append(_normal(each.name))
    return found


@functools.cache
def _version(name):
    """The version of a distribution, and what tells it from others of that one."""
    try:
        found = metadata.distribution(name)
        # the same release for another device is the same
        version = _BUILD.sub("", found.version)
        origin = json.loads(found.read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        version, origin = "not installed", {}
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    text = _text_in_place(name) if name != _OURS else ""
    return " ".join(filter(None, (name, version, commit, text)))


def _text_in_place(name):
    """A hash of the modules of a package that is used where it is edited.

    Of SpeechBrain; all others are taken for a recipe's, and their modules count.
    """
    spec = importlib.util.find_spec(name) if name == "speechbrain" else None
    if spec is None or not spec.origin or is_installed(spec.origin):
        return ""
    whole, rows = os.path.dirname(spec.origin), []
    for folder, _, files in os.walk(whole):
        rows += [
            (os.path.relpath(path, whole), file_fingerprint(path))
            for path in (os.path.join(folder, file) for file in files)
            if path.endswith(".py")
        ]
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()
