r"""A log: one JSON object a line, only ever added to.

A line is on the disk before `append` returns. A process killed while writing
leaves a torn last line; readers pass over it, and the next writer cuts it off.
Every other line was written whole once, so one that cannot be read is damage,
and an error that names it. So is one that reads well and was changed: each line
carries a check of its content (see `speechbrain_merge.records.written_check`).

Example
-------
>>> log = Log(getfixture("tmp_path") / "trials.jsonl")
>>> log.append({"trial": 1})
>>> log.append({"trial": 2})
>>> with open(log.path, "a") as file:
...     _ = file.write('{"trial": 3')  # killed here
>>> log.records()
[{'trial': 1}, {'trial': 2}]

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import (
    name_file,
    open_to_append,
    sync_folder,
    write_all,
    write_whole,
)
from speechbrain_merge.records.reading import parse_json, read_bytes
from speechbrain_merge.records.written_check import with_check, without_check

logger = get_logger(__name__)

LOG_LIMIT = 1 << 30
"""Bytes of a log: ten million lines of a hundred bytes."""

LINE_LIMIT = 16 << 20
"""Bytes of a line."""

_BLOCK = 1 << 16


class Log:
    """A file of JSON lines.

    Arguments
    ---------
    path : str or Path
        The file. It and its folder are made at the first writing.
    check : Callable, optional
        Takes a line's object and where it stands; gives the record, or raises
        a RecordError. See `speechbrain_merge.records.checked`.
    advice : str
        What to do about a line that is damaged, for the error.
    """

    def __init__(
        self,
        path,
        check: Optional[Callable] = None,
        advice: str = "Repair or delete that line.",
    ):
        self.path = Path(path)
        self.check = check
        self.advice = advice

    def records(self) -> list[dict]:
        """All whole lines, the oldest first.

        Returns
        -------
        list of dict
            Empty where there is no file.

        Raises
        ------
        RecordError
            Where a line is damaged; names the file and the line.
        """
        return [record for _, record in self.lines()]

    def lines(self) -> Iterator[tuple]:
        """All whole lines, with where they stand.

        Yields
        ------
        where : str
            The file and the number of the line, for errors.
        record : dict
        """
        if not self.path.is_file():
            return
        *whole, last = read_bytes(self.path, LOG_LIMIT).split(b"\n")
        for number, line in enumerate(whole, start=1):
            where = f"{self.path}, line {number}"
            try:
                yield where, self._parse(line, where)
            except RecordError as error:
                raise RecordError(f"{error}. {self.advice}") from None
        # What follows the last line end is empty, torn, or lacks only its end
        if last and self._whole(last) is not None:
            where = f"{self.path}, line {len(whole) + 1}"
            yield where, self._parse(last, where)

    def append(self, record: dict):
        """Adds a line and has it on the disk before returning.

        Arguments
        ---------
        record : dict
            Plain values.
        """
        line = json.dumps(with_check(record)).encode()
        if len(line) > LINE_LIMIT:
            raise ValueError(
                f"{self.path}: a line of {len(line)} bytes, expected "
                f"{LINE_LIMIT} at most"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        self._part()
        descriptor = open_to_append(self.path)
        try:
            # What another process is just writing is not torn
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._mend(descriptor)
            # One write: a kill leaves a part of this line or nothing of it
            write_all(descriptor, line + b"\n")
            os.fsync(descriptor)
        except OSError as error:
            name_file(error, self.path)
            raise
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)

    def _part(self):
        """Parts the file from others that share its content by hard links.

        A folder may have been copied so; lines that are added here are no
        lines of the copy.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            write_whole(self.path, read_bytes(self.path, LOG_LIMIT))

    def _mend(self, descriptor):
        """Cuts off a torn last line; ends one that lacks only its end."""
        end = os.lseek(descriptor, 0, os.SEEK_END)
        start = _end_of_last_line(descriptor, end)
        if start == end:
            return
        last = os.pread(descriptor, min(end - start, LINE_LIMIT + 1), start)
        if self._whole(last) is not None:
            write_all(descriptor, b"\n")
            return
        logger.warning(f"{self.path}: cut off a torn last line")
        os.ftruncate(descriptor, start)

    def _whole(self, line):
        """The object of a line without its end; None where it is torn.

        No beginning of a JSON object is a JSON object itself.
        """
        try:
            record = parse_json(line, str(self.path))
        except RecordError:
            return None
        return record if isinstance(record, dict) else None

    def _parse(self, line, where):
        if len(line) > LINE_LIMIT:
            raise RecordError(f"{where} has {len(line)} bytes")
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise RecordError(f"{where}: expected a JSON object")
        record = without_check(record, where)
        return record if self.check is None else self.check(record, where)


def _end_of_last_line(descriptor, end):
    """Length of a file up to its last line end."""
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
