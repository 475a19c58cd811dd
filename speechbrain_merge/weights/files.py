"""One file of weights: a torch pickle or a safetensors file, mapped.

Pickles are opened with ``weights_only=True``, always, so that no code in them
runs, and with ``mmap=True`` where their format allows it (everything torch
has written since 1.6), so that a tensor costs memory only while it is used.
SpeechBrain's renaming of old parameter names applies to them, as it does when
SpeechBrain itself loads a checkpoint.

Every way in which a file can be broken (missing, empty, cut off, not a state
dict, a pickle with code) ends in one error that names the file and what to do.

Example
-------
>>> import torch
>>> path = getfixture("tmp_path") / "model.ckpt"
>>> torch.save(torch.nn.Linear(2, 3).state_dict(), path)
>>> with open_file(path) as weights:
...     weights.names(), weights.shape("weight")
(['weight', 'bias'], (3, 2))

Authors
 * The speechbrain_merge authors 2026
"""

import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from speechbrain.utils.checkpoints import hook_on_loading_state_dict_checkpoint
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights.dtypes import DTYPE_NAMES
from speechbrain_merge.weights.mapped import MappedFile, WatchedFile
from speechbrain_merge.weights.mapping import Entry, Weights, from_tensors
from speechbrain_merge.weights.metadata_check import refuse_changed_metadata
from speechbrain_merge.weights.tied import ties_from_text

