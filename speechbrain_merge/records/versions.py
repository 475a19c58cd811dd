"""The versions of what takes part in a merge.

Example
-------
>>> sorted(versions())
['python', 'safetensors', 'speechbrain', 'speechbrain_merge', 'torch']

Authors
 * The speechbrain_merge authors 2026
"""

import platform
from importlib.metadata import PackageNotFoundError, version

from speechbrain_merge.version import __version__


def versions() -> dict:
    """The versions of Python, of this package, and of those it builds on.

    Returns
    -------
    dict
        Name to version, read from what is installed: nothing is imported.
    """
    found = {
        "python": platform.python_version(),
        "speechbrain_merge": __version__,
    }
    for package in ("speechbrain", "torch", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # in a folder on the path, without the record of an installation
            found[package] = "not installed"
    return found
