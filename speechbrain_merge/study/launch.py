"""Several models at the same time: processes, or jobs of a cluster.

A job is the same command with ``--only NAME@SEED --jobs 0``: it makes one model
and tests it, and finds all that is done already. So nothing is pickled but a
command line, a job may be queued again at any time, and what a job leaves is
what the study alone would have left.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.files import open_to_append
from speechbrain_merge.study.estimate import record_of, state_of

logger = get_logger(__name__)

_LOG_END = 4096
POLL = 0.5
"""Seconds between two looks at the jobs."""


def launch(study) -> None:
    """Makes and tests all models that are not made, side by side.

    Arguments
    ---------
    study : Study
        The study. Its own process waits, and writes the report afterwards.

    Raises
    ------
    RuntimeError
        When jobs failed, naming them and their logs. What does not depend on
        them was done.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "`jobs` and `launcher` start processes of their own: run the study "
            "without torchrun, or with `jobs: 1`."
        )
    jobs = planned_jobs(study)
    if not jobs:
        return
    runner = _runner(study)
    with _stopped_with_us(runner):
        failed = _run_all(jobs, runner, f"{study.folder.name} jobs")
    if failed:
        lines = [f"  {name}: {log}" for name, log in failed.items()]
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} jobs of the study failed:\n"
            + "\n".join(lines)
            + "\nMend what their logs say and run the study again; what is "
            "done is not done again."
        )


@contextlib.contextmanager
def _stopped_with_us(runner):
    """Ends the jobs of this machine where their study is stopped.

    Else they would go on, and the study started again would find its models
    being made.
    """

    def stop(number, frame):
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except BaseException:
        runner.stop()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _run_all(jobs, runner, title):
    """Runs jobs after their parents; gives those that failed, with the reason."""
    waiting, running, failed = dict(jobs), {}, {}
    bar = tqdm(total=len(jobs), desc=title, unit="job")
    while waiting or running:
        for name in [n for n, job in running.items() if job.done()]:
            job = running.pop(name)
            bar.update()
            if not job.succeeded():
                failed[name] = f"{job.log} ({_last_words(job.log)})"
        for name, parents in list(waiting.items()):
            if failed.keys() & set(parents):
                failed[name] = f"not begun, since it is made from {parents}"
                del waiting[name]
                bar.update()
        ready = [
            name
            for name, parents in waiting.items()
            if runner.holds_parents or not (set(parents) & {*waiting, *running})
        ]
        for name in ready:
            if runner.room(len(running)):
                parents = [running[p] for p in waiting[name] if p in running]
                running[name] = runner.submit(name, parents)
                del waiting[name]
        time.sleep(POLL)
    bar.close()
    return failed


