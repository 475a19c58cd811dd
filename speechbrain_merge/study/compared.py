"""Which pairs of a study's models are compared, and on which test sets.

An entry of ``compare`` is a pair of models, the baseline first. It may name the
sets: a claim about what is forgotten is one about the sets without an expert::

    compare:
        - [combined, aode]
        - {models: [combined, aode], sets: retention}
        - {models: [in-turn, aode], sets: [read]}

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional, Union

from speechbrain_merge.study.graph import check_known

DOMAINS, RETENTION = "domains", "retention"


class Compared(NamedTuple):
    """Two models whose difference is tested.

    Arguments
    ---------
    first : str
        The baseline.
    second : str
        What is compared with it.
    sets : tuple of str, optional
        The test sets; by default all that both were tested on. Where there are
        none, as for ``retention`` in a study that tests all domains and no more,
        nothing is compared.
    """

    first: str
    second: str
    sets: Optional[tuple] = None


def read_compared(
    entry: Union[list, tuple, Mapping], models: Iterable, groups: Mapping
) -> Compared:
    """An entry of ``compare``.

    Arguments
    ---------
    entry : list or dict
        Two models, or ``models`` and ``sets``.
    models : iterable of str
        The models of the study.
    groups : dict
        What ``sets`` may name, to its test sets.

    Returns
    -------
    Compared

    Raises
    ------
    ValueError
        Where there are not two models, or a name is not known.

    Example
    -------
    >>> sets = {"read": ["read"], "domains": ["calls", "rooms"]}
    >>> read_compared(["a", "b"], "abc", sets)
    Compared(first='a', second='b', sets=None)
    >>> read_compared(
    ...     {"models": ["a", "b"], "sets": "domains"}, "abc", sets
    ... ).sets
    ('calls', 'rooms')
    """
    pair, asked = entry, None
    if isinstance(entry, Mapping):
        pair, asked = entry["models"], entry.get("sets")
    if len(pair) != 2:
        raise ValueError(f"`compare` has {entry}: expected two models.")
    first, second = pair
    for name in (first, second):
        check_known(name, models, "`compare`")
    if asked is None:
        return Compared(first, second)
    names = [asked] if isinstance(asked, str) else asked
    for name in names:
        check_known(name, groups, "`sets` of `compare`")
    sets = dict.fromkeys(one for name in names for one in groups[name])
    return Compared(first, second, tuple(sets))


def groups_of(study) -> dict:
    """What ``sets`` may name: test sets, groups of them, domains, retention.

    Arguments
    ---------
    study : Study
        With ``domains``, ``tests``, ``means`` and ``retention``.

    Returns
    -------
    dict
        Name to a list of test sets. ``domains`` are the sets of what experts
        were trained on, ``retention`` those on which forgetting is measured.
    """
    retained = study.retention
    if retained is None:
        retained = [name for name in study.tests if name not in study.domains]
    return {
        DOMAINS: [name for name in study.tests if name in study.domains],
        RETENTION: list(retained),
        **study.means,
        **{name: [name] for name in study.tests},
    }
