"""The counts of a test set, checked where a study reads them.

They are read from ``results.json`` and from the records in ``scores``. Errors,
words and utterances are what counts; a rate and counts by duration that stand
beside them have to be those that they make.

Example
-------
>>> counts = {"errors": 1, "words": 4, "utterances": 2, "wer": 25.0}
>>> counted(counts, "results.json") == counts
True
>>> counted({**counts, "wer": 5.0}, "results.json")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: results.json, key 'wer': expected 25, which 1 errors in 4 words make, got 5. The record was changed or damaged: remove the file and run the study again.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from typing import Any

from speechbrain_merge.evaluation.counts import rate_of
from speechbrain_merge.records.checked import fields, mapped, number, optional
from speechbrain_merge.records.errors import RecordError, shown

MOST = 1e15
"""Of any count: sums, rates and squares of such numbers are finite."""

KEYS = ("errors", "words", "utterances")
ADVICE = (
    "The record was changed or damaged: remove the file and run the study "
    "again."
)

amount = number(0, MOST)
measured = number(-MOST, MOST)


def _words(value, where):
    """A number of words: none, or one at least, so that rates are finite."""
    return value if value == 0 else number(1, MOST)(value, where)


_fields = fields(
    {"errors": amount, "words": _words, "utterances": amount},
    {
        "wer": optional(number(0)),
        "buckets": mapped(mapped(amount)),
        "measures": mapped(measured),
    },
)


def counted(value: Any, where: str) -> dict:
    """Checks the counts of one set.

    Arguments
    ---------
    value : object
        What a record holds.
    where : str
        The file and the key, for messages.

    Returns
    -------
    dict
        ``errors``, ``words``, ``utterances``, and perhaps ``wer`` in %,
        ``buckets`` (label to counts) and ``measures``.

    Raises
    ------
    RecordError
        Where a count is missing or no such number, or where the rate or the
        counts by duration are not those of all utterances together.
    """
    found = _fields(value, where)
    if "wer" in found:
        _expect(
            rate_of(found),
            found["wer"],
            f"{where}, key 'wer'",
            f"which {found['errors']:g} errors in {found['words']:g} words "
            "make",
        )
    buckets = found.get("buckets", {}).values()
    for key in KEYS:
        if buckets and all(key in bucket for bucket in buckets):
            _expect(
                found[key],
                sum(bucket[key] for bucket in buckets),
                f"{where}, key 'buckets'",
                f"the {key} of the set",
            )
    return found


def _expect(expected, found, where, what):
    """Raises where a number is not that which others make."""
    if expected == found:
        return
    if None in (expected, found) or not math.isclose(
        expected, found, rel_tol=1e-9, abs_tol=1e-9
    ):
        told = [
            f"{one:.10g}" if one is not None else shown(one)
            for one in (expected, found)
        ]
        raise RecordError(
            f"{where}: expected {told[0]}, {what}, got {told[1]}. {ADVICE}"
        )