def _last_words(log):
    """The last line of a log, which is that of the error."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_END))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "no log"
    return next((each.strip() for each in lines[::-1] if each.strip()), "empty")


def planned_jobs(study) -> dict:
    """The models that are not made yet, and which of them come first.

    Arguments
    ---------
    study : Study
        The study.

    Returns
    -------
    dict
        ``NAME@SEED`` to the list of its parents that are not made either. A
        model of several parents without weights waits for theirs.
    """
    jobs = {}
    for seed, nodes in study.wanted().items():
        for node in nodes:
            tested = node.row and node.tests != ()
            folder = study.folder / f"seed-{seed}"
            if record_of(folder, node)[0] is None:
                # there is nothing to make, and models may be slow to combine
                needed = tested and node.kind == "combine"
            else:
                needed = not state_of(study, seed, node)["done"]
            if not needed:
                continue
            parents = [f"{parent}@{seed}" for parent in node.parents]
            jobs[f"{node.name}@{seed}"] = [p for p in parents if p in jobs]
    return jobs


def job_command(name: str, argv: Optional[Sequence] = None) -> list[str]:
    """The command line of one job.

    Arguments
    ---------
    name : str
        ``NAME@SEED``.
    argv : list of str, optional
        The command line of the study.

    Returns
    -------
    list of str

    Example
    -------
    >>> job_command("aode@1", ["train.py", "aode.yaml", "--jobs=2"])[1:]
    ['train.py', 'aode.yaml', '--only=["aode@1"]', '--jobs=0', '--launcher=null']
    """
    argv = list(sys.argv if argv is None else argv)
    kept, skip = [], False
    for word in argv:
        key = word.split("=")[0]
        if skip:
            skip = False
        elif key in ("--only", "--jobs", "--launcher", "--plan"):
            skip = "=" not in word
        else:
            kept.append(word)
    own = [f'--only=["{name}"]', "--jobs=0", "--launcher=null"]
    return [sys.executable, *kept, *own]


class _Process:
    """A job that is a process of this machine."""

    def __init__(self, command, log, environment):
        self.log = log
        with os.fdopen(open_to_append(log), "ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment
            )

    def done(self):
        """Whether it has ended."""
        return self.process.poll() is not None

    def succeeded(self):
        """Whether it ended well."""
        return self.process.returncode == 0


class _Processes:
    """Runs so many jobs at a time as processes."""

    holds_parents = False

    def __init__(self, number: int, logs: Path):
        self.number, self.logs = number, logs
        self.started: list[_Process] = []
        threads = max(1, (os.cpu_count() or 1) // number)
        # as many threads in all as there are cores
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}

    def room(self, running):
        """Whether one more may run."""
        return running < self.number

    def submit(self, name, parents):
        """Starts a job."""
        log = self.logs / f"{name}.log"
        job = _Process(job_command(name), log, self.environment)
        self.started.append(job)
        return job

    def stop(self):
        """Ends what runs."""
        for job in self.started:
            job.process.terminate()
        for job in self.started:
            job.process.wait()


class _Submitted:
    """A job that submitit runs."""

    def __init__(self, job):
        self.job = job
        self.log = str(job.paths.stderr)

    def done(self):
        """Whether it has ended."""
        return self.job.done()

    def succeeded(self):
        """Whether it ended well."""
        return self.job.exception() is None


class _Submitit:
    """Submits each job through submitit, after its parents."""

    def __init__(
        self, launcher: str, number: int, logs: Path, options: Mapping
    ):
        try:
            import submitit
        except ImportError as error:
            raise ImportError(
                "`launcher` needs submitit: pip install "
                "'speechbrain_merge[cluster]'."
            ) from error
        self.submitit = submitit
        # submitit opens pickles by the number of a job, and numbers come
        # again: what another run or a stranger left must not be among them
        own = tempfile.mkdtemp(prefix="submitit-", dir=logs)
        self.executor = submitit.AutoExecutor(folder=own, cluster=launcher)
        self.options = {"timeout_min": 24 * 60, **options}
        # a local executor knows no dependencies
        self.holds_parents = launcher == "slurm"
        self.number = None if launcher == "slurm" else max(1, number)

    def room(self, running):
        """Whether one more may be submitted."""
        return self.number is None or running < self.number

    def submit(self, name, parents):
        """Submits a job, to run after its parents."""
        options = dict(self.options, name=name)
        if self.holds_parents and parents:
            after = ":".join(parent.job.job_id for parent in parents)
            more = dict(options.get("slurm_additional_parameters", {}))
            more["dependency"] = f"afterok:{after}"
            options["slurm_additional_parameters"] = more
        self.executor.update_parameters(**options)
        command = self.submitit.helpers.CommandFunction(
            job_command(name), verbose=True
        )
        return _Submitted(self.executor.submit(command))

    def stop(self):
        """Jobs of a cluster go on: they are the cluster's."""


def _runner(study):
    """The runner of a study's jobs."""
    logs = study.folder / "jobs"
    logs.mkdir(parents=True, exist_ok=True)
    if study.launcher is None:
        return _Processes(study.jobs, logs)
    return _Submitit(study.launcher, study.jobs, logs, study.cluster)
