"""``speechbrain-merge again``: a merged file made again, byte by byte.

What a merged model was made of is on record: in the file itself, or in the
``merge.json`` of an exported folder. The same method merges the same sources
into a new file, which has the same bytes where nothing that decides them is
different: not the content of a source, not the version of a library. Both are
compared, and what differs is said.

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

from pathlib import Path

from hyperpyyaml import load_hyperpyyaml

from speechbrain_merge.engine import merge
from speechbrain_merge.lineage import EXPORT_RECORD, KEY, record_at
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.records.versions import versions
from speechbrain_merge.report.card import merge_yaml
from speechbrain_merge.weights import digest, fold, open_weights, renamed
from speechbrain_merge.weights.files import SAFETENSORS_SUFFIX, TORCH_SUFFIXES


def merge_again(model, output, workers: int = 1, progress: bool = True) -> Path:
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
    hashes = _check_sources(record)
    notes, expected = _beside(model)
    arguments = load_hyperpyyaml(text)
    # a candidate of a pool goes by its name, and not by its path
    arguments["labels"] = [source["label"] for source in record["sources"]]
    if "base" in arguments and arguments["method"].needs_same_names:
        # the base may have come from the Hub, with other prefixes
        arguments["base"] = renamed(
            fold(arguments["base"]), fold(arguments["experts"][0])
        )
    merge(
        **arguments,
        output=output,
        workers=workers,
        progress=progress,
        hashes=hashes,
        metadata=notes,
        created=record.get("created"),
    )
    found = digest(output)
    if expected is not None and found != expected:
        raise ValueError(
            f"{output} was made, and its SHA-256 is {found}, not {expected} as "
            f"that of {model}" + _reason(record)
        )
    return output


def _check_sources(record):
    """The hashes of the experts, where all that was merged is as it was."""
    models, found = [*record["sources"]], []
    if record.get("base"):
        models.append(record["base"])
    for model in models:
        path, known = Path(model["path"]), model.get("digest")
        # no device, no pipe: the record may be a stranger's
        if not path.is_dir() and not (
            path.is_file()
            and path.suffix in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX)
        ):
            raise ValueError(
                f"{path} was merged, and no weights are there: run this where the path "
                "leads to it, or put it there"
                + (f" (SHA-256 {known})." if known else ".")
            )
        found.append(digest(path))
        if known is not None and found[-1] != known:
            raise ValueError(
                f"{path} is not what was merged: its SHA-256 is {found[-1]}, "
                f"and {known} is on record."
            )
    return found[: len(record["sources"])]


def _beside(model):
    """Other metadata of the merged file, and the SHA-256 that it had."""
    model = Path(model)
    if model.is_file():
        with open_weights(model) as weights:
            notes, expected = dict(weights.metadata), digest(model)
    else:
        notes = dict(read_json(model / EXPORT_RECORD))
        expected = notes.pop("digest", None)
        notes.pop("weights", None)
    return {
        key: value
        for key, value in notes.items()
        if key not in (KEY, "tied") and isinstance(value, str)
    }, expected


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
    return (
        ". The versions are the same. Another processor may round otherwise; and "
        "an exported folder has only the last names of absolute paths on record, "
        "which are in the file as well: then give the merged file itself."
    )


def run(options) -> dict:
    """Makes a merged file again."""
    output = merge_again(
        options.model, options.output, options.workers, not options.quiet
    )
    return {"output": str(output), "sha256": digest(output)}


def show(found):
    """Prints the file, and its hash."""
    print(f"{found['output']}: SHA-256 {found['sha256']}")
