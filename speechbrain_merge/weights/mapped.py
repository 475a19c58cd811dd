"""Memory-mapped files, whose memory is released after use.

A mapped file costs no memory of its own: the pages of it that are looked at are
the operating system's cache of the file. Yet they count as the process's for as
long as they stay mapped, and a merge looks at every page of every model once.
So whoever is done with a tensor says so (`release`), and its pages are the
system's alone again. The next look at them maps them anew.

Example
-------
>>> path = getfixture("tmp_path") / "numbers"
>>> _ = path.write_bytes(bytes([1, 2, 3]))
>>> numbers = MappedFile(path).tensor(0, (3,), torch.uint8)
>>> release(numbers)
>>> numbers
tensor([1, 2, 3], dtype=torch.uint8)

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import math
import mmap
import os
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Optional

import torch

# Address of the first byte of each file that is mapped now, and one past the
# last. A file is mapped for as long as a tensor of it lives.
_MAPPED = {}
_OPENED: ContextVar[Optional[weakref.WeakSet]] = ContextVar(
    "files that are opened", default=None
)


class WatchedFile:
    """A file that is mapped by someone else, such as torch.

    Arguments
    ---------
    path : str or Path
        The file.
    """

    def __init__(self, path):
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._before = os.fstat(descriptor)
        _watch(self)

    def check(self):
        """Raises a ValueError where the file was cut or written to meanwhile.

        To look at mapped memory that the file does not have any more would
        end the process (SIGBUS).
        """
        now = os.fstat(self._descriptor)
        check_length(self.path, now.st_size, self._before.st_size)
        _check_unwritten(self.path, now, self._before)


def check_length(path, now: int, before: int):
    """Refuses a mapped file that was cut short since it was opened.

    Arguments
    ---------
    path : str or Path
        The file, for the error.
    now, before : int
        Its length, and that when it was mapped.
    """
    if now < before:
        raise ValueError(
            f"{path} has {now} bytes, and had {before} when it was opened: "
            "another process has cut it short. Copy it again."
        )


def _check_unwritten(path, now, before):
    """Refuses a mapped file that was written to since it was opened."""
    if now.st_mtime_ns != before.st_mtime_ns:
        raise ValueError(
            f"{path} was written to while it was read, so that what was read "
            "may be of two models. Wait until it is whole, and start again."
        )


@contextlib.contextmanager
def files_opened() -> Iterator[weakref.WeakSet]:
    """Gathers the files that are mapped inside, by this thread.

    Yields
    ------
    files : WeakSet
        Each has a method ``check``.

    Example
    -------
    >>> path = getfixture("tmp_path") / "numbers"
    >>> _ = path.write_bytes(bytes([1, 2, 3]))
    >>> with files_opened() as files:
    ...     numbers = MappedFile(path)
    >>> [file.check() for file in files]
    [None]
    """
    files: weakref.WeakSet = weakref.WeakSet()
    token = _OPENED.set(files)
    try:
        yield files
    finally:
        _OPENED.reset(token)


def _watch(file):
    files = _OPENED.get()
    if files is not None:
        files.add(file)


class MappedFile:
    """A file whose bytes can be had as tensors, without reading them.

    Arguments
    ---------
    path : str or Path
        A file that is not empty.
    """

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            # Private: should a caller write to a tensor, the file stays
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._before = os.fstat(file.fileno())
        _watch(self)
        everything = torch.frombuffer(self._map, dtype=torch.uint8)
        start = everything.data_ptr()
        key = id(self._map)
        _MAPPED[key] = (start, start + len(self._map), weakref.ref(self._map))
        weakref.finalize(self._map, _MAPPED.pop, key, None)

    def check(self):
        """Raises a ValueError where the file was cut or written to meanwhile.

        A file that took its place is not looked at: what is mapped stays.
        """
        check_length(self.path, self._map.size(), len(self._map))
        with contextlib.suppress(OSError):  # removed, perhaps
            now = os.stat(self.path)
            if os.path.samestat(now, self._before):
                _check_unwritten(self.path, now, self._before)

    def tensor(self, start: int, shape: tuple, dtype: torch.dtype):
        """Some bytes of the file as a tensor.

        Arguments
        ---------
        start : int
            Place of the first byte.
        shape : tuple
            Of the tensor.
        dtype : torch.dtype
            Of the tensor.

        Returns
        -------
        torch.Tensor
            Not to be changed.
        """
        self.check()
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        source = self._map
        if start % dtype.itemsize:
            # No tensor may begin there: take a copy
            source = bytearray(source[start : start + count * dtype.itemsize])
            start = 0
        flat = torch.frombuffer(source, dtype=dtype, count=count, offset=start)
        return flat.reshape(shape)


def release(tensor: torch.Tensor):
    """Releases the memory of a tensor that lies in a mapped file.

    The tensor stays as it is, and can be read again. What does not lie in a
    mapped file is left alone.

    Arguments
    ---------
    tensor : torch.Tensor
        Dense and contiguous, or a part of such.
    """
    if not hasattr(mmap.mmap, "madvise") or tensor.numel() == 0:
        return
    first = tensor.data_ptr()
    last = first + tensor.numel() * tensor.element_size()
    for start, end, reference in list(_MAPPED.values()):
        if start <= first < end:
            mapped = reference()
            if mapped is not None and tensor.is_contiguous():
                # outwards to whole pages: what else lies there comes back
                place = (first - start) // mmap.PAGESIZE * mmap.PAGESIZE
                length = min(last, end) - start - place
                mapped.madvise(mmap.MADV_DONTNEED, place, length)
            return
