"""Counts what a process does to the files of a folder, and ends it at one.

`watch_operations` is called in the process that is to be killed. From then on
every change of the folder is an operation: opening a file for writing, each
write, sync, rename, exchange, link, removal and new folder, also those of the
standard library. Before the operation of a given number, or in the middle of it
where it writes, the process sends itself SIGKILL. (What C++ and Rust write by
themselves, as `torch.save` to a path does, is not seen; kills by the clock find
it.)

Authors
 * The speechbrain_merge authors 2026
"""

import os
import signal
import sys

from speechbrain_merge.records import folders

_EVENTS = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.link": "link",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Watch:
    """The count, and the end."""

    def __init__(self, root, at, share, report):
        self.root = os.path.realpath(root) + os.sep
        self.at, self.share, self.report = at, share, report
        self.count = 0
        self.within = False  # our own calls are no operations
        self._write = os.write

    def tell(self, text):
        """To the process that watches."""
        self._write(self.report, str(text).encode())

    def is_inside(self, path, folder=None):
        """Whether a path lies in the folder."""
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
            return os.readlink(path).startswith(self.root)
        path = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return os.path.abspath(path).startswith(self.root)

    def pass_by(self, kind, path, folder=None, half=None):
        """One operation is to come; perhaps it does not."""
        if self.within:
            return
        self.within = True
        try:
            if not self.is_inside(path, folder):
                return
            self.count += 1
            if self.count == self.at:
                if half is not None and self.share:
                    half(self.share)
                    kind = "part of a write"
                self.tell(kind)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            self.within = False


def watch_operations(root, at, share, report):
    """Watches this process from now on.

    Arguments
    ---------
    root : Path
        The folder whose files count.
    at : int
        Number of the operation that does not come; 0 for none.
    share : float
        How much of it comes all the same, where it is a write: 0 to 1.
    report : int
        An open file, which gets the kind of the operation at the end.

    Returns
    -------
    callable
        To be called at the end: reports the number of operations.
    """
    watch = _Watch(root, at, share, report)

    def audit(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and not isinstance(path, int):
                watch.pass_by("open", path)
        elif event in _EVENTS:
            last = arguments[-1]
            watch.pass_by(_EVENTS[event], arguments[0], last)

    real = {
        name: getattr(os, name)
        for name in ("write pwrite fsync ftruncate posix_fallocate".split())
    }

    def write(descriptor, data):
        watch.pass_by(
            "write",
            descriptor,
            half=lambda share: real["write"](descriptor, _part(data, share)),
        )
        return real["write"](descriptor, data)

    def pwrite(descriptor, data, offset):
        watch.pass_by(
            "write",
            descriptor,
            half=lambda share: real["pwrite"](
                descriptor, _part(data, share), offset
            ),
        )
        return real["pwrite"](descriptor, data, offset)

    def fsync(descriptor):
        watch.pass_by("fsync", descriptor)
        return real["fsync"](descriptor)

    def ftruncate(descriptor, length):
        watch.pass_by("truncate", descriptor)
        return real["ftruncate"](descriptor, length)

    def posix_fallocate(descriptor, offset, length):
        watch.pass_by("allocate", descriptor)
        return real["posix_fallocate"](descriptor, offset, length)

    exchange = folders._exchange

    def exchanged(one, other):
        watch.pass_by("exchange", one)
        return exchange(one, other)

    os.write, os.pwrite = write, pwrite
    os.fsync, os.ftruncate = fsync, ftruncate
    os.posix_fallocate = posix_fallocate
    folders._exchange = exchanged
    sys.addaudithook(audit)
    return lambda: watch.tell(watch.count)


def _part(data, share):
    data = memoryview(data).cast("B")
    return data[: int(len(data) * share)]
