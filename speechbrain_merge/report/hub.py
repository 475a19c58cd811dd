"""The first lines of a model card, which the Hugging Face Hub reads.

A card begins with YAML between two lines ``---``. From it the Hub knows what a
model came from, what it does, in which language, under which licence, and how
well: the ``model-index`` [1]. ``EvalResult`` and ``ModelCard`` of
``huggingface_hub`` read what is written here.

What was merged is in the record of the merge. The rest a person has to say::

    about = {
        "base_model": "openai/whisper-small",
        "language": "en",
        "license": "apache-2.0",
        "datasets": {
            "clean": {
                "id": "openslr/librispeech_asr",
                "config": "clean",
                "split": "test",
            }
        },
    }

Nothing is guessed: without a licence, none is written.

Example
-------
>>> record = {"method": "ties"}
>>> about = {"language": "en", "base_model": "openai/whisper-small"}
>>> print(front_matter(record, "merged", about=about), end="")
---
language:
- "en"
library_name: "speechbrain"
pipeline_tag: "automatic-speech-recognition"
tags:
- "speechbrain"
- "merge"
- "ties"
base_model:
- "openai/whisper-small"
base_model_relation: "merge"
---

References
----------
[1] https://github.com/huggingface/hub-docs/blob/main/modelcard.md

Authors
 * The speechbrain_merge authors 2026
"""

import re
from collections.abc import Mapping
from typing import Any, Optional

from speechbrain_merge.evaluation import rate_of
from speechbrain_merge.records.checked import (
    fields,
    listed,
    mapped,
    one_of,
    some,
    text,
)
from speechbrain_merge.records.errors import RecordError, shown
from speechbrain_merge.report.leaderboard import TASKS
from speechbrain_merge.report.quoted_yaml import quoted_yaml
from speechbrain_merge.report.results import check_results, metric_of, row_of

TASK = "automatic-speech-recognition"

# As a folder of the Hub's cache is called
_CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/[^/]+")
_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def _matching(pattern, expected):
    """A check of text of a certain form."""

    def check(value, where):
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise RecordError(
                f"{where}: expected {expected}, got {shown(value)}"
            )
        return value

    return check


def _one_or_more(check):
    """One text, or a list of them."""
    several = some(check)

    def checked(value, where):
        return several([value] if isinstance(value, str) else value, where)

    return checked


_hub_name = _matching(_NAME, "a name on the Hub, such as openai/whisper-small")
_about = fields(
    {},
    {
        "base_model": _one_or_more(_hub_name),
        "language": _one_or_more(
            _matching(_LANGUAGE, "a code of ISO 639, such as en")
        ),
        "license": _matching(_LICENCE, "a licence as the Hub calls it"),
        "license_name": text(200),
        "license_link": text(1000),
        "tags": listed(text(100), 100),
        "library_name": text(100),
        "datasets": mapped(
            fields(
                {"id": _hub_name},
                {
                    "config": text(200),
                    "split": text(200),
                    "revision": text(200),
                },
                unknown="refuse",
            )
        ),
        "leaderboard": mapped(one_of(*TASKS)),
    },
    unknown="refuse",
)


def check_about(about: Any, where: str = "the key `card`") -> dict:
    """What a person says of a model, checked.

    Arguments
    ---------
    about : dict
        ``base_model``, ``language``, ``license``, ``license_name``,
        ``license_link``, ``tags``, ``library_name``, ``datasets`` (test set to
        ``id``, ``config``, ``split`` and ``revision`` on the Hub) and
        ``leaderboard`` (see ``report/leaderboard.py``); all may be left out.
    where : str
        What errors call it.

    Returns
    -------
    about : dict

    Raises
    ------
    RecordError
        Naming the key, and what was expected there.

    Example
    -------
    >>> check_about({"language": "English"})
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: the key `card`, key 'language', entry 1: expected a code of ISO 639, such as en, got 'English'
    """
    found = _about(about, where)
    if found.get("license") == "other" and not {
        "license_name",
        "license_link",
    } <= set(found):
        raise RecordError(
            f"{where}, key 'license': 'other' needs `license_name` and "
            "`license_link`"
        )
    return found


def front_matter(
    record: Mapping,
    title: str,
    results: Optional[Mapping] = None,
    row: Optional[str] = None,
    about: Optional[Mapping] = None,
) -> str:
    """The YAML at the beginning of a card.

    Arguments
    ---------
    record : dict
        Provenance, as ``speechbrain_merge.engine.provenance`` gives it.
    title : str
        What the model is called.
    results : dict, optional
        See ``report/results.py``. A set's ``interval`` is written where it has
        one.
    row : str, optional
        The row of these results that is this model's.
    about : dict, optional
        See ``check_about``.

    Returns
    -------
    text : str
        With the lines ``---`` around it.
    """
    about = check_about(about or {})
    content = {
        key: about[key]
        for key in ("language", "license", "license_name", "license_link")
        if key in about
    }
    content["library_name"] = about.get("library_name", "speechbrain")
    content["pipeline_tag"] = TASK
    tags = ["speechbrain", "merge", record["method"], *about.get("tags", ())]
    content["tags"] = list(dict.fromkeys(tags))
    base_model = about.get("base_model") or hub_names(record)
    if base_model:
        content["base_model"] = base_model
        content["base_model_relation"] = "merge"
    if results is not None and row is not None:
        check_results(results)
        known = about.get("datasets", {})
        if known:
            names = [each["id"] for each in known.values()]
            content["datasets"] = list(dict.fromkeys(names))
        content["metrics"] = [metric_of(results).lower()]
        found = _index(results, row, known)
        content["model-index"] = [{"name": title, "results": found}]
    return f"---\n{quoted_yaml(content)}---\n"


def hub_names(record: Mapping) -> list[str]:
    """The names on the Hub of what was merged, as far as paths show them.

    Arguments
    ---------
    record : dict
        Provenance of a merge.

    Returns
    -------
    names : list of str
        Of the sources and the base, each once.

    Example
    -------
    >>> path = (
    ...     "/cache/models--openai--whisper-tiny/snapshots/16/model.safetensors"
    ... )
    >>> hub_names({"sources": [{"path": "a.pt"}], "base": {"path": path}})
    ['openai/whisper-tiny']
    """
    models = [*(record.get("sources") or []), record.get("base") or {}]
    names = []
    for model in models:
        found = _CACHED.search(model.get("path") or "")
        if found:
            name = found[1].replace("--", "/", 1)
            if _NAME.fullmatch(name):
                names.append(name)
    return list(dict.fromkeys(names))


def _index(results, row, datasets):
    """An entry for each set on which the model was tested."""
    metric = metric_of(results)
    found = []
    counts = row_of(results, row)["sets"]
    for name in results["test_domains"]:
        rate = rate_of(counts[name])
        if rate is None:
            continue
        known = datasets.get(name, {})
        dataset = {"type": known.get("id", name), "name": name}
        for key in ("config", "split", "revision"):
            if key in known:
                dataset[key] = known[key]
        measured = {
            "type": metric.lower(),
            "name": f"Test {metric}",
            "value": round(rate, 2),
        }
        interval = counts[name].get("interval")
        if interval is not None:
            low, high = round(interval["low"], 2), round(interval["high"], 2)
            level = interval.get("level", 0.95)
            measured["name"] += f" ({100 * level:g} % interval {low} to {high})"
            measured["args"] = {
                "confidence_level": level,
                "low": low,
                "high": high,
            }
        found.append(
            {
                "task": {
                    "type": TASK,
                    "name": "Automatic Speech Recognition",
                },
                "dataset": dataset,
                "metrics": [measured],
            }
        )
    return found
