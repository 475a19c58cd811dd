"""The records of a pool: what each line and each pointer has to hold.

Everything that is read from a pool passes one of these checks first, so that
the rest of the room works with names that stay in their folder, digests that
are digests, and numbers that are numbers. Keys that are not known are kept:
a later version may write more. Events that are not known are refused, because
they may take something back that an earlier line says.

Example
-------
>>> line = {"event": "removed", "name": "epoch-0001"}
>>> event_record(line, "manifest.jsonl, line 7")
{'name': 'epoch-0001', 'event': 'removed'}
>>> event_record({**line, "name": "../save"}, "manifest.jsonl, line 7")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: manifest.jsonl, line 7, key 'name': expected the plain name of a file, without a folder, got '../save'. Names that lead elsewhere are not followed.

Authors
 * The speechbrain_merge authors 2026
"""

import re

from speechbrain_merge.pool.feature_statistics import statistics_record
from speechbrain_merge.records.checked import (
    anything,
    digest_text,
    fields,
    file_name,
    listed,
    mapped,
    number,
    one_of,
    optional,
    text,
    truth,
    whole,
)
from speechbrain_merge.records.errors import RecordError, shown

RUN_NAME = re.compile(r"[\w+=,@-][\w+=.,@-]*")
"""What a run may be called: it is the name of a folder."""


def run_name(value, where: str) -> str:
    """The name of a run, which is that of its folder.

    Arguments
    ---------
    value : object
        As it was read.
    where : str
        The file and the entry, for the error.

    Returns
    -------
    str
    """
    if not isinstance(value, str) or not RUN_NAME.fullmatch(value):
        raise RecordError(
            f"{where}: expected the name of a run, of letters, digits and "
            f"_+=.,@- without a dot in front, got {shown(value)}"
        )
    return file_name(value, where)


def weights_file(value, where: str) -> str:
    """The plain name of a safetensors file."""
    if not file_name(value, where).endswith(".safetensors"):
        raise RecordError(
            f"{where}: expected the name of a .safetensors file, got "
            f"{shown(value)}"
        )
    return value


def _place(value, where: str) -> str:
    """A code of a path, and the number of the folder in the file system."""
    if not re.fullmatch(r"[0-9a-f]{16} [0-9]{1,30}", text(200)(value, where)):
        raise RecordError(
            f"{where}: expected a code and a number, got {shown(value)}"
        )
    return value


_seen = {
    "slot": file_name,
    "epoch": optional(number()),
    "step": optional(number()),
    "time": optional(number()),
    "meta": mapped(anything()),
    "saves": whole(0),
}

candidate_record = fields(
    {
        "name": file_name,
        "file": weights_file,
        "digest": digest_text,
        "meta": _seen["meta"],
    },
    {
        **_seen,
        "metric": text(),
        "hyperparameters": mapped(anything()),
        "tags": listed(text()),
        "lineage": optional(text(100)),
        "checkpoint": text(),
        "place": _place,
        "base": optional(digest_text),
    },
)
"""A candidate, in the manifest and in the metadata of its file."""

_EVENTS = {
    "candidate": candidate_record,
    "passed": fields({"digest": digest_text}, _seen),
    "base": fields(
        {"file": weights_file, "digest": digest_text},
        {"time": optional(number())},
    ),
    "base removed": fields({}, {"kept": truth}),
    "removed": fields({"name": file_name}, {"why": text(), "kept": truth}),
}

_event = fields({"event": one_of(*_EVENTS)})


def event_record(value, where: str) -> dict:
    """A line of a manifest.

    Arguments
    ---------
    value : object
        As it was read.
    where : str
        The file and the line, for the error.

    Returns
    -------
    dict
    """
    event = _event(value, where)["event"]
    return _EVENTS[event](value, where)


pointer_record = fields(
    {
        "asked_run": run_name,
        "run": run_name,
        "lineage": text(100),
        "saves": whole(0),
    },
    {
        "pool": text(),
        "candidate": optional(file_name),
        "note": text(),
        "checkpoints": text(),
        "saved": optional(number()),
        "base": digest_text,
        "statistics": statistics_record,
    },
)
"""What a checkpoint says of its candidate (`pool.ckpt`)."""

first_save_record = fields(
    {"lineage": text(100), "checkpoint": text()},
    {"last": optional(text()), "saved": truth},
)
"""Which training has begun to save its first checkpoint, and where."""

_method = fields({"name": text(200)})

merge_record = fields(
    {
        "name": text(),
        "method": lambda value, where: anything()(_method(value, where), where),
        "members": listed(
            fields(
                {"name": text(), "run": text(), "digest": digest_text},
                {"weight": optional(number())},
                unknown="drop",
            )
        ),
    },
    {
        "weights": optional(mapped(number())),
        "with_base": truth,
        "left_out": listed(text()),
        "base": optional(text()),
        "path": optional(text()),
        "digest": optional(digest_text),
        "value": optional(number()),
        "kept": optional(weights_file),
        "base_digest": optional(digest_text),
        "time": number(),
    },
    unknown="drop",
)
"""A merge that a pool remembers (`merges.jsonl`)."""
