"""Write safetensors a tensor at a time, and all or nothing.

A safetensors file is eight bytes (the length of the header), the header (JSON:
name, dtype, shape and place of each tensor), and the tensors. Since dtypes and
shapes of a merged model are known before the first tensor is merged, so are
all places: the header goes first, and tensors follow in whatever order, from
however many threads, each written where it belongs. Nothing waits in memory.

The file grows under a temporary name beside its target, is synced to the disk,
and then takes the target's place in one step. After a crash at any instant the
target is either what it was before, or the new file whole. The temporary name
ends in ``.partial``, which nothing here opens; what a killed process left under
such a name is removed when the same file is written again.

Inside, tensors are laid out from the widest dtype to the narrowest, so that
each one starts at a multiple of its element size without gaps (which the
format forbids). The header keeps the order in which they were specified.

Example
-------
>>> path = getfixture("tmp_path") / "merged.safetensors"
>>> specification = {"weight": (torch.float32, (2, 3))}
>>> with WeightWriter(path, specification, {"method": "average"}) as writer:
...     writer.write("weight", torch.ones(2, 3))
>>> from safetensors.torch import load_file
>>> load_file(path)["weight"].sum().item()
6.0

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

import torch

from speechbrain_merge.records.files import (
    create_temporary,
    name_file,
    remove_stale,
    sync_folder,
)
from speechbrain_merge.weights.dtypes import DTYPE_NAMES
from speechbrain_merge.weights.files import open_safetensors
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.metadata_check import (
    as_checked,
    with_metadata_check,
)
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.tied import ties_from_text, ties_to_text

# The disk is given what was written, so many bytes of a tensor at a time, while
# the next are computed. What is shorter waits for the sync at the end.
_TO_DISK = 1 << 22
_WORTH_IT = 1 << 18


class WeightWriter:
    """Writes one safetensors file, a tensor at a time.

    A context manager. Leaving it puts the file in place, if every tensor has
    been written; leaving it by an error removes what there is.

    Arguments
    ---------
    path : str or Path
        The file to write. An existing one is replaced at the end.
    specification : dict
        Name to ``(dtype, shape)``, for every tensor to come.
    metadata : dict, optional
        Strings to store. ``metadata["tied"]`` holds ties as JSON, from alias
        to stored name; aliases are not to be in the specification. If there is
        a ``metadata["metadata_check"]``, it is computed here, see
        ``speechbrain_merge.weights.metadata_check``.

    Raises
    ------
    ValueError
        Where the specification or the metadata cannot be stored.
    """

    def __init__(self, path, specification, metadata: Optional[dict] = None):
        self.path = Path(path)
        self.specification = {
            name: (dtype, tuple(int(size) for size in shape))
            for name, (dtype, shape) in specification.items()
        }
        self._offsets, header = _lay_out(
            self.path, self.specification, metadata or {}
        )
        self._header = header
        self._bytes = sum(
            math.prod(shape) * dtype.itemsize
            for dtype, shape in self.specification.values()
        )
        self._begun = set()
        self._written = set()
        self._lock = threading.Lock()
        self._file: Optional[int] = None
        self._temporary: Optional[Path] = None

    def __enter__(self) -> "WeightWriter":
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder: name a file in it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(self.path.parent, self.path.name)
        self._temporary, self._file = create_temporary(self.path)
        try:
            _make_room(self._file, len(self._header) + self._bytes)
            _write_at(self._file, memoryview(self._header), 0)
        except BaseException as error:
            self._discard()
            name_file(error, self.path)
            raise
        return self

    def describe(self, metadata: dict):
        """Put other metadata of the same length in the place of the first.

        For what is known only when the tensors have been written, such as
        hashes: the header comes before them, so it cannot grow.

        Arguments
        ---------
        metadata : dict
            Strings to store.

        Raises
        ------
        ValueError
            Where it takes more or less room than what it replaces.
        """
        _, header = _lay_out(self.path, self.specification, metadata)
        if len(header) != len(self._header):
            raise ValueError(
                f"{self.path}: the metadata take {len(header)} bytes with the "
                f"header, but {len(self._header)} were set aside"
            )
        self._header = header
        _write_at(self._opened(), memoryview(header), 0)

    def written(self) -> Weights:
        """What was written, opened, once every tensor was.

        Returns
        -------
        Weights
            To be closed before the file is.
        """
        return open_safetensors(self._temporary)

    def write(self, name: str, tensor: torch.Tensor):
        """Write one tensor. Safe to call from several threads.

        Arguments
        ---------
        name : str
            A name of the specification, not written before.
        tensor : torch.Tensor
            Of exactly the dtype and shape that were specified.

        Raises
        ------
        ValueError
            Where the tensor is not the one that was announced.
        """
        dtype, shape = self._specified(name)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{self.path}: '{name}' was specified as {dtype} "
                f"{list(shape)}, but is {tensor.dtype} {list(tensor.shape)}"
            )
        self.write_pieces(name, [tensor.reshape(-1)])

    def write_pieces(self, name: str, pieces: Iterable[torch.Tensor]):
        """Write one tensor, a piece after the other, from any thread.

        Arguments
        ---------
        name : str
            A name of the specification, not written before.
        pieces : iterable of torch.Tensor
            Flat tensors of the dtype, and together of the length, that were
            specified.

        Raises
        ------
        ValueError
            Where the tensor is not the one that was announced.
        """
        file = self._opened()
        dtype, shape = self._specified(name)
        with self._lock:
            if name in self._begun:
                raise ValueError(f"{self.path}: '{name}' is written twice")
            self._begun.add(name)
        count, length = 0, math.prod(shape)
        begun = end = self._offsets[name]
        for piece in pieces:
            place = self._offsets[name] + count * dtype.itemsize
            count += piece.numel()
            if piece.dtype != dtype or count > length:
                raise ValueError(
                    f"{self.path}: '{name}' was specified as {length} values "
                    f"of {dtype}, but has {count} of {piece.dtype}"
                )
            if piece.numel() > 0:
                _write_at(file, tensor_bytes(piece), place)
            end = self._offsets[name] + count * dtype.itemsize
            if end - begun >= _TO_DISK:
                _start_writing(file, begun, end)
                begun = end
        if end - begun >= _WORTH_IT:
            _start_writing(file, begun, end)
        if count != length:
            raise ValueError(
                f"{self.path}: '{name}' was specified as {length} values of "
                f"{dtype}, but has {count}"
            )
        self._written.add(name)

    def _specified(self, name):
        """Dtype and shape of a name of the specification."""
        if name not in self.specification:
            raise ValueError(f"{self.path}: '{name}' was not specified")
        return self.specification[name]

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            self._discard()
            name_file(error, self.path)
            return
        missing = [
            name for name in self.specification if name not in self._written
        ]
        if missing:
            self._discard()
            raise ValueError(
                f"{self.path} was not written: {len(missing)} of "
                f"{len(self.specification)} tensors are missing, e.g. "
                f"{', '.join(missing[:5])}"
            )
        try:
            os.fsync(self._opened())
            os.replace(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise
        self._close()
        sync_folder(self.path.parent)

    def _opened(self) -> int:
        """The file; raises a ValueError where it is not open."""
        if self._file is None:
            raise ValueError(
                f"{self.path} is not open for writing. Write inside the "
                "`with WeightWriter(...)` block."
            )
        return self._file

    def _close(self):
        os.close(self._opened())
        self._file = None

    def _discard(self):
        self._close()
        # Already moved where os.replace was interrupted after its work
        self._temporary.unlink(missing_ok=True)


def write_weights(path, tensors: Mapping, metadata: Optional[dict] = None):
    """Write a whole model to a safetensors file, ties once.

    Arguments
    ---------
    path : str or Path
        The file to write.
    tensors : Mapping
        Name to tensor: a state dict, or open weights, which are then read a
        tensor at a time.
    metadata : dict, optional
        Strings to store.

    Returns
    -------
    Path
        The path.

    Example
    -------
    >>> shared = torch.zeros(3)
    >>> path = getfixture("tmp_path") / "tied.safetensors"
    >>> path = write_weights(path, {"in": shared, "out": shared})
    >>> with open_weights(path) as weights:
    ...     weights.names(), weights.tied
    (['in', 'out'], {'out': 'in'})
    """
    with open_weights(tensors) as weights:
        metadata = dict(metadata or {})
        if weights.tied:
            metadata["tied"] = ties_to_text(weights.tied)
        specification = {
            name: (weights.dtype(name), weights.shape(name))
            for name in weights
            if name not in weights.tied
        }
        if metadata:
            metadata = with_metadata_check(metadata)
        with WeightWriter(path, specification, metadata) as writer:
            for name in specification:
                writer.write(name, weights[name])
    return Path(path)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor as bytes, in row-major order.

    Arguments
    ---------
    tensor : torch.Tensor
        Any dense tensor, on any device.

    Returns
    -------
    memoryview
        Shares memory with the tensor where that is possible.

    Example
    -------
    >>> bytes(tensor_bytes(torch.tensor([1, 2], dtype=torch.int16)))
    b'\\x01\\x00\\x02\\x00'
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def header_bytes(header: Mapping) -> bytes:
    """The bytes of a safetensors file before the first tensor's.

    Arguments
    ---------
    header : dict
        Name to dtype, shape and offsets; and the metadata, which come first.

    Returns
    -------
    bytes

    Example
    -------
    >>> header_bytes({"__metadata__": {"a": "b"}})[8:]
    b'{"__metadata__":{"a":"b"}}      '
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    content = text.encode("utf-8")
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _lay_out(path, specification, metadata):
    """Place of each tensor in the file, and the bytes before the first."""
    for name, (dtype, _) in specification.items():
        if name == "__metadata__":
            raise ValueError(
                f"{path}: safetensors keeps the name '__metadata__' for "
                "itself. Rename the tensor."
            )
        if dtype not in DTYPE_NAMES:
            raise ValueError(
                f"{path}: '{name}' has dtype {dtype}, which safetensors "
                "cannot store"
            )
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(
                f"{path}: safetensors metadata maps strings to strings, but "
                f"{key!r} is a {type(value).__name__}. Use str() or "
                "json.dumps()."
            )
    if "tied" in metadata:
        ties = ties_from_text(metadata["tied"], str(path))
        for alias, kept in ties.items():
            if alias in specification or kept not in specification:
                raise ValueError(
                    f"{path}: '{alias}' is tied to '{kept}', so the second is "
                    "to be specified and the first is not"
                )
    start = 0
    places = {}
    # Widest first: each tensor then starts at a multiple of its element size
    for name in sorted(specification, key=lambda n: -_width(specification, n)):
        dtype, shape = specification[name]
        end = start + math.prod(shape) * dtype.itemsize
        places[name] = (start, end)
        start = end
    header = {"__metadata__": as_checked(metadata)} if metadata else {}
    for name, (dtype, shape) in specification.items():
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": list(places[name]),
        }
    before = header_bytes(header)
    offsets = {name: len(before) + place[0] for name, place in places.items()}
    return offsets, before


def _width(specification, name):
    return specification[name][0].itemsize


def _make_room(file, length):
    """Gives a file its length, so that a full disk shows before the work."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file, 0, length)
    else:
        os.ftruncate(file, length)


def _start_writing(file, begin, end):
    """Has the system write a part of a file to the disk, and does not wait.

    Else the sync at the end would wait for the whole file. Linux does this
    when it is told that the part is not needed any more; it stays in memory,
    since only pages that are on the disk are let go of.
    """
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_DONTNEED)


def _write_at(file, data, offset):
    # pwrite may write less than asked: Linux stops at 2 GiB
    while data:
        count = os.pwrite(file, data, offset)
        data = data[count:]
        offset += count
