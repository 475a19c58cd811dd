"""A record of each merge of a pool, so that members can be added later.

A pool outlives the data that its experts were trained on. Next month there is
one more domain: its expert joins the others in the same pool, and the average
is formed again, of the same members and with the same weights. So each merge
leaves a line beside the runs, in a file that is only ever added to:

    <pool>/merges.jsonl        members, method, weights, path and error rate
    <pool>/<run>/…             the runs

Members are known by the digest of their content. What a line says of a
candidate that was pruned since is still true, but the merge cannot be repeated.

Example
-------
>>> pool = getfixture("tmp_path")
>>> member = Member("digits/epoch-0002", "digits", "5e" * 32, weight=1.0)
>>> remember(pool, MergeRecord("aode", {"name": "average"}, (member,)))
True
>>> [(merge.name, merge.runs) for merge in read_merges(pool)]
[('aode', ['digits'])]

Authors
 * The speechbrain_merge authors 2026
"""

import errno
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.candidate import BASE, Candidate
from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.pool.meta import plain
from speechbrain_merge.pool.records import merge_record
from speechbrain_merge.records.files import copy_whole, try_lock
from speechbrain_merge.records.log import Log
from speechbrain_merge.weights import digest

logger = get_logger(__name__)

FILE = "merges.jsonl"

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Of a pool that may not be written."""

TICK = 1e-3
"""Seconds between two merges of a pool, at least."""


@dataclass(frozen=True)
class Member:
    """One model that was merged.

    Arguments
    ---------
    name : str
        Of the candidate; `base` for the original.
    run : str
        Its run.
    digest : str
        Of its content.
    weight : float, optional
        Its share of an average; None for methods that have no such thing.
    """

    name: str
    run: str
    digest: str
    weight: Optional[float] = None


@dataclass(frozen=True)
class MergeRecord:
    """One merge.

    Arguments
    ---------
    name : str
        Of the merge stage.
    method : dict
        `name` of the method, and its parameters.
    members : tuple of Member
        In the order of the merge; with `with_base` the original is among them.
    weights : dict, optional
        As the stage was given them: by run or candidate.
    with_base : bool
        Whether the original was one more member.
    left_out : tuple of str
        Runs that were rolled back: they do not come in again as new ones.
    base : str, optional
        The base that the stage was given; None where it was the pool's.
    path : str, optional
        The merged weights.
    digest : str, optional
        Of that file.
    value : float, optional
        Error rate on the selection set in percent, if it was scored.
    kept : str, optional
        Of a method that goes on from its merges: the file in the pool that
        stands for the members.
    base_digest : str, optional
        Of the weights that its members were fine-tuned from, with `kept`.
    time : float
        Seconds since 1970; `remember` sees to it that a later merge has a
        later time, also where the clock was set back.
    """

    name: str
    method: dict
    members: tuple
    weights: Optional[dict] = None
    with_base: bool = False
    left_out: tuple = ()
    base: Optional[str] = None
    path: Optional[str] = None
    digest: Optional[str] = None
    value: Optional[float] = None
    kept: Optional[str] = None
    base_digest: Optional[str] = None
    time: float = field(default_factory=time.time, compare=False)

    @property
    def runs(self) -> list:
        """The runs of its members, each once."""
        return list(dict.fromkeys(member.run for member in self.members))

    def find_members(
        self, candidates: Sequence, without: Sequence = ()
    ) -> list[Candidate]:
        """The members among candidates, but for the original.

        Arguments
        ---------
        candidates : list of Candidate
            All that there are.
        without : list of str
            Runs whose members are not wanted.

        Returns
        -------
        list of Candidate
            In the order of the merge.

        Raises
        ------
        ValueError
            Where one is not there any more, or not the same.
        """
        there = {candidate.digest: candidate for candidate in candidates}
        members = [
            member
            for member in self.members
            if member.name != BASE and member.run not in without
        ]
        missing = [each.name for each in members if each.digest not in there]
        if missing:
            raise ValueError(
                f"merge '{self.name}' had members that the pool does not have "
                f"any more: {', '.join(missing)}. Candidates: "
                f"{', '.join(each.name for each in candidates)}."
            )
        return [there[each.digest] for each in members]


def read_merges(pool) -> list[MergeRecord]:
    """The merges that are recorded in a pool.

    Arguments
    ---------
    pool : str, Path or CheckpointPool
        The pool.

    Returns
    -------
    list of MergeRecord
        The oldest first; none where nothing was merged.
    """
    found = []
    for line in _log(getattr(pool, "folder", pool)).records():
        line["members"] = tuple(Member(**each) for each in line["members"])
        line["left_out"] = tuple(line.get("left_out", ()))
        if found:
            # The order of the lines counts: a clock may have been set back
            line["time"] = max(line.get("time", 0.0), found[-1].time + TICK)
        found.append(MergeRecord(**line))
    return found


def of_name(merges: Iterable, name: str) -> list[MergeRecord]:
    """The merges of one name.

    Arguments
    ---------
    merges : iterable of MergeRecord
        Of a pool, say.
    name : str
        Of the merge stage.

    Returns
    -------
    list of MergeRecord
        In their order.
    """
    return [merge for merge in merges if merge.name == name]


def remember(pool, record: MergeRecord, before: Optional[str] = None) -> bool:
    """Records a merge in a pool, unless it is the last one of its name.

    A pool that may not be written, such as a colleague's, remembers nothing: a
    warning says so, since the merge itself is done.

    Arguments
    ---------
    pool : str or Path
        Folder of the pool.
    record : MergeRecord
        What was merged.
    before : str, optional
        The digest of the merge that this one went on from, which has to be the
        last one of its name.

    Returns
    -------
    bool
        Whether the pool says so now.

    Raises
    ------
    ValueError
        Where another merge of this name came between.
    """
    try:
        with _alone(Path(pool)):
            merges = read_merges(pool)
            named = of_name(merges, record.name)
            if before is not None:
                known = named[-1] if named else None
                check_last(pool, known, record.name, before)
            last = [asdict(each) for each in named]
            if merges:
                later = max(record.time, merges[-1].time + TICK)
                record = replace(record, time=later)
            line = plain(asdict(record))
            if last and plain({**last[-1], "time": record.time}) == line:
                return True
            _log(pool).append(line)
            return True
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        logger.warning(
            f"{pool} may not be written ({error.strerror}), so it will not "
            f"remember the merge '{record.name}'. The merge itself is not "
            "affected; to repeat it with one more run, copy the pool first."
        )
        return False


def check_last(pool, last: Optional[MergeRecord], name: str, content: str):
    """Raises unless a merge is still the last one of its name.

    Arguments
    ---------
    pool : str or Path
        Folder of the pool.
    last : MergeRecord, optional
        The last of the name now.
    name : str
        Of the merge.
    content : str
        The digest of the merge that was the last.

    Raises
    ------
    ValueError
        Where it is another one, or none.
    """
    if last is None or last.digest != content:
        raise ValueError(
            f"Another merge '{name}' was recorded in {pool} while this one "
            "was made, which lacks what that one added. The pool keeps the "
            "other; merge again to go on from it."
        )


def keep(pool, path, name: str, content: str) -> Optional[str]:
    """Keeps a merge in a pool, to go on from when its members are gone.

    Arguments
    ---------
    pool : str or Path
        Folder of the pool.
    path : Path
        The merged weights.
    name : str
        Of the merge stage.
    content : str
        The digest of that file.

    Returns
    -------
    file : str or None
        Its name in the pool, beside the record of the merges. The file is
        there whole, or not at all. None for a pool that may not be written.
    """
    target = Path(pool) / f"{name}-{content[:16]}.safetensors"
    try:
        if not target.is_file() or digest(target) != content:
            copy_whole(path, target)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return None
    return target.name


def forget(pool, record: MergeRecord):
    """Removes the weights that were kept of a merge, once there is a later one.

    Arguments
    ---------
    pool : str or Path
        Folder of the pool.
    record : MergeRecord
        The earlier merge. A file that is not what it says stays.
    """
    if record.kept is None:
        return
    path = Path(pool) / record.kept
    if path.is_symlink() or not path.is_file():
        return
    if digest(path) == record.digest:
        path.unlink()


def time_of_merge(pools: Iterable) -> float:
    """A time for a merge that is about to be remembered in some pools.

    Arguments
    ---------
    pools : iterable of str or Path
        The pools.

    Returns
    -------
    float
        Now, or later than all merges that they remember.
    """
    times = [each.time + TICK for pool in pools for each in read_merges(pool)]
    return max([time.time(), *times])


def find_merge(pools: Iterable, name: str) -> MergeRecord:
    """The last merge of a name.

    Arguments
    ---------
    pools : iterable of str or Path
        Where to look.
    name : str
        Of the merge stage.

    Returns
    -------
    MergeRecord

    Raises
    ------
    ValueError
        Where there is none; names those that there are.
    """
    merges = [merge for pool in pools for merge in read_merges(pool)]
    merges.sort(key=lambda merge: merge.time)
    named = of_name(merges, name)
    if not named:
        known = dict.fromkeys(merge.name for merge in merges)
        raise ValueError(
            f"no merge '{name}' is recorded in "
            f"{', '.join(map(str, pools)) or 'any pool'}. "
            f"There is: {', '.join(known) or 'none'}."
        )
    return named[-1]


def pools_of(candidates: Iterable) -> list[Path]:
    """The pools that candidates lie in.

    Arguments
    ---------
    candidates : iterable of Candidate
        Others, files and checkpoints, are in none.

    Returns
    -------
    list of Path
    """
    folders = {}
    for candidate in candidates:
        if isinstance(candidate.path, (str, Path)):
            run = Path(candidate.path).absolute().parent
            if (run / Manifest.FILE).is_file():
                folders[run.parent] = None
    return list(folders)


def _log(pool):
    return Log(
        Path(pool) / FILE,
        merge_record,
        "Repair or delete that line; the weights are not affected.",
    )


@contextmanager
def _alone(pool):
    """One process at a time, for as long as it takes to add a line."""
    pool.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        pool / ".merges.lock",
        os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o666,
    )
    try:
        if try_lock(descriptor, wait=True) is None:
            # Some cluster file systems have no locks, and a merge is done
            logger.warning(f"{pool} cannot be locked on this file system")
        yield
    finally:
        os.close(descriptor)
