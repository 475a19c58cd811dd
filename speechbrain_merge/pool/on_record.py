"""Weights, compared with what a pool has on record of them.

A pool knows the hash of each candidate, and of the model that it was
fine-tuned from. Whoever computes with a candidate, or with such a base, looks
at that first: a damaged or exchanged file gives weights that nobody has chosen.
It makes no difference how they are given: a path into a pool is looked up in
the manifest beside the file.

Example
-------
>>> from types import SimpleNamespace
>>> import torch
>>> from speechbrain_merge.weights import tree_hash, write_weights
>>> folder = getfixture("tmp_path")
>>> base = write_weights(folder / "base.safetensors", {"w": torch.ones(1)})
>>> expert = SimpleNamespace(base=base, base_digest=tree_hash(base))
>>> _ = write_weights(base, {"w": torch.zeros(1)})
>>> open_on_record(str(base), [expert])
Traceback (most recent call last):
...
speechbrain_merge.weights.changed_content.ChangedContent: .../base.safetensors: its content has the hash blake3:..., and blake3:... is on record. ...

Authors
 * The speechbrain_merge authors 2026
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional

from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.records.checked import digest_text
from speechbrain_merge.records.file_hashes import file_state
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.records.written_check import without_check
from speechbrain_merge.weights import (
    Weights,
    open_weights,
    verify,
    verify_own_hash,
)

RESULT, MERGED = "result.json", "merged.safetensors"
"""What a merge stage writes: its result, and the weights."""


class OnRecord(NamedTuple):
    """What a pool has on record of weights.

    Arguments
    ---------
    digest : str
        The hash of their content.
    label : str
        What an error calls them.
    path : Path
        The file that they are in.
    """

    digest: str
    label: str
    path: Path


def on_record(source: Any, experts: Iterable = ()) -> list[OnRecord]:
    """What pools and results have on record of weights.

    Arguments
    ---------
    source : any source of `open_weights`
        A candidate has its own hash; a file of a pool, however it is given,
        that of the pool's manifest; the merge of a stage that of its result.
    experts : iterable of objects
        Candidates that have the digest of a base, which may be the source,
        where that has no record of its own.

    Returns
    -------
    list of OnRecord
        Empty where nothing is known of them.
    """
    path = _place(source)
    if path is None:
        return []
    found = _in_manifests(path)
    known = getattr(source, "known_digest", None)
    if known is not None and known not in [own.digest for own in found]:
        found.append(OnRecord(known, source.name, path))
    if found:
        return found
    codes = {
        expert.base_digest
        for expert in experts
        if getattr(expert, "base_digest", None) is not None
        and getattr(expert, "base", None) is not None
        and _is_same(path, expert.base)
    }
    return [OnRecord(code, str(path), path) for code in codes]


def open_on_record(source: Any, experts: Iterable = ()) -> Weights:
    """Opens weights that are as they are on record.

    Arguments
    ---------
    source : any source of `open_weights`
        What to open.
    experts : iterable of objects
        See ``on_record``.

    Returns
    -------
    Weights

    Raises
    ------
    ChangedContent
        With both hashes, where they are something else. So is a file that
        says its own hash, such as the merge of a stage. A file is hashed once in
        a process, unless it is written to.
    """
    weights = open_weights(source)
    try:
        if not isinstance(source, Weights):
            _verify_all(weights, on_record(source, experts))
        elif (path := _place(source)) is not None:
            # they may go by other names than those in their file
            with open_weights(path) as read:
                _verify_all(read, on_record(source, experts))
    except BaseException:
        weights.close()
        raise
    return weights


def _verify_all(weights, records):
    """Compares weights with their own hash, if they say one, and with records."""
    verify_own_hash(weights)
    for known in records:
        verify(weights, *known)


def _place(source) -> Optional[Path]:
    """The file or folder that weights are in."""
    if isinstance(source, Weights):
        source = source.label
    source = getattr(source, "path", source)
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        return Path(source) if Path(source).exists() else None
    except (OSError, ValueError):  # a label that is no path
        return None


def _in_manifests(path):
    """What the manifest beside a file says of it; of a link, also that beside
    the file that it leads to."""
    places = [
        Path(os.path.realpath(path.parent), path.name),
        Path(os.path.realpath(path)),
    ]
    found = {}
    for place in places:
        for file, listed in ((Manifest.FILE, _listed), (RESULT, _merged)):
            state = file_state(place.parent / file)
            if state is not None:
                known = listed(place.parent, state).get(place.name)
                if known is not None:
                    found.setdefault(known[0], OnRecord(*known, path))
    return list(found.values())


@lru_cache(maxsize=64)
def _listed(folder, state):
    """Digest and label of each file that a manifest lists."""
    del state  # another one where a line was added
    contents = Manifest(folder).read()
    found = {
        record["file"]: (record["digest"], f"{folder.name}/{name}")
        for name, record in contents.candidates.items()
    }
    if contents.base is not None:
        file = contents.base["file"]
        found[file] = (contents.base["digest"], str(folder / file))
    return found


@lru_cache(maxsize=64)
def _merged(folder, state):
    """Digest and label of the merge of a stage, which its result names."""
    del state  # another one where it was made again
    try:
        result = without_check(read_json(folder / RESULT), str(folder))
        code = digest_text(dict(result).get("digest"), RESULT)
    except (ValueError, TypeError):
        return {}  # of another program, or one that the stage makes again
    return {MERGED: (code, str(folder / MERGED))}


def _is_same(one, other):
    """Whether two paths lead to one file."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
