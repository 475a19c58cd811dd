"""Random kills over all stages; whatever is killed comes to the same end.

Each stage (`killed_stages.py`) is run once undisturbed, and every file that it
leaves is noted. Then it is run again and again in the same place, and killed by
SIGKILL: after a random share of the time that it takes, or at a random
operation on its files, half of the writes in the middle (`kill_watch.py`). A
killed stage is started again, perhaps killed again, until it ends. At the end
there have to be the same files with the same content, no other file, and every
file that a person put there meanwhile.

    python tests/kill_harness.py --kills 1000 --seed 0
    python tests/kill_harness.py --every --stages "greedy search"

The second kills at every operation in turn. A child is forked from this
process for each attempt, which has imported everything once: also what the
package imports when it needs it.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import datetime
import hashlib
import importlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

for _name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from kill_watch import watch_operations  # noqa: E402
from killed_stages import STAGES  # noqa: E402

from speechbrain_merge import engine  # noqa: E402
from speechbrain_merge.pool.run_folder import RunFolder  # noqa: E402
from speechbrain_merge.records.own_outputs import (  # noqa: E402
    NOTE as OUTPUTS,
    is_output,
)
from speechbrain_merge.records.ownership import MARK  # noqa: E402

for _name in ("cma", "matplotlib.figure", "matplotlib.backends.backend_agg"):
    importlib.import_module(_name)

ATTEMPTS = 4
"""Kills of one run, at most."""

VOLATILE = {
    "seconds",
    "interrupted",
    "reused",
    "savings",
    "time",
    "unixtime",
    "timestamp",
    "check",  # of a record with such values, or with a file's time
}
"""Keys of records whose values are those of a clock, or of an attempt."""

MINUTES = r'"minutes","[^"]*"|\{"text":"(> )?\d+\.\d"\}(?=\])'
"""In a page: what a training took, and the last cells of its tables."""

NOTE = "a person's own note\n"
NOTES = ("notes.txt", ".notes.partial", "mine.safetensors")
"""What a person adds to every folder after the first kill."""

FOLDER, NOTED = "a folder", "a folder with a person's files"


class Difference(AssertionError):
    """A killed run came to another end."""


# --- one attempt -------------------------------------------------------------


def attempt(stage, folder, log, at=0, share=0.0, after=None):
    """Runs a stage in a child; perhaps kills it.

    Arguments
    ---------
    stage : callable
        Does the work in the folder.
    folder : Path
        The folder.
    log : Path
        Where the child's output goes.
    at, share : int and float
        The operation to be killed at; see `watch_operations`.
    after : float, optional
        Seconds after which the child is killed.

    Returns
    -------
    killed : str
        The operation, or "clock"; empty where the child came to its end.
    operations : int
        How many it did, if it came to its end.
    seconds : float
    """
    ours, theirs = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _run_in_child(stage, folder, log, at, share, theirs)
    os.close(theirs)
    if after is not None:
        # the end of the child closes the pipe
        if not select.select([ours], [], [], after)[0]:
            os.kill(child, signal.SIGKILL)
    with open(ours, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return said or "clock", 0, seconds
    if status != 0:
        raise Difference(
            f"it ended with {status}:\n{log.read_text(errors='replace')[-3000:]}"
        )
    return "", int(said), seconds


class StandingClock(datetime.datetime):
    """A clock that stands still, so that files can be compared."""

    @classmethod
    def now(cls, tz=None):
        """The same instant."""
        return cls(2026, 1, 1, tzinfo=tz)


def _run_in_child(stage, folder, log, at, share, report):
    """The child: never returns."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        engine.datetime = StandingClock
        torch.manual_seed(0)
        # A fork breaks PyTorch's pool of threads. The next call that asks for
        # it makes a new one, and two threads must not do so at once.
        torch.set_num_threads(1)
        finish = watch_operations(folder, at, share, report)
        stage(folder)
        finish()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


