"""A tiny training that is killed at every instant, in turn, and resumed.

Run by test_kill.py in a process of its own, which imports everything once and
then forks a child for each kill: python killed_training.py FOLDER. Prints how
many kills there were.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.pool.recovery import candidate_in
from speechbrain_merge.weights import digest, open_weights

EPOCHS = 3
EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir")


def value_of(epoch, attempt):
    """What epoch and attempt make of the weights."""
    return epoch + 0.25 * attempt


def train(folder, attempt, size=4):
    """One process: builds, restores, and trains what is left."""
    model = torch.nn.Linear(size, size)
    torch.nn.init.zeros_(model.weight)
    counter = EpochCounter(limit=EPOCHS)
    pool = CheckpointPool(
        folder / "pool",
        {"model": model},
        keep_last=2,
        epoch_counter=counter,
    )
    recoverables = {"model": model, "pool": pool, "counter": counter}
    saver = Checkpointer(folder / "save", recoverables)
    pool.store_base(resuming=saver.find_checkpoint() is not None)
    saver.recover_if_possible()
    for epoch in counter:
        torch.nn.init.constant_(model.weight, value_of(epoch, attempt))
        saver.save_and_keep_only(meta={"WER": float(-epoch)})


def forked(function, *arguments):
    """Runs it in a child; gives the child's process id."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def train_killed_at(folder, attempt, instant):
    """Kills itself before the operation of that number on a file of the pool."""
    left = instant

    def watch(event, arguments):
        nonlocal left
        if event in EVENTS and str(folder / "pool") in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train(folder, attempt)


def check(folder):
    """Whatever the manifest has is whole and true."""
    if not list((folder / "pool").glob("*/manifest.jsonl")):
        return []
    pool = CheckpointPool(folder / "pool", {"model": torch.nn.Linear(4, 4)})
    candidates = read_pool(pool) if pool.candidates() else []
    for candidate in candidates:
        with open_weights(candidate) as weights:
            assert digest(weights) == candidate.digest, candidate
            value = weights["model.weight"].unique().item()
        assert int(value) == candidate.epoch == -candidate.score, candidate
        with open_weights(candidate.base) as weights:
            assert digest(weights) == candidate.base_digest
            assert weights["model.weight"].unique().item() == 0
    return candidates


def remove_half_written_checkpoints(folder):
    """What SpeechBrain itself asks of its user after a kill.

    Gives whether the pool had saved its part, and nothing is left of it; and
    the name of what was removed.
    """
    saved, removed = False, None
    for path in (folder / "save").glob("CKPT*"):
        if len([f for f in path.iterdir() if f.stat().st_size]) < 4:
            saved = saved or (path / "pool.ckpt").exists()
            shutil.rmtree(path)
            removed = path.name
    return saved and not list((folder / "save").glob("CKPT*")), removed


def check_set_aside(folder, removed):
    """What was trained again, and whose checkpoint somebody removed, is kept.

    It may be that of a training which was moved away. So is the base that it
    names, where the training starts with other weights.
    """
    for path in folder.glob("quarantine/epoch*"):
        record = candidate_in(path)
        assert record["checkpoint"] == removed, path
        with open_weights(path) as weights:
            assert digest(weights) == record["digest"]


def check_finished(folder, deleted=False, removed=None):
    """A training that ended leaves two candidates and no remains."""
    candidates = check(folder)
    found = [(c.run, c.epoch) for c in candidates]
    if deleted and found[0] == ("run", 1):
        # Without its only checkpoint it may count as another training
        assert found[1:] == [("run-2", 2), ("run-2", 3)]
        return
    # Killed in its very first save as well, a training knows itself again
    assert found == [("run", 2), ("run", 3)]
    check_set_aside(folder / "pool" / "run", removed)
    names = {path.name for path in (folder / "pool" / "run").iterdir()}
    names -= {"quarantine"} if removed is not None else set()
    kept = {c.path.name for c in candidates}
    assert names == kept | {".lock", "manifest.jsonl", "base.safetensors"}


def kill_at_every_instant(folder, retrained_differs):
    """Each operation on a file of the pool is once the last one."""
    for instant in range(1, 1000):
        one = folder / f"{retrained_differs}-{instant}"
        _, status = os.waitpid(forked(train_killed_at, one, 0, instant), 0)
        if status == 0:
            check_finished(one)
            return instant - 1
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        check(one)
        removed = remove_half_written_checkpoints(one)
        attempt = int(retrained_differs)
        _, status = os.waitpid(forked(train, one, attempt), 0)
        assert status == 0, f"resuming after a kill at {instant} failed"
        check_finished(one, *removed)
        shutil.rmtree(one)
    raise AssertionError("never ended")


def kill_at_random(folder, kills, seed=0):
    """Kills by the clock: also within a write."""
    generator = random.Random(seed)
    killed = 0
    for number in range(kills):
        one = folder / f"random-{number}"
        child = forked(train, one, 0, 700)  # files of 2 MB
        time.sleep(generator.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        check(one)
        removed = remove_half_written_checkpoints(one)
        _, status = os.waitpid(forked(train, one, 0, 700), 0)
        assert status == 0, f"resuming after random kill {number} failed"
        check_finished(one, *removed)
        shutil.rmtree(one)
    return killed


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    print(
        kill_at_every_instant(where, False),
        kill_at_every_instant(where, True),
        kill_at_random(where, int(os.environ.get("KILLS", 20))),
    )
