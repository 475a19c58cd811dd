"""The attributes that methods write, as they were before a Brain ran.

A method may write a counter, as a decoder that counts what it has decoded, or a
setting, as ``decoder.configure(beam=16)`` does. A counter decides nothing about
decoding and differs between runs; a setting decides. They are told apart by the
time of writing: what changes while a Brain trains or decodes is a counter. The
value that was there before, or that was changed between two runs, is a setting.

Example
-------
>>> state = GivenState()
>>> decoder = {"beam": 16, "decoded": 0}
>>> def read():
...     for name, value in decoder.items():
...         _ = state.digest_of(name, lambda: str(value))
>>> with state.running(read):
...     decoder["decoded"] = 99
>>> decoder["beam"] = 8
>>> state.look(read)
>>> [state.digest_of(name, None) for name in decoder]
['8', '0']

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
from collections.abc import Callable, Hashable
from typing import Any, Optional


class GivenState:
    """Digests of what objects of a recipe were given, by where it is found.

    What belongs to a module (a key whose first word is a text) is known to all of
    them, as one module is there for all that a process runs.
    """

    _of_modules: dict = {}
    """Key to what was given, and to what was there last."""

    def __init__(self):
        self._known: dict = {}  # as well, of objects and functions
        self._now: Optional[dict] = None  # while it is looked at
        self._alive: Any = None  # ids are only unique while objects live
        self._runs = 0
        self._met: list = []  # what is read beside

    @property
    def looks(self) -> bool:
        """Whether all that there is is told just now."""
        return self._now is not None

    def digest_of(
        self, key: Hashable, digest: Callable[[], str]
    ) -> Optional[str]:
        """The digest of the value that was given.

        Arguments
        ---------
        key : object
            Where the value is found: an object or its id, and a name.
        digest : callable
            Gives the digest of the value that is there now. It is called while
            state is looked at.

        Returns
        -------
        str or None
            None where nothing was given: a run itself made it.
        """
        if self._now is None:
            return self._store(key).get(key, (None, None))[0]
        found = self._now[key] = digest()
        return found

    def look(self, read: Callable[[], Any]) -> None:
        """Takes what has changed since the last run for given.

        Arguments
        ---------
        read : callable
            Asks ``digest_of`` for everything that there is. What it returns is
            kept, so that ids stay unique.
        """
        if self._runs:
            return
        self._read(read, given=True)

    def meet(self, read: Callable[[], Any]) -> None:
        """Takes what is seen for the first time for given, in a run as well.

        Arguments
        ---------
        read : callable
            As for ``look``, of what a look does not read: a set of data, say. It
            is read at each look from now on, if it has any state.
        """
        self._now = {}
        try:
            alive = read()
        finally:
            now, self._now = self._now, None
        new = {key for key in now if key not in self._store(key)}
        if not new:
            return
        for key in new:
            self._store(key)[key] = (now[key], now[key])
        self._met.append(read)
        self._alive = [self._alive, alive]

    @contextlib.contextmanager
    def running(self, read: Callable[[], Any]):
        """A run; what changes in it is not given.

        Arguments
        ---------
        read : callable
            As for ``look``.

        Yields
        ------
        None
        """
        self.look(read)
        self._runs += 1
        try:
            yield
        finally:
            self._runs -= 1
            if not self._runs:
                self._read(read, given=False)

    def _read(self, read, given):
        """Stores what is there now, as given where it is not what was last."""
        self._now = {}
        try:
            alive = [read(), *(each() for each in self._met)]
        finally:
            now, self._now = self._now, None
        stored = {
            key: (
                digest if given and known[1] != digest else known[0],
                digest,
            )
            for key, digest in now.items()
            for known in [self._store(key).get(key, (None, None))]
        }
        self._known, self._alive = {}, alive
        for key, entry in stored.items():
            self._store(key)[key] = entry

    def _store(self, key):
        """Where a key is known."""
        of_a_module = isinstance(key, tuple) and isinstance(key[0], str)
        return self._of_modules if of_a_module else self._known
