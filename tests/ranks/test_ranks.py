"""torchrun: the same choices and bytes as one process, and dead ranks.

In `make test` two ranks; LONG_TESTS=1 runs three and four, and kills more.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks.compare import decided, exact_files, told

ROOT = Path(__file__).resolve().parents[2]
LONG = bool(os.environ.get("LONG_TESTS"))
WORLDS = (2, 3, 4) if LONG else (2,)
KILLS = 8 if LONG else 1
STAGES = (
    "collect",
    "greedy",
    "coefficients",
    "statistics",
    "learned",
    "evaluated",
    "study",
)
ENDS_WITHIN = 10.0
"""Seconds after which a dead rank has ended all: see docs/guarantees.md."""

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}


def python(*arguments, **options):
    """Runs a module of this folder in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All stages on one and on more ranks, and the kills."""
    folder = tmp_path_factory.mktemp("ranks")
    worlds = ",".join(map(str, (1, *WORLDS)))
    python("ranks.harness", folder, worlds, KILLS, 0)
    return folder


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", STAGES[:-1])
def test_all_ranks_choose_what_one_process_chooses(folder, stage, world):
    alone = told(folder / "ranks-1", stage, 0)["seen"]
    ranks = [
        told(folder / f"ranks-{world}", stage, rank)["seen"]
        for rank in range(world)
    ]
    if stage == "collect":
        # each rank trains on its share, so that other weights come of it
        assert ranks[0]["wrapped"] == "DistributedDataParallel"
        alone = ranks[0]
    for rank in ranks:
        assert decided(rank) == decided(alone)


@pytest.mark.parametrize("world", WORLDS)
def test_the_files_have_the_bytes_of_one_process(folder, world):
    alone, ranks = (exact_files(folder / f"ranks-{n}") for n in (1, world))
    compared = 0
    for name, content in alone.items():
        if name.split("/")[0] not in ("collected", "study"):
            assert ranks[name] == content, name
            compared += 1
    # merges, statistics, coefficients, tests, an export
    assert compared >= 4 + 2 + 2 + 6 + 2 + 2 + 5 + 3


@pytest.mark.parametrize("world", WORLDS)
def test_a_study_has_the_bytes_of_one_process(folder, world):
    # of the models that were trained on these ranks
    again = folder / f"again-{world}/study"
    ranks = exact_files(folder / f"ranks-{world}")
    alone = exact_files(folder / f"again-{world}")
    alone = {name: alone[name] for name in alone if name.startswith("study/")}
    assert "study/results.json" in alone and again.is_dir()
    assert len([name for name in alone if "/scores/" in name]) >= 3 * 16
    for name, content in alone.items():
        assert ranks[name] == content, name


@pytest.mark.parametrize("world", WORLDS)
def test_only_the_main_process_writes(folder, world):
    for stage in STAGES:
        main, *others = (
            told(folder / f"ranks-{world}", stage, rank)["written"]
            for rank in range(world)
        )
        assert len(main) > 5
        for written in others:
            # SpeechBrain's Checkpointer makes its folder on each rank
            assert [w for w in written if w[0] != "os.mkdir"] == []


@pytest.mark.parametrize("world", WORLDS)
def test_the_decoding_is_shared(folder, world):
    alone = told(folder / "ranks-1", "greedy", 0)["seen"]
    for rank in range(world):
        seen = told(folder / f"ranks-{world}", "greedy", rank)["seen"]
        # nine batches of one utterance, which nobody but one process races
        share = -(-9 // world)
        assert seen["9 by 1"]["decoded"] <= 6 * share
        assert seen["again"]["decoded"] == alone["again"]["decoded"] == 0
    assert any(each["skipped"] for each in alone.values())


def test_a_dead_rank_ends_all_and_a_restart_goes_on(folder):
    kills = json.loads((folder / "kills.json").read_text())
    assert len(kills) == KILLS * len(WORLDS) * len(STAGES)
    assert {kill["rank"] for kill in kills} == set(range(max(WORLDS)))
    for kill in kills:
        assert kill["codes"][kill["rank"]] == -signal.SIGKILL, kill
        assert kill["seconds"] < ENDS_WITHIN, kill
        assert not kill["half"] and not kill["failed"], kill
        assert not kill["other"], kill


def living(ids):
    """Those of some processes that are there, and not as zombies."""
    found = []
    for one in ids:
        try:
            state = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1]
        except FileNotFoundError:
            continue
        if state.split()[0] != "Z":
            found.append(one)
    return found


def children_of(parent):
    """The ids of the processes that a process has started."""
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(one) for one in path.read_text().split()]


@pytest.mark.parametrize("world", WORLDS)
def test_torchrun(folder, world, tmp_path):
    # as long as the other folders' names, which merged files have in them
    output = folder / f"torch-{world}"
    draw = random.Random(world)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", "tests/ranks/harness.py"]
    command += ["torchrun", folder / "material", output, *STAGES[1:]]
    options = {"env": ENVIRONMENT, "cwd": ROOT}
    with open(tmp_path / "killed.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        begun = output / f"{draw.choice(STAGES[1:4])}-0.json"
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        ranks = children_of(process.pid)
        assert len(ranks) == world, (tmp_path / "killed.log").read_text()
        time.sleep(draw.uniform(0, 0.3))
        os.kill(draw.choice(ranks), signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(60) != 0
        seconds = time.monotonic() - killed
    print(f"torchrun of {world} ended {seconds:.2f} s after a rank")
    assert seconds < ENDS_WITHIN
    assert living(ranks) == []
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    found, alone = exact_files(output), exact_files(folder / "ranks-1")
    for name, content in alone.items():
        if name.split("/")[0] not in ("collected", "study"):
            assert found[name] == content, name
    ranks = exact_files(folder / f"ranks-{world}")
    for name in ranks:
        if name.startswith("study/"):
            assert found[name] == ranks[name], name