TORCH_SUFFIXES = (".ckpt", ".pt", ".bin", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"

LONGEST_NAME = 1000
"""Characters in the name of a tensor."""

EXPANSION = 4
"""How many times its own size the tensors of a file may stand for."""

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_BYTES_CALL = b"\nbytearray\n"
_BYTES_TEXT = (
    "{} was not opened, because it holds a bytearray, which may be of any size "
    "and is no weight. Save only tensors: torch.save(module.state_dict(), ...)."
)


def open_file(path) -> Weights:
    """Open one file of weights.

    Arguments
    ---------
    path : str or Path
        A file that ends in ``.ckpt``, ``.pt``, ``.bin``, ``.pth`` or
        ``.safetensors``. Links are followed.

    Returns
    -------
    Weights

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        Where the file is not a whole state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is not a file")
    if path.suffix not in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX):
        raise ValueError(
            f"{path}: weights are read from files that end in "
            f"{', '.join(TORCH_SUFFIXES)} or {SAFETENSORS_SUFFIX}, not in "
            f"'{path.suffix}'"
        )
    if path.stat().st_size == 0:
        raise ValueError(
            f"{path} is empty, as left by a save that was cut short. "
            "Remove it, or choose another checkpoint."
        )
    if path.suffix == SAFETENSORS_SUFFIX:
        weights = open_safetensors(path)
    else:
        weights = from_file(find_state_dict(load_torch(path), path), path)
    if not len(weights):
        raise ValueError(f"{path} holds no tensors")
    return weights


def from_file(tensors: Mapping, path) -> Weights:
    """Weights over the mapped tensors of a torch file.

    Arguments
    ---------
    tensors : dict
        Name to tensor.
    path : Path
        The file.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Where a name is too long, or the tensors stand for far more values
        than the file has: a view can repeat one value as often as it likes.
    """
    weights = from_tensors(tensors, str(path))
    check_names(weights, path)
    stored = Path(path).stat().st_size
    stands_for = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in tensors.items()
        if name not in weights.tied
    )
    if stands_for > EXPANSION * stored + (1 << 24):
        raise ValueError(
            f"{path} has {stored} bytes, and its tensors stand for "
            f"{stands_for}: they repeat the same values. Save them by "
            "tensor.contiguous()."
        )
    file = WatchedFile(path)
    entries = {name: _watched(weights.entry(name), file) for name in weights}
    return Weights(entries, weights.label, weights.metadata, weights.tied)


def _watched(entry, file):
    def read():
        file.check()
        return entry.read()

    return Entry(entry.shape, entry.dtype, read)


def check_names(names, path):
    """Refuses names that no parameter has.

    Arguments
    ---------
    names : iterable of str
        Of tensors.
    path : Path
        The file, for the error.
    """
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"{path} has a tensor with a name of {len(name)} characters, "
                f"expected {LONGEST_NAME} at most: {name[:60]}…"
            )


def load_torch(path):
    """Loads a torch file: tensors are mapped, and nothing is executed.

    Arguments
    ---------
    path : Path
        A file written by `torch.save`.

    Returns
    -------
    object
        Usually a dictionary of tensors.

    Raises
    ------
    ValueError
        Where the file is damaged, or holds Python objects that could run code.
    """
    start = _start_of(path)
    if not _begins_as_torch(start):
        raise ValueError(
            f"{path} was not written by torch.save. SpeechBrain keeps counters "
            "and the like in text files of that name: choose a model's file."
        )
    if start == _ZIP_START:
        _check_archive(path)
    else:
        _check_pickles(path)
    try:
        return torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            # Files of torch before 1.6 are no archives and cannot be mapped
            mmap=start == _ZIP_START,
        )
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        reason = next((ln for ln in lines if "GLOBAL" in ln), lines[0]).strip()
        raise ValueError(
            f"{path} was not opened, because it holds Python objects that "
            "could run code. Save only tensors: "
            f"torch.save(module.state_dict(), ...). torch says: {reason}"
        ) from error
    except (
        RuntimeError,
        EOFError,
        LookupError,
        OverflowError,
        MemoryError,
        AttributeError,
        TypeError,
        ValueError,
        AssertionError,
        OSError,  # without the name of the file
        struct.error,
    ) as error:
        raise ValueError(
            f"{path} cannot be read to its end: it is cut short, damaged or no "
            "torch file. Copy it again, or choose another checkpoint. "
            f"torch says: {str(error).splitlines()[0] if str(error) else 'EOF'}"
        ) from error


def is_torch_file(path) -> bool:
    """Whether a file begins as `torch.save` begins it, whole or not.

    Arguments
    ---------
    path : Path
        Any file.

    Returns
    -------
    bool
    """
    return _begins_as_torch(_start_of(path))


def is_state_dict(thing) -> bool:
    """Whether something is a flat, non-empty mapping from names to tensors.

    Arguments
    ---------
    thing : object
        Anything.

    Returns
    -------
    bool
    """
    return (
        isinstance(thing, Mapping)
        and len(thing) > 0
        and all(isinstance(name, str) for name in thing)
        and all(isinstance(value, torch.Tensor) for value in thing.values())
    )


def find_state_dict(content, path) -> dict:
    """The state dict in what a torch file holds.

    A file may hold the state dict itself, or a dictionary with exactly one
    state dict among other things without weights, e.g.
    ``{"model": …, "epoch": 3}``.

    Arguments
    ---------
    content : object
        What the file holds.
    path : Path
        The file, for the error.

    Returns
    -------
    dict
        With SpeechBrain's renaming of old parameter names applied.

    Raises
    ------
    ValueError
        Where there is no state dict, more than one, or weights beside it.
    """
    if not is_state_dict(content):
        if not isinstance(content, Mapping):
            raise ValueError(
                f"{path} holds a {type(content).__name__}, not a state dict"
            )
        inside = [key for key in content if is_state_dict(content[key])]
        loose = [
            key for key in content if isinstance(content[key], torch.Tensor)
        ]
        if len(inside) != 1 or loose:
            keys = ", ".join(repr(key) for key in list(content)[:10])
            raise ValueError(
                f"{path} is not a state dict: it holds {len(loose)} tensors "
                f"and {len(inside)} state dicts, under the keys {keys}. "
                "Save the one to be merged in a file of its own."
            )
        models = [key for key in content if _holds_weights(content[key])]
        if models:
            raise ValueError(
                f"{path} has a state dict under {inside[0]!r}, and weights "
                f"inside of other things under {models[0]!r}: which of them is "
                "the model is not known. Save the one to be merged in a file "
                "of its own."
            )
        content = content[inside[0]]
    # The hook renames in place
    return hook_on_loading_state_dict_checkpoint(dict(content))


def _holds_weights(thing) -> bool:
    """Whether something that is no state dict has named weights in it.

    A module with extra state that is no tensor, modules by their names, or a
    list of models; the state of an optimizer has its tensors deeper, by number.
    """
    if is_state_dict(thing):
        return False
    if isinstance(thing, (list, tuple)):
        return any(map(is_state_dict, thing))
    return isinstance(thing, Mapping) and any(
        isinstance(name, str)
        and (isinstance(value, torch.Tensor) or is_state_dict(value))
        for name, value in thing.items()
    )


def _check_archive(path):
    """Refuses archives that torch would not have written.

    torch stores each tensor as it is, one after the other. Compressed, a few
    megabytes could stand for as much memory as one likes, and a mapped tensor
    would be made of the compressed bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [
                archive.read(each)
                for each in entries
                if each.filename.endswith("data.pkl")
                and each.compress_type == zipfile.ZIP_STORED
                and each.file_size <= path.stat().st_size
            ]
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        # torch reads some of these all the same, and nothing looks at them
        raise ValueError(
            f"{path} cannot be read to its end: it is cut short, damaged or no "
            "torch file. Copy it again, or choose another checkpoint. Its "
            f"directory says: {error}"
        ) from error
    if any(_BYTES_CALL in each for each in pickles):
        raise ValueError(_BYTES_TEXT.format(path))
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(
                f"{path}: '{entry.filename}' in it is compressed or encrypted, "
                "which torch.save does not do. Load the file by torch.load, "
                "and save it again, if you trust it."
            )
    if sum(each.file_size for each in entries) > path.stat().st_size:
        raise ValueError(
            f"{path}: the parts of it overlap, which torch.save does not do"
        )


def _check_pickles(path):
    """Refuses files of torch before 1.6 that make bytes of a size they name."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_BYTES_CALL) >= 0:
                raise ValueError(_BYTES_TEXT.format(path))


def _start_of(path):
    with open(path, "rb") as file:
        return file.read(len(_ZIP_START))


def _begins_as_torch(start):
    return start == _ZIP_START or start.startswith(_PICKLE_START)


def open_safetensors(path) -> Weights:
    """Opens a safetensors file, whatever its name ends in.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Where it is no whole safetensors file, or of dtypes that are not known.
    """
    try:
        # checks that the header fits the file
        safe_open(path, framework="pt", device="cpu").__exit__(None, None, None)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short, damaged or no safetensors file. Copy it "
            f"again, or choose another checkpoint. safetensors says: {error}"
        ) from error
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = parse_json(raw.read(length), f"the header of {path}")
    metadata = header.pop("__metadata__", None) or {}
    refuse_changed_metadata(metadata, str(path))
    check_names(header, path)
    unknown = sorted(
        {entry["dtype"] for entry in header.values()} - set(_DTYPES)
    )
    if unknown:
        raise ValueError(
            f"{path} has tensors of dtype {', '.join(unknown)}, which cannot "
            "be merged. Convert them to a float dtype first."
        )
    file = MappedFile(path)
    entries = {}
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        start = 8 + length + entry["data_offsets"][0]
        read = partial(file.tensor, start, shape, dtype)
        entries[name] = Entry(shape, dtype, read)
    ties = {}
    if "tied" in metadata:
        # A name that is stored holds its own values, whatever is said of it
        ties = {
            alias: kept
            for alias, kept in ties_from_text(
                metadata["tied"], str(path)
            ).items()
            if alias not in entries
        }
        for alias, kept in ties.items():
            if kept in entries:
                entries[alias] = entries[kept]
    return Weights(entries, str(path), metadata, ties)
