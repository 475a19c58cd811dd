"""Names with axes: one entry of a YAML that stands for several models.

``{domain}`` in the name of a model makes one for each domain, ``{draw}`` one
for each set of sampled hyperparameters, and ``{seed}`` stands for the seed of
the study that is being run. In a list of members, ``{each}`` stands for all
domains and ``{draws}`` for all draws::

    "{domain}-{draw}":
        train: "{domain}"
    mact:
        merge: average
        of: "{each}-{draws}"

Authors
 * The speechbrain_merge authors 2026
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

DOMAIN, DRAW, SEED = "{domain}", "{draw}", "{seed}"
EACH, DRAWS = "{each}", "{draws}"


def fill(value: Any, words: Mapping) -> Any:
    """A value of a YAML with the axes in it replaced.

    Arguments
    ---------
    value : object
        Text, or a list or dict that holds text; other objects stay.
    words : dict
        Axis, such as ``{domain}``, to its value. A text that is nothing but an
        axis becomes the value itself, so that a number stays a number.

    Returns
    -------
    object

    Example
    -------
    >>> fill(
    ...     {"csv": "{domain}.csv", "n": ["{seed}"]},
    ...     {"{domain}": "a", "{seed}": 7},
    ... )
    {'csv': 'a.csv', 'n': [7]}
    """
    if isinstance(value, str):
        if value in words:
            return words[value]
        for axis, word in words.items():
            value = value.replace(axis, str(word))
        return value
    if isinstance(value, Mapping):
        return {
            fill(key, words): fill(entry, words) for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [fill(entry, words) for entry in value]
    return value


def expand(
    pattern: str, specification: Any, domains: Sequence, draws: Sequence
) -> Iterator[tuple]:
    """The models that an entry stands for.

    Arguments
    ---------
    pattern : str
        The name in the YAML.
    specification : dict
        What the YAML says of it.
    domains : list of str
        The values of ``{domain}``.
    draws : list of dict
        The values of ``{draw}``: each with a ``name`` and the overrides that
        were drawn.

    Yields
    ------
    name : str
    specification : dict
        With ``{domain}`` and ``{draw}`` filled in.
    settings : dict
        The overrides of the draw.

    Example
    -------
    >>> for found in expand(
    ...     "{domain}-{draw}",
    ...     {"train": "{domain}"},
    ...     ["a"],
    ...     [{"name": "r1", "lr": 1}],
    ... ):
    ...     print(found)
    ('a-r1', {'train': 'a'}, {'lr': 1})
    """
    over_domains = domains if DOMAIN in pattern else [None]
    over_draws = draws if DRAW in pattern else [None]
    if DRAW in pattern and not draws:
        raise ValueError(
            f"Model '{pattern}' has {DRAW} in its name, and the study has no "
            "`draws`: give it a speechbrain_merge.training.RunSampler."
        )
    for domain, draw in itertools.product(over_domains, over_draws):
        words, settings = {}, {}
        if domain is not None:
            words[DOMAIN] = domain
        if draw is not None:
            settings = {k: v for k, v in draw.items() if k != "name"}
            words[DRAW] = draw["name"]
        yield fill(pattern, words), fill(specification, words), settings


def names_of(value: Any, domains: Sequence, draws: Sequence) -> list[str]:
    """A list of names, with one for each domain and draw where it says so.

    Arguments
    ---------
    value : str or list of str
        Names, perhaps with ``{each}`` or ``{draws}``.
    domains : list of str
        All domains.
    draws : list of dict
        All draws.

    Returns
    -------
    list of str

    Example
    -------
    >>> names_of(["{each}", "original"], ["a", "b"], [])
    ['a', 'b', 'original']
    """
    names = []
    for pattern in [value] if isinstance(value, str) else value:
        over_domains = domains if EACH in pattern else [""]
        over_draws = [d["name"] for d in draws] if DRAWS in pattern else [""]
        names += [
            pattern.replace(EACH, domain).replace(DRAWS, draw)
            for domain, draw in itertools.product(over_domains, over_draws)
        ]
    return names


def check_filled(value: Any, where: str) -> None:
    """Raises where an axis is left in a value.

    Arguments
    ---------
    value : object
        A filled value.
    where : str
        The YAML key, for the message.

    Raises
    ------
    ValueError
        Naming the axis.
    """
    if isinstance(value, str):
        left = re.findall(r"\{(?:domain|draw|seed|each|draws)\}", value)
        if left:
            raise ValueError(
                f"{where}: {left[0]} in {value!r} has no value here; it must "
                "be in the name of the model, too."
            )
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            check_filled(key, where)
            check_filled(entry, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            check_filled(entry, where)
