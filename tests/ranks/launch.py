"""Ranks of one machine as forked processes, started and waited for.

``torchrun`` starts a new interpreter for each rank, which takes seconds. Here
a process that has imported everything once forks the ranks, so that a test can
afford many launches. There is no agent that would end the other ranks when one
has died: they have to notice by themselves, as under a cluster's ``srun``.

Not to be called where threads run or a process group exists: the tests start a
process of their own for it.
"""

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
import tqdm

import speechbrain as sb

# What each forked process would import anew is imported here already, and the
# bars' thread is not started: a fork has but one thread
tqdm.tqdm.monitor_interval = 0

RUN_OPTS = {
    "device": "cpu",
    "distributed_backend": "gloo",
    "noprogressbar": True,
}


@dataclass
class Ended:
    """How a process has ended.

    Arguments
    ---------
    code : int
        0, 1 after an error, or a signal's number below zero.
    at : float
        When, on the clock of ``time.monotonic``.
    said : str
        What it wrote to stderr.
    """

    code: int
    at: float
    said: str


def launch(world, work, logs, limit=120.0):
    """Runs work in some ranks, and waits for all of them.

    Arguments
    ---------
    world : int
        How many.
    work : callable
        ``work(rank)``.
    logs : Path
        A folder for what the ranks write to stderr.
    limit : float
        Seconds after which a rank that is still there waits for ever.

    Returns
    -------
    list of Ended
        One a rank.

    Raises
    ------
    TimeoutError
        When a rank did not end. It is killed.
    """
    return side_by_side(ranks(world, work), logs, limit)


def ranks(world, work):
    """What the processes of a group do, for `side_by_side`.

    Arguments
    ---------
    world : int
        How many.
    work : callable
        ``work(rank)``.

    Returns
    -------
    list of callable
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        sb.utils.distributed.ddp_init_group(RUN_OPTS)
        work(rank)
        torch.distributed.destroy_process_group()

    return [lambda rank=rank: ranked(rank) for rank in range(world)]


def side_by_side(works, logs, limit=120.0):
    """Runs each work in a forked process of its own, all at the same time.

    Arguments
    ---------
    works : list of callable
        Without arguments.
    logs : Path
        A folder for what the processes write to stderr.
    limit : float
        Seconds after which a process that is still there waits for ever.

    Returns
    -------
    list of Ended
        One a work.

    Raises
    ------
    TimeoutError
        When a process did not end. It is killed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{number}.log" for number in range(len(works))]
    running = {
        _forked(work, file): number
        for number, (work, file) in enumerate(zip(works, files))
    }
    ended, until = {}, time.monotonic() + limit
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in running:
            code = os.waitstatus_to_exitcode(status)
            ended[running.pop(child)] = code, time.monotonic()
        elif time.monotonic() > until:
            for child in running:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(
                f"processes {sorted(running.values())} of {len(works)} had "
                f"not ended after {limit} seconds: "
                + "".join(file.read_text()[-2000:] for file in files)
            )
        else:
            time.sleep(0.01)
    return [
        Ended(*ended[number], Path(file).read_text())
        for number, file in enumerate(files)
    ]


def _forked(work, log):
    """Starts a process; gives its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        # whoever kills the test kills these as well
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)
