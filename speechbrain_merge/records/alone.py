"""Work that one process does at a time, or one group of ranks.

The main process holds a lock, which the system frees when it ends, however it
ends. Another that wants to do the same work is refused, not kept waiting: it
may be a second start by mistake, and work may take days. Under ``torchrun``
every rank hears of the refusal, so that none waits for the main one.

Example
-------
>>> folder = getfixture("tmp_path")
>>> with alone(folder, "the search"):
...     with alone(folder, "the search"):
...         pass
Traceback (most recent call last):
...
ValueError: the search: another process is doing this at the moment. Wait until it has finished.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import os
from collections.abc import Iterator

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.files import try_lock

logger = get_logger(__name__)


@contextlib.contextmanager
def alone(
    path, what: str, advice: str = "Wait until it has finished."
) -> Iterator[None]:
    """Holds a lock while work is done.

    Arguments
    ---------
    path : str or Path
        What is locked: a folder that is there, or a file, which is made.
    what : str
        The work, for the message.
    advice : str
        What to do when another process does it.

    Raises
    ------
    ValueError
        When another process is doing it at the moment; on all ranks.
    """
    with contextlib.ExitStack() as stack:
        if run_on_main(_lock, args=[path, stack]) is False:
            raise ValueError(
                f"{what}: another process is doing this at the moment. {advice}"
            )
        yield


def _lock(path, stack):
    """Locks until the stack is closed; False where another has the lock."""
    how = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, how | os.O_CLOEXEC, 0o666)
    stack.callback(os.close, descriptor)
    locked = try_lock(descriptor)
    if locked is None:
        logger.warning(
            f"{path} cannot be locked on this file system: do not do this "
            "twice at the same time."
        )
    return locked
