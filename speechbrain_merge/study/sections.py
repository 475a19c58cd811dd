"""The kinds of values in a study's YAML, checked before anything is read.

What a section means is checked where it is used. Here it is made sure that a
list is a list and a name is a name, so that the message says which key is
wrong.

Example
-------
>>> check_sections({"domains": ["a"], "seeds": "many"})
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: the study, key 'seeds': expected a list, got 'many'

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path

from speechbrain_merge.records.checked import (
    either,
    fields,
    listed,
    mapped,
    number,
    optional,
    some,
    text,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.report.hub import check_about

_name = text(1000)
_names = listed(_name)
_one_or_more = either(_name, _names)


def _settings(value, where):
    """Overrides: a mapping from text to anything, objects too."""
    if not isinstance(value, Mapping):
        raise RecordError(
            f"{where}: expected keys and values, got {shown(value)}"
        )
    for key in value:
        _name(key, f"{where}, a key")
    return value


def _path(value, where):
    """A path."""
    return value if isinstance(value, Path) else _name(value, where)


def _tests(value, where):
    """Test sets, perhaps in named groups."""
    check = mapped(_names) if isinstance(value, Mapping) else _names
    return check(value, where)


def _card(value, where):
    """What is said of a model for the Hub."""
    return check_about(value, where)


def _any(value, where):
    """Anything, objects too."""
    return value


_model = fields(
    {},
    {
        "align": _name,
        "by_domain": _name,
        "combine": _name,
        "domain": _name,
        "from": _name,
        "group": optional(_name),
        "guide": optional(_name),
        "in_turn": _one_or_more,
        "of": either(_settings, _one_or_more),
        "oracle": _name,
        "otherwise": optional(_name),
        "parameters": optional(_settings),
        "repair": _name,
        "seed_offset": whole(),
        "select_on": optional(_one_or_more),
        "teachers": optional(_one_or_more),
        "test_with": optional(_settings),
        "tests": optional(_one_or_more),
        "to": _name,
        "train": _one_or_more,
        "training": _name,
        "weights": optional(_any),
        "with": optional(_settings),
    },
)

_on_sets = fields({"models": _names}, {"sets": _one_or_more}, "refuse")


def _pair(value, where):
    """Two models, perhaps with the sets that they are compared on."""
    check = _on_sets if isinstance(value, Mapping) else _names
    return check(value, where)


_sections = fields(
    {},
    {
        "models": mapped(_model),
        "trainings": optional(
            mapped(
                fields(
                    {},
                    {
                        "hparams": _path,
                        "with": optional(_settings),
                        "keys": optional(mapped(optional(_name))),
                    },
                )
            )
        ),
        "domains": _names,
        "tests": optional(_tests),
        "seeds": some(whole(0, (1 << 63) - 1)),
        "modes": optional(mapped(optional(_settings))),
        "metric": _name,
        "tracker": optional(_name),
        "evaluate_with": optional(_name),
        "retention": optional(_names),
        "measures": optional(_settings),
        "continual": optional(_settings),
        "compare": listed(_pair),
        "reference": optional(_name),
        "landscapes": optional(mapped(_settings)),
        "exports": _one_or_more,
        "card": optional(_card),
        "only": optional(_one_or_more),
        "jobs": number(0, 10_000),
        "cluster": optional(_settings),
    },
)


def check_sections(given: Mapping) -> None:
    """Raises where a section of a study is of the wrong kind.

    Arguments
    ---------
    given : dict
        Argument of `Study` to its value.

    Raises
    ------
    RecordError
        Naming the key.
    """
    _sections(given, "the study")
