"""A check that a JSON record carries, to tell that it was changed.

Scores that are on record are used again without a look at what they were
computed from. An error rate that was edited, or damaged on the disk, would be
believed. So a record holds a hash of its own content beside it::

    {"value": 12.5, …, "check": "5e1f08ab…"}

It finds damage and mistakes. It is no signature: whoever edits a record can
compute its check.

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import JSON_LIMIT, read_json

CHECK = "check"
"""The entry of a record that has its check."""


def check_of(content: Any) -> str:
    """The check of some content.

    Arguments
    ---------
    content : object
        Plain JSON values.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_check(record: Mapping) -> dict:
    """A record with its check.

    Arguments
    ---------
    record : dict
        Plain values, which are turned into those of JSON.

    Returns
    -------
    dict

    Example
    -------
    >>> record = with_check({"value": 12.5})
    >>> without_check(record, "result.json")
    {'value': 12.5}
    >>> without_check({**record, "value": 2.5}, "result.json")
    Traceback (most recent call last):
    ...
    speechbrain_merge.records.errors.RecordError: result.json is not as it was written: its content does not have the check that it holds
    """
    plain = json.loads(json.dumps(record))
    return {**plain, CHECK: check_of(plain)}


def without_check(record: Any, where: str) -> Any:
    """A record as it was before its check was added.

    Arguments
    ---------
    record : object
        As it was read. One without a check, of an earlier version, is taken
        as it is.
    where : str
        The file, for the error.

    Returns
    -------
    object

    Raises
    ------
    RecordError
        Where the content is not what was written.
    """
    if not isinstance(record, dict) or CHECK not in record:
        return record
    plain = {key: value for key, value in record.items() if key != CHECK}
    if record[CHECK] != check_of(plain):
        raise RecordError(
            f"{where} is not as it was written: its content does not have the "
            "check that it holds"
        )
    return plain


def read_written(path, limit: int = JSON_LIMIT) -> Any:
    """Reads a file of JSON that was written with a check.

    Arguments
    ---------
    path : str or Path
        The file.
    limit : int
        Bytes at most.

    Returns
    -------
    object
        The record without its check.

    Raises
    ------
    RecordError
        Where it is no JSON, too large, or not what was written.
    """
    return without_check(read_json(path, limit), str(path))
