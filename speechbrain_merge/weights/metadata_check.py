"""A check on the metadata of a safetensors file.

What a file of weights says of itself decides what is done with it: how it was
merged, which experts statistics are of, how many heads its attention has. The
hashes on record are of the tensors. So the metadata have a check of their own
among them, which the writer computes and the reader compares::

    {"merge": "{…}", "content": "blake3:5b…", "metadata_check": "5e1f08ab…"}

It finds damage and mistakes, see `speechbrain_merge.records.written_check`.

Example
-------
>>> from speechbrain_merge.weights import open_weights, write_weights
>>> path = getfixture("tmp_path") / "weights.safetensors"
>>> path = write_weights(path, {}, {"heads": "4"})
>>> content = path.read_bytes()
>>> _ = path.write_bytes(content.replace(b'"4"', b'"8"'))
>>> open_weights(path)
Traceback (most recent call last):
...
speechbrain_merge.weights.changed_content.ChangedContent: .../weights.safetensors: its metadata is not as it was written: ...

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping

from speechbrain_merge.records.written_check import check_of
from speechbrain_merge.weights.changed_content import ChangedContent

KEY = "metadata_check"
"""The entry of a file's metadata that has the check of all others."""


def with_metadata_check(metadata: Mapping) -> dict:
    """Metadata with their check as the last entry.

    Arguments
    ---------
    metadata : dict
        Strings. A check that is among them is computed again.

    Returns
    -------
    dict
    """
    others = _without(metadata)
    return {**others, KEY: check_of(others)}


def as_checked(metadata: Mapping) -> dict:
    """Metadata, with their check computed if they are to have one.

    Arguments
    ---------
    metadata : dict
        Strings. Those of files of earlier versions have no check, and get
        none, so that such files can be made again to the byte.

    Returns
    -------
    dict
    """
    return with_metadata_check(metadata) if KEY in metadata else dict(metadata)


def refuse_changed_metadata(metadata: Mapping, label: str):
    """Refuses metadata that are not those that were written.

    Arguments
    ---------
    metadata : dict
        Strings.
    label : str
        The file, for the error.

    Raises
    ------
    ChangedContent
        Where they do not have the check that they hold.
    """
    if KEY in metadata and metadata[KEY] != check_of(_without(metadata)):
        raise ChangedContent(
            f"{label}: its metadata is not as it was written: it does not "
            f"have the check that it holds. Copy the file again. If you "
            f"changed it on purpose, take out its entry '{KEY}'."
        )


def _without(metadata):
    return {key: value for key, value in metadata.items() if key != KEY}
