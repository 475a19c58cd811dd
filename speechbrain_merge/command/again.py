"""``speechbrain-merge again``: a merged file made again, byte by byte.

What a merged model was made of is on record: in the file itself, or in the
``merge.json`` of an exported folder. The same method merges the same sources
into a new file, which has the same bytes where nothing that decides them is
different: not the content of a source, not the version of a library. Both are
compared, and what differs is said.

A source is looked for where the record has it, seen from the working folder and
from that of the model, and where it would be if all had been moved together;
what was moved otherwise can be given. It is known by its hash.

Example
-------
>>> import torch
>>> from speechbrain_merge.engine import merge
>>> from speechbrain_merge.weights import write_weights
>>> folder = getfixture("tmp_path")
>>> for value in (1.0, 2.0):
...     expert = {"w": torch.tensor([value])}
...     _ = write_weights(folder / f"{value}.safetensors", expert)
>>> path = merge(
...     "average",
...     [folder / "1.0.safetensors", folder / "2.0.safetensors"],
...     output=folder / "merged.safetensors",
...     progress=False,
... )
>>> copy = merge_again(path, folder / "copy.safetensors", progress=False)
>>> copy.read_bytes() == path.read_bytes()
True

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from hyperpyyaml import load_hyperpyyaml

from speechbrain_merge.engine import merge
from speechbrain_merge.lineage import EXPORT_RECORD, KEY, record_at
from speechbrain_merge.records.reading import parse_json, read_json
from speechbrain_merge.records.versions import versions
from speechbrain_merge.report.card import merge_yaml
from speechbrain_merge.weights import (
    digest,
    fold,
    hash_like,
    open_weights,
    places_of,
    renamed,
)
from speechbrain_merge.weights.files import SAFETENSORS_SUFFIX

RECORDED = (
    "parameters",
    "files",
    "sources",
    "base",
    "created",
    "chain",
    "chain_complete",
)
"""What the copy has on record as the first has it, its hashes apart."""


def merge_again(
    model,
    output,
    workers: int = 1,
    progress: bool = True,
    sources: Optional[Mapping] = None,
) -> Path:
    """Makes a merged file again, from the record of what it was made of.

    Arguments
    ---------
    model : str or Path
        A merged file, or an exported folder.
    output : str or Path
        The ``.safetensors`` file to write; none may be there.
    workers : int
        Threads.
    progress : bool
        Whether to show a bar.
    sources : dict, optional
        Name of a source, "base" for the base, to where it is now. The name is
        its label, its path or its hash on record.

    Returns
    -------
    output : Path

    Raises
    ------
    ValueError
        Where there is no record, where a source is not there or has another
        content, and where the file that was made has other bytes.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} is there already: give another name.")
    record = record_at(model)
    if record is None:
        raise ValueError(
            f"{model} has no record of a merge: expected a file that "
            f"speechbrain_merge merged, or a folder with {EXPORT_RECORD}."
        )
    text = merge_yaml(record)
    if text is None:
        raise ValueError(
            f"{model} cannot be made again from its record: a source was in "
            "memory, or its method is not known here or has parameters that "
            "are not on record."
        )
    beside = Path(model) if Path(model).is_dir() else Path(model).parent
    places, hashes = _find_sources(record, beside, dict(sources or {}))
    notes, told, expected = _beside(model)
    # Files that the method reads, statistics for instance, may have moved too
    parameters = _at_hand(
        record.get("parameters") or {},
        beside,
        {each["path"]: each for each in record.get("files") or []},
        dict(sources or {}),
    )
    here = {**record, "parameters": parameters}
    arguments = load_hyperpyyaml(merge_yaml(here))
    # a candidate of a pool goes by its name, and not by its path
    arguments["labels"] = [
        str(source.get("label") or source.get("path") or number)
        for number, source in enumerate(record["sources"])
    ]
    arguments["experts"] = places[: len(record["sources"])]
    if "base" in arguments:
        arguments["base"] = places[-1]
        if arguments["method"].needs_same_names:
            # the base may have come from the Hub, with other prefixes
            arguments["base"] = renamed(fold(places[-1]), fold(places[0]))
    merge(
        **arguments,
        output=output,
        workers=workers,
        progress=progress,
        hashes=hashes,
        metadata=notes,
        # records of earlier versions have no files
        record={
            "files": None,
            **{key: told[key] for key in RECORDED if key in told},
        },
    )
    found = digest(output)
    if expected is not None and found != expected:
        raise ValueError(
            f"{output} was made, and its SHA-256 is {found}, not {expected} as "
            f"that of {model}" + _reason(record)
        )
    return output


