"""The domains that the YAML of a training lists, and where their files are.

A YAML says it by ``domain_files``; see ``study/domain_files.py``.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Iterator, Mapping
from typing import Optional

from speechbrain_merge.study.axes import DOMAIN
from speechbrain_merge.study.trainings import FILES, Training


def domains_of(
    training: Training, tree: Mapping, data_folder: Optional[str] = None
) -> Iterator[tuple]:
    """The domains that a YAML lists, and where their files are.

    Arguments
    ---------
    training : Training
        Whose YAML it is.
    tree : dict
        The YAML as plain data, with ``domain_files``.
    data_folder : str, optional
        The data folder, where the YAML itself makes it.

    Yields
    ------
    key : str
        Of the YAML, which lists domains.
    pattern : str
        The path of a domain's file, with ``{domain}``. Nothing is given
        where the data folder is not known.
    domain : str
        One of the list.
    """
    for key, pattern in _patterns(training, tree, data_folder).items():
        for domain in _listed(training, tree, key):
            yield key, pattern, domain


def _patterns(
    training: Training, tree: Mapping, data_folder: Optional[str]
) -> dict:
    """Key of the YAML that lists domains to the path of their files."""
    patterns, where = tree[FILES], f"{training.hparams}: `{FILES}`"
    if not isinstance(patterns, Mapping):
        raise ValueError(
            f"{where} is {patterns!r}; expected keys that list domains, each "
            "with the path of a domain's file."
        )
    for key, pattern in patterns.items():
        if key not in tree:
            raise ValueError(f"{where}: the YAML has no list `{key}`.")
        if not isinstance(pattern, str) or DOMAIN not in pattern:
            raise ValueError(
                f"{where}: `{key}` is {pattern!r}; expected a path with "
                f"{DOMAIN} in it."
            )
    folder = tree.get("data_folder", "")
    if not isinstance(folder, str):
        folder = data_folder  # it is made while the YAML is loaded
    if folder is None:
        return {}
    return {
        key: os.path.join(folder, pattern) for key, pattern in patterns.items()
    }


def _listed(training, tree, key):
    """The domains that a key of the YAML lists; none where it is empty."""
    domains = tree[key] or []
    if not isinstance(domains, (list, tuple)):
        raise ValueError(
            f"{training.hparams}: `{key}` is {domains!r}; expected a list of "
            "domains."
        )
    return [str(domain) for domain in domains]