# --- what a stage leaves -----------------------------------------------------


def contents(folder):
    """All files of a folder, and what is in them, without clocks.

    Checkpoints of SpeechBrain, whose names are times, are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "/CKPT+" in f"/{name}" or path.name in NOTES:
            continue
        if path.is_dir():
            noted = any((path / note).exists() for note in NOTES)
            found[name] = NOTED if noted else FOLDER
        elif path.name == OUTPUTS:
            # The files tell times; what counts is that each is on record
            names = json.loads(path.read_text())["sha256"]
            found[name] = {
                each: is_output(path.with_name(each)) for each in names
            }
        elif path.suffix == ".json":
            found[name] = _record(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = _lines(path)
        elif path.suffix == ".safetensors":
            # Of an epoch that was saved again, after a kill, the second
            name = re.sub(r"(epoch-\d+(-step-\d+)?)-\d+\.", r"\1.", name)
            name = name if name not in found else f"{name}, twice"
            found[name] = _weights(path)
        elif path.suffix == ".pt":
            state = torch.load(path, weights_only=True)
            found[name] = hashlib.sha256(repr(state).encode()).hexdigest()
        elif path.suffix in (".md", ".csv", ".tex"):
            found[name] = _without_times(path.read_text())
        elif path.suffix == ".html":
            page = re.sub(MINUTES, "", path.read_text())
            found[name] = hashlib.sha256(page.encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _weights(path):
    """Tensors and, but for candidates, metadata."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    code = hashlib.sha256(json.dumps(header).encode() + data[8 + size :])
    if "candidate" in metadata:
        return code.hexdigest()
    return code.hexdigest(), metadata