def _find_sources(record, beside, given):
    """Where all is that was merged, the base last; the experts' hashes."""
    models = [*record["sources"]]
    if record.get("base"):
        models.append({"label": "base", **record["base"]})
    files = list(record.get("files") or [])
    names = [
        {model.get("label"), model["path"], model.get("digest")}
        for model in [*models, *files]
    ]
    unknown = sorted(set(given).difference(*names))
    if unknown:
        known = ", ".join(
            str(m.get("label") or m["path"]) for m in [*models, *files]
        )
        raise ValueError(
            f"no source is called {', '.join(map(repr, unknown))}: on "
            f"record are {known}."
        )
    places, hashes = [], []
    for model, called in zip(models, names):
        chosen = [given[name] for name in given if name in called]
        place, code = _find_source(model, beside, chosen)
        places.append(place)
        hashes.append(code)
    return places, hashes


def _find_source(model, beside, given):
    """Where a source is, and its hash."""
    known, others = model.get("digest"), []
    places = (
        [(Path(each), True) for each in given]
        if given
        else places_of(model["path"], beside)
    )
    for place, said in places:
        try:
            found = _hash_of(place, known)
        except (ValueError, OSError):
            if said:
                raise
            continue  # it only has its name
        if found == known or (known is None and said):
            return place, found
        if said:
            others.append((place, found))
    name = model.get("label") or model["path"]
    for place, found in others:
        raise ValueError(
            f"{place} is not what was merged: its hash is {found}, and "
            f"{known} is on record. If that is elsewhere, give "
            f"--source '{name}=PATH'."
        )
    raise ValueError(
        f"{model['path']} was merged, and no weights are there: give "
        f"--source '{name}=PATH', or run this where the path leads to it"
        + (f" (hash {known})." if known else ".")
    )


def _hash_of(place, known):
    """The hash of a file or folder, of the kind that is on record.

    That of a file's bytes, or, of the candidate of a pool, of its tensors.
    """
    found = hash_like(place, known)
    if found == known:
        return found
    with open_weights(place) as weights:
        return known if hash_like(weights, known) == known else found


def _at_hand(value, beside, known, given):
    """Parameters, with files where they are now; by hash, if it is known."""
    if isinstance(value, Mapping):
        return {
            key: _at_hand(each, beside, known, given)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_at_hand(each, beside, known, given) for each in value]
    if isinstance(value, str) and value in known:
        names = {value, known[value].get("digest")}
        chosen = [given[name] for name in given if name in names]
        return str(_find_source(known[value], beside, chosen)[0])
    if isinstance(value, str) and Path(value).suffix == SAFETENSORS_SUFFIX:
        return next(
            (str(place) for place, _ in places_of(value, beside)), value
        )
    return value


def _beside(model):
    """Other metadata of the merged file, its record as told, and its SHA-256."""
    model = Path(model)
    if model.is_file():
        with open_weights(model) as weights:
            notes, expected = dict(weights.metadata), digest(model)
        told = parse_json(notes[KEY], f"{model}, metadata '{KEY}'")
    else:
        notes = dict(read_json(model / EXPORT_RECORD))
        expected = notes.pop("digest", None)
        notes.pop("weights", None)
        told = notes[KEY]
    notes = {
        key: value
        for key, value in notes.items()
        if key not in (KEY, "tied") and isinstance(value, str)
    }
    return notes, told, expected


def _reason(record):
    """What the other bytes may come from."""
    told, here = record.get("versions") or {}, versions()
    differ = [
        f"{name} {word} then and {here[name]} now"
        for name, word in told.items()
        if name in here and here[name] != word
    ]
    if differ:
        return f": {', '.join(differ)}."
    return ". The versions are the same. Another processor may round otherwise."


def run(options) -> dict:
    """Makes a merged file again."""
    sources = dict(map(_named, options.source))
    output = merge_again(
        options.model,
        options.output,
        options.workers,
        not options.quiet,
        sources,
    )
    return {"output": str(output), "sha256": digest(output)}


def _named(given):
    """Name and path of NAME=PATH, in both of which there may be more signs."""
    words = given.split("=")
    splits = [
        ("=".join(words[:at]), "=".join(words[at:]))
        for at in range(1, len(words))
    ]
    for name, path in splits:
        if name and path and Path(path).exists():
            return name, path
    raise ValueError(
        f"--source {given}: expected NAME=PATH, and weights at that path."
    )


def show(found):
    """Prints the file, and its hash."""
    print(f"{found['output']}: SHA-256 {found['sha256']}")
