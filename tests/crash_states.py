"""What a disk may hold after a crash: every prefix, and what may be reordered.

A file system promises little of what was not synced: of two writes the second
may be on the disk and the first not, a name may be there before its content,
and a renamed file may be back under its old name. `recorded` notes the
operations that a function does in a folder, and `states` gives every tree that
a crash may leave, as ALICE does (Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014):

- after each operation, all of them are on the disk (a kill);
- or those are lost, all or one at a time, that nothing has synced: content of
  files that were not synced since (lost, or zeros of the right length, or
  half), and entries of folders that were not synced since.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import os
from dataclasses import dataclass, field

from speechbrain_merge.records import folders


@dataclass
class Operation:
    """One change of a folder.

    `kind` is "write" (content of a file), "entry" (a name gets a file, or
    loses it), "fsync" or "fsync folder".
    """

    kind: str
    node: int = -1
    content: bytes = b""
    changes: dict = field(default_factory=dict)  # name: node or None
    folders: frozenset = frozenset()


class Recorder:
    """Notes what is done in a folder, by way of the functions of `os`."""

    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.operations = []
        self.entries = {}  # name: node; folders have node None
        self.content = {}
        self.after = []  # called after each operation
        self._next = 0
        for above, names, files in os.walk(self.root):
            for name in names:
                self.entries[self._name(os.path.join(above, name))] = "folder"
            for name in files:
                path = os.path.join(above, name)
                self.entries[self._name(path)] = self._new(path)
        self.first = dict(self.entries), dict(self.content)

    def _new(self, path=None):
        self._next += 1
        self.content[self._next] = b"" if path is None else _read(path)
        return self._next

    def _name(self, path, folder=None):
        """Relative to the root; None for what lies outside."""
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(os.fspath(path))
        inside = os.path.relpath(path, self.root)
        return None if inside.startswith("..") else inside

    def _note(self, operation):
        self.operations.append(operation)
        for each in self.after:
            each()

    def note_entries(self, changes, *names):
        """Entries that got a file, a folder, or nothing; which were named."""
        for name, node in changes.items():
            if node is None:
                self.entries.pop(name, None)
            else:
                self.entries[name] = node
        above = frozenset(map(os.path.dirname, names or changes))
        self._note(Operation("entry", changes=changes, folders=above))

    def note_content(self, name):
        """The content of a file, if it has changed."""
        path = os.path.join(self.root, name)
        if self.entries.get(name) is None:
            self.note_entries({name: self._new()})
        node = self.entries[name]
        content = _read(path)
        if content != self.content[node]:
            self.content[node] = content
            self._note(Operation("write", node, content))

    def moved(self, source, target):
        """All entries under a name, under another one."""
        changes = {}
        for name, node in self.entries.items():
            if name == source or name.startswith(source + os.sep):
                changes[name] = None
                changes[target + name[len(source) :]] = node
        return changes


def _read(path):
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def recorded(root):
    """Notes what is done in a folder.

    Arguments
    ---------
    root : Path
        The folder.

    Yields
    ------
    Recorder
        With the `operations`, in order.
    """
    recorder = Recorder(root)
    real = {
        name: getattr(os, name)
        for name in (
            "open write pwrite ftruncate posix_fallocate fsync replace rename "
            "link unlink remove mkdir rmdir"
        ).split()
    }
    opened = {}

    def watched_open(path, flags, mode=0o777, *, dir_fd=None):
        name = recorder._name(path, dir_fd)
        known = name is None or name in recorder.entries
        descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
        opened[descriptor] = name
        if not known and flags & os.O_CREAT:
            recorder.note_entries({name: recorder._new()})
        return descriptor

    def watched_write(which):
        def function(descriptor, *arguments):
            done = real[which](descriptor, *arguments)
            if opened.get(descriptor) is not None:
                recorder.note_content(_now(recorder, descriptor))
            return done

        return function

    def watched_fsync(descriptor):
        real["fsync"](descriptor)
        name = _now(recorder, descriptor)
        if name is None:
            return
        if os.path.isdir(os.path.join(recorder.root, name)):
            name = "" if name == "." else name
            recorder._note(Operation("fsync folder", folders=frozenset([name])))
        else:
            recorder.note_content(name)
            recorder._note(Operation("fsync", recorder.entries[name]))

    def watched_rename(which):
        def function(source, target, **options):
            one, other = recorder._name(source), recorder._name(target)
            if one is not None and os.path.isfile(source):
                recorder.note_content(one)
            real[which](source, target, **options)
            if one is not None and other is not None:
                recorder.note_entries(recorder.moved(one, other), one, other)

        return function

    def watched_link(source, target, **options):
        real["link"](source, target, **options)
        one, other = recorder._name(source), recorder._name(target)
        recorder.note_entries({other: recorder.entries[one]})

    def watched_removal(which):
        def function(path, *, dir_fd=None):
            name = recorder._name(path, dir_fd)
            real[which](path, dir_fd=dir_fd)
            if name in recorder.entries:
                recorder.note_entries({name: None})

        return function

    def watched_mkdir(path, *arguments, **options):
        real["mkdir"](path, *arguments, **options)
        name = recorder._name(path)
        if name is not None:
            recorder.note_entries({name: "folder"})

    exchange = folders._exchange

    def watched_exchange(one, other):
        done = exchange(one, other)
        if done:
            a, b = recorder._name(one), recorder._name(other)
            forth, back = recorder.moved(a, b), recorder.moved(b, a)
            put = {n: node for n, node in back.items() if node is not None}
            put.update(
                {n: node for n, node in forth.items() if node is not None}
            )
            gone = {n: None for n in {*forth, *back} if n not in put}
            recorder.note_entries({**gone, **put}, a, b)
        return done

    watched = {
        "open": watched_open,
        "write": watched_write("write"),
        "pwrite": watched_write("pwrite"),
        "ftruncate": watched_write("ftruncate"),
        "posix_fallocate": watched_write("posix_fallocate"),
        "fsync": watched_fsync,
        "replace": watched_rename("replace"),
        "rename": watched_rename("rename"),
        "link": watched_link,
        "unlink": watched_removal("unlink"),
        "remove": watched_removal("remove"),
        "mkdir": watched_mkdir,
        "rmdir": watched_removal("rmdir"),
    }
    try:
        folders._exchange = watched_exchange
        for name, function in watched.items():
            setattr(os, name, function)
        yield recorder
    finally:
        folders._exchange = exchange
        for name, function in real.items():
            setattr(os, name, function)


def _now(recorder, descriptor):
    """The name of an open file or folder, wherever it was moved."""
    return recorder._name(os.readlink(f"/proc/self/fd/{descriptor}"))


def states(recorder):
    """Every tree that a crash may leave.

    Arguments
    ---------
    recorder : Recorder
        What was done.

    Yields
    ------
    number : int
        Of the operations before the crash.
    tree : dict
        Name to content; None for a folder.
    """
    seen = set()
    operations = recorder.operations
    for number in range(len(operations) + 1):
        done = operations[:number]
        loose = [at for at in range(number) if not _is_synced(done, at)]
        writes = [at for at in loose if done[at].kind == "write"]
        entries = [at for at in loose if done[at].kind == "entry"]
        choices = [
            ({}, "kill"),
            (dict.fromkeys(writes, "lost"), "content lost"),
            (dict.fromkeys(writes, "zeros"), "zeros"),
            (dict.fromkeys(entries, "lost"), "entries lost"),
            (dict.fromkeys(loose, "lost"), "all lost"),
            *(({at: "half"}, "half") for at in writes[-1:]),
            *(({at: "lost"}, "one lost") for at in loose),
        ]
        for choice, _ in choices:
            tree = _apply(recorder.first, done, choice)
            key = (number, tuple(sorted(tree.items(), key=str)))
            if key[1] not in seen:
                seen.add(key[1])
                yield number, tree


def write_tree(tree, folder):
    """Puts a tree on the disk.

    Arguments
    ---------
    tree : dict
        As `states` gives it.
    folder : Path
        Where. Made anew.
    """
    folder.mkdir(parents=True)
    for name, content in sorted(tree.items()):
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _is_synced(done, at):
    """Whether an operation is on the disk for sure."""
    operation = done[at]
    if operation.kind == "write":
        return any(
            each.kind == "fsync" and each.node == operation.node
            for each in done[at + 1 :]
        )
    if operation.kind == "entry":
        synced = set()
        for each in done[at + 1 :]:
            if each.kind == "fsync folder":
                synced |= each.folders
        return operation.folders <= synced
    return True


def _apply(first, done, choice):
    entries, content = dict(first[0]), dict(first[1])
    for at, operation in enumerate(done):
        fate = choice.get(at)
        if operation.kind == "write":
            data = operation.content
            before = content.get(operation.node, b"")
            if fate == "lost":
                continue
            if fate is not None:
                # What was there before it was added to is as it was
                same = len(before) if data.startswith(before) else 0
                added = data[same:]
                if fate == "zeros":
                    added = bytes(len(added))
                else:
                    added = added[: len(added) // 2]
                data = data[:same] + added
            content[operation.node] = data
        elif operation.kind == "entry" and fate != "lost":
            for name, node in operation.changes.items():
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
    return {
        name: None if node == "folder" else content.get(node, b"")
        for name, node in entries.items()
    }