def _record(value):
    """Plain data without what clocks and attempts decide."""
    if isinstance(value, list):
        return [_record(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _record(v) for k, v in value.items() if k not in VOLATILE}
    if value.get("complete") is False:
        # How far a lost trial was decoded depends on the batches before
        return "lost"
    if value.get("kind") == "line":
        # Models of a landscape are known by their files, with their times
        kept["models"] = [each["name"] for each in value["models"]]
    return kept


def _lines(path):
    """The records of a log, in the order in which they were made."""
    lines = [_record(json.loads(each)) for each in path.open()]
    if path.name == "manifest.jsonl":
        # A killed epoch is saved again; the candidates are what counts
        return sorted(
            (each.epoch, each.score, each.digest)
            for each in RunFolder(path.parent).candidates()
        )
    if path.name == "points.jsonl":
        # known by their files' times
        return [[line["weights"], line["tally"]] for line in lines]
    return lines


def differences(found, expected):
    """Lines that say what differs."""
    for name in sorted({*found, *expected}):
        one, other = expected.get(name), found.get(name)
        if other == NOTED and one in (None, FOLDER):
            continue  # a folder with a person's files stays
        if one is None:
            yield f"{name} is left behind"
        elif other is None:
            yield f"{name} is missing"
        elif one != other:
            yield f"{name} is different:\n  {one}\n  {other}"


def add_notes(folder):
    """A person's files, in every folder that is not being exported."""
    notes = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path.is_dir() and not is_exported(path):
            for name in NOTES:
                (path / name).write_text(NOTE)
                notes.append(path / name)
    return notes


def is_exported(path):
    """Whether other files there would keep an export from being replaced."""
    hidden = any(
        part.startswith(".") and part.endswith(".partial")
        for part in path.parts
    )
    return hidden or (path / MARK).exists() or path.name.startswith("CKPT+")


def _without_times(text):
    """Tables without the minutes, which are their last cells."""
    ends = r"[|,&] (> |\$>\$ )?\d+\.\d( \||)( \\\\|)$"
    return re.sub(ends.replace(" ", " ?"), "", text, flags=re.MULTILINE)


# --- kills -------------------------------------------------------------------


class Target:
    """One stage, undisturbed once, and then killed as often as is asked.

    Arguments
    ---------
    name : str
        Of the stage.
    folder : Path
        Where everything about it goes. There is nothing yet.
    """

    def __init__(self, name, folder):
        self.name, self.counts = name, Counter()
        self.material, self.work = folder / "material", folder / "work"
        self.log = folder / "log"
        make, self.stage = STAGES[name]
        folder.mkdir(parents=True)
        self._begin()
        attempt(make, self.work, self.log)
        shutil.copytree(self.work, self.material)
        _, self.operations, self.seconds = attempt(
            self.stage, self.work, self.log
        )
        self.expected = contents(self.work)

    def run(self, kills):
        """One run, killed and started again until it ends.

        Arguments
        ---------
        kills : iterable of dict
            For each attempt the arguments of `attempt` that kill it. When there
            are no more, it is left to end.

        Raises
        ------
        Difference
            Where it ends otherwise than undisturbed.
        """
        self._begin()
        self.counts["runs"] += 1
        notes = []
        for how in kills:
            killed, _, _ = attempt(self.stage, self.work, self.log, **how)
            if not killed:
                break
            self.counts["kills"] += 1
            self.counts[killed] += 1
            notes = notes or add_notes(self.work)
        else:
            attempt(self.stage, self.work, self.log)
        found = list(differences(contents(self.work), self.expected))
        found += [
            f"a person's {path} is gone"
            for path in notes
            if not path.is_file() or path.read_text() != NOTE
        ]
        if found:
            raise Difference("\n".join(found))

    def _begin(self):
        """The folder as it is before the stage."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self.material.is_dir():
            shutil.copytree(self.material, self.work)
        else:
            self.work.mkdir()


def random_kills(target, generator):
    """How the attempts of one run are killed."""
    for _ in range(ATTEMPTS):
        if generator.random() < 0.5:
            yield {"after": generator.uniform(0, target.seconds)}
        else:
            share = generator.choice([0.0, generator.random()])
            at = generator.randint(1, target.operations)
            yield {"at": at, "share": share}
        if generator.random() < 0.6:
            return


def kill_at_random(target, kills, seed):
    """Runs a stage until it was killed so often; gives what differed."""
    failures, number = [], 0
    while target.counts["kills"] < kills:
        generator = random.Random(f"{seed} {target.name} {number}")
        plan = list(random_kills(target, generator))
        _run(target, plan, failures, f"run {number} of seed {seed}")
        number += 1
    return failures


def kill_at_every_operation(target):
    """A run for each operation, killed there; gives what differed."""
    failures: list = []
    for at in range(1, target.operations + 1):
        _run(target, [{"at": at}], failures, f"operation {at}")
    return failures


def _run(target, plan, failures, title):
    try:
        target.run(plan)
    except Difference as difference:
        failures.append(f"{target.name}, {title}, {plan}: {difference}")
        print(failures[-1], file=sys.stderr, flush=True)


def main(arguments=None):
    """Runs the harness; the exit status is 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--every", action="store_true", help="at each operation once instead"
    )
    parser.add_argument(
        "--stages", nargs="*", default=list(STAGES), choices=STAGES
    )
    parser.add_argument("--folder", type=Path, help="to work in")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failures = []
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        for number, name in enumerate(options.stages):
            folder = (options.folder or Path(temporary)) / str(number)
            target = Target(name, folder)
            before = time.perf_counter()
            if options.every:
                failures += kill_at_every_operation(target)
            else:
                share = -(-options.kills // len(options.stages))
                failures += kill_at_random(target, share, options.seed)
            row = {
                "stage": name,
                "operations": target.operations,
                "seconds": round(target.seconds, 2),
                **target.counts,
                "minutes": round((time.perf_counter() - before) / 60, 1),
            }
            print(json.dumps(row), flush=True)
    print(f"{len(failures)} runs came to another end")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
