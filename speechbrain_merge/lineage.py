"""What a merged model goes back to: the chain of hashes.

A merged file says in its metadata what it was made of: each source with its
path and the hash of its content (`speechbrain_merge.weights.tree_hash`; older
records have a SHA-256, which is compared all the same). Files that the method
read, statistics or maps, are there with the SHA-256 of their bytes (older
records do not have them). Where a source is a
merge itself, its own record goes into the *chain* of the new one, and so do the
records in the chain of the source. So the last merge of many lists all merges
before it, each by the hash of its content, down to the models that were
trained::

    {"method": "ties",
     "sources": [{"label": "halves", "digest": "blake3:5b…", …}, …],
     "chain": [{"digest": "blake3:5b…", "method": "average", …}, …]}

A record is in the chain once, however many merges it is part of, the nearest
first. The chain has at most 1,000 records and a megabyte of JSON; a longer one
loses the farthest, and says so (``"chain_complete": false``).

`check_lineage` compares the chain with the files that are still there. That
finds damage and mistakes. Who can write a file can write its record as well: a
signature (``speechbrain_merge.records.signing``) is what shows who made it.

Example
-------
>>> import torch
>>> from speechbrain_merge.engine import merge, provenance
>>> from speechbrain_merge.weights import write_weights
>>> folder = getfixture("tmp_path")
>>> for name in "abc":
...     path = folder / f"{name}.safetensors"
...     _ = write_weights(path, {"w": torch.ones(1)})
>>> def average(names, output):
...     experts = [folder / f"{name}.safetensors" for name in names]
...     output = folder / f"{output}.safetensors"
...     return merge("average", experts, output=output, progress=False)
>>> halves = average("ab", "halves")
>>> whole = average(["halves", "c"], "whole")
>>> [each["method"] for each in provenance(whole)["chain"]]
['average']
>>> for row in check_lineage(whole):
...     print("    " * row.depth + row.label.rpartition("/")[2], row.state)
whole.safetensors the merge
    halves.safetensors as recorded
        a.safetensors as recorded
        b.safetensors as recorded
    c.safetensors as recorded

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.checked import (
    anything,
    digest_text,
    fields,
    listed,
    mapped,
    number,
    optional,
    text,
    truth,
)
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.ownership import (
    changed_files,
    check_unchanged,
    what_to_do,
)
from speechbrain_merge.records.reading import parse_json, read_json
from speechbrain_merge.weights import Weights, digest, hash_like, open_weights
from speechbrain_merge.weights.files import SAFETENSORS_SUFFIX
from speechbrain_merge.weights.folders import HUGGING_FACE_FILES
from speechbrain_merge.weights.moved import places_of
from speechbrain_merge.weights.tree_hash import PREFIX
from speechbrain_merge.weights.verification import what_changed

logger = get_logger(__name__)

KEY = "merge"
"""The entry of a file's metadata, and of an export's record, that says it."""

EXPORT_RECORD = "merge.json"
"""The file of an exported folder that says what was exported."""

CARD = "README.md"
"""The file of an exported folder that is for a person, who may add to it."""

LONGEST_CHAIN = 1000
CHAIN_BYTES = 1 << 20

_model = fields(
    {},
    {
        "label": optional(text()),
        "path": optional(text()),
        "digest": optional(text(200)),
        "weight": number(),
    },
)
_about = {
    "parameters": optional(mapped(anything())),
    "sources": optional(listed(_model)),
    "base": optional(_model),
    "files": optional(listed(_model)),
    "dtype": optional(text(100)),
    "same_base": truth,
    "created": optional(text(100)),
    "versions": optional(mapped(text(100))),
}
_ancestor = fields({"method": text(200), "digest": digest_text}, _about)
check_record = fields(
    {"method": text(200)},
    {
        **_about,
        "chain": listed(_ancestor, LONGEST_CHAIN),
        "chain_complete": truth,
    },
)
"""The record of a merge, checked: anyone may have written it."""


@dataclass(frozen=True)
class Row:
    """A model in the lineage of a merged one.

    Arguments
    ---------
    depth : int
        0 for the merged model itself, 1 for what it was merged from, ….
    label : str
        What the merge called it.
    method : str
        How it was made; empty for a model that is no merge, as far as known.
    digest : str
        The hash on record; of the merged model itself empty.
    state : str
        "the merge" for the merged model itself, or "changed" where files of
        its folder are; for others "as recorded", "not here", "not recorded" (its hash), "seen above", or "changed".
    fault : str
        What is wrong; else empty.
    """

    depth: int
    label: str
    method: str
    digest: str
    state: str
    fault: str = ""


def record_of(weights: Weights) -> Optional[dict]:
    """The record of the merge that made some weights.

    Arguments
    ---------
    weights : Weights
        Open weights.

    Returns
    -------
    dict or None
        None where they are no merge. The record of an exported folder counts
        as that of its weights.

    Raises
    ------
    RecordError
        Where there is a record that is none of ours.
    """
    if KEY in weights.metadata:
        where = f"{weights.label}, metadata '{KEY}'"
        return check_record(parse_json(weights.metadata[KEY], where), where)
    path = Path(weights.label)
    if path.name in HUGGING_FACE_FILES:
        path = path.parent
    path /= EXPORT_RECORD
    if path.is_file():
        check_unchanged(path.parent, [EXPORT_RECORD])
        record = read_json(path)
        if isinstance(record, Mapping) and KEY in record:
            return check_record(record[KEY], f"{path}, key '{KEY}'")
    return None


def record_at(path) -> Optional[dict]:
    """The record of a merged file, or of an exported folder.

    Arguments
    ---------
    path : str or Path
        A file or folder.

    Returns
    -------
    dict or None
        None where it is neither.

    Raises
    ------
    ValueError
        Where it is a damaged file of weights, or its record is none of ours.
    """
    path = Path(path)
    if path.is_dir():
        # The weights of a SpeechBrain folder are in several files
        return record_of(Weights({}, str(path)))
    if path.suffix != SAFETENSORS_SUFFIX:
        return None
    with open_weights(path) as weights:
        return record_of(weights)


def chain_of(opened: Sequence[Weights], digests: Sequence[str]) -> tuple:
    """The chain of a new merge.

    Arguments
    ---------
    opened : list of Weights
        What is merged.
    digests : list of str
        The hash of each.

    Returns
    -------
    found : dict
        Entries of the new merge's record: ``chain``, where one of the models
        is a merge, and ``chain_complete``, where some of it is left out.
    own : dict
        Number of a model to its entry in the chain, where it has one: for a
        hash that becomes known later.
    """
    records, complete = [], True
    for weights in opened:
        try:
            records.append(record_of(weights))
        except RecordError as error:
            # Another program's, perhaps: the weights can be merged all the same
            logger.warning(f"{error}. It is not taken for a merge of ours.")
            records.append(None)
    known: dict = {}
    own = {}
    for index, (record, code) in enumerate(zip(records, digests)):
        if record is not None:
            complete &= record.pop("chain_complete", True)
            for ancestor in record.pop("chain", []):
                known.setdefault(ancestor["digest"], ancestor)
            own[index] = {"digest": code, **record}
    chain, size, seen = [], 0, set(digests)
    waiting = deque(own.values())
    while waiting:
        entry = waiting.popleft()
        size += len(json.dumps(entry))
        if len(chain) == LONGEST_CHAIN or size > CHAIN_BYTES:
            complete = False
            break
        chain.append(entry)
        for model in _models(entry):
            code = model.get("digest")
            if code in known and code not in seen:
                seen.add(code)
                waiting.append(known[code])
    found: dict = {"chain": chain} if chain else {}
    if not complete:
        found["chain_complete"] = False
    return found, own


def check_lineage(path) -> list[Row]:
    """Compares what a merged model says of its making with what is there.

    Arguments
    ---------
    path : str or Path
        A merged file, or an exported folder.

    Returns
    -------
    list of Row
        The model itself, then each model that it was made of, followed by
        those that this was made of. A source is looked for at its recorded
        path, from the working folder or from that of the merged model, and by
        its hash where it would be if they had been moved together; only
        files and folders of weights are opened.

    Raises
    ------
    ValueError
        Where the file was not merged by this package, or has no record of it
        that can be read.
    """
    path = Path(path)
    record = record_at(path)
    if record is None:
        raise ValueError(
            f"{path} has no record of a merge: it was not written by "
            "speechbrain_merge."
        )
    known = {entry["digest"]: entry for entry in record.get("chain", [])}
    complete = record.get("chain_complete", True)
    rows = [Row(0, str(path), record["method"], "", "the merge")]
    if fault := _fault_of(path):
        rows = [replace(rows[0], state="changed", fault=fault)]
    beside = path if path.is_dir() else path.parent
    seen, opened = set(), {}
    # In this order the models of a merge follow it; deep chains do not recur
    waiting = [(1, model) for model in reversed(_models(record))]
    while waiting:
        depth, model = waiting.pop()
        entry = known.get(model.get("digest"))
        row = Row(
            depth,
            model.get("label") or model.get("path") or "weights in memory",
            "" if entry is None else entry["method"],
            model.get("digest") or "",
            "seen above",
        )
        if entry is not None and row.digest in seen:
            rows.append(row)
            continue
        rows.append(_checked(row, model, entry, beside, complete, opened))
        if entry is not None:
            seen.add(row.digest)
            waiting += [(depth + 1, each) for each in reversed(_models(entry))]
    return rows


def _fault_of(path):
    """Where a merged file or an exported folder is not as it was written."""
    if path.is_dir():
        faults = changed_files(path, but=[CARD])
        return what_to_do(faults, path) if faults else ""
    try:
        with open_on_record(path):
            return ""
    except (ValueError, OSError) as error:
        return str(error)


def _checked(row, model, entry, beside, complete, opened):
    """A row with the state of the model's file.

    A record may name one file any number of times, with any hashes: what was
    found out about each file is in ``opened``.
    """
    places = places_of(model.get("path") or "", beside)
    path, said = next(places, (None, False))
    if path is None:
        return replace(row, state="not here")
    if not row.digest:
        return replace(row, state="not recorded" if said else "not here")
    for other, _ in [(path, said), *places]:
        codes, found, fault = _opened(other, opened, model)
        if row.digest not in codes and len(codes) == 1 and other.is_file():
            # Of files of no pool, that of their bytes is on record
            codes.append(digest(other))
        if row.digest in codes:
            path = other
            break
    else:
        if not said:  # another's, which only has its name
            return replace(row, state="not here")
        codes, found, fault = _opened(path, opened, model)
    if not fault and row.digest not in codes:
        fault = what_changed(str(path), codes[0], row.digest)
    if fault:
        return replace(row, state="changed", fault=fault)
    if found is None and entry is not None:
        fault = f"{path} is on record as a merge, and it says nothing of one"
    elif found is not None and entry is None and complete:
        fault = f"{path} is a merge, and its record is missing in the chain"
    elif found is not None and entry is not None:
        told = {key: value for key, value in entry.items() if key != "digest"}
        found = {
            key: found[key] for key in found if not key.startswith("chain")
        }
        if _told(told) != _told(found):
            fault = (
                f"{path} says that it was made otherwise than the chain has it"
            )
    state = "changed" if fault else "as recorded"
    return replace(row, state=state, fault=fault)


def _opened(path, opened, model):
    """The hashes of a file or folder, its record of a merge, and its fault.

    A hash is of the kind that is on record; of a file that is no model, that
    of its bytes.
    """
    known = model["digest"]
    plain = "is_file" in model and path.is_file()
    key = path.resolve(), "" if plain else known.startswith(PREFIX)
    if plain and key not in opened:
        opened[key] = [digest(path)], None, ""
    if key not in opened:
        try:
            with open_weights(path) as weights:
                opened[key] = (
                    [hash_like(weights, known)],
                    record_of(weights),
                    "",
                )
        except (ValueError, OSError) as error:
            opened[key] = [], None, str(error)
    return opened[key]


def _told(value):
    """What a record tells, whatever places it names.

    An export says them otherwise than the merged file. Which model it was is
    told by its hash.
    """
    if isinstance(value, Mapping):
        return {Path(key).name: _told(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_told(each) for each in value]
    return Path(value).name if isinstance(value, str) else value


def _models(record):
    """What a merge was made of, then its base, then files of its method."""
    models = list(record.get("sources") or [])
    if record.get("base") is not None:
        models.append({"label": "base", **record["base"]})
    files = record.get("files") or []
    return [*models, *({**each, "is_file": True} for each in files)]
