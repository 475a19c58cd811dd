"""Several processes and one pool: DDP, and trainings side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

from warm_python import python

from speechbrain_merge.pool import read_pool, select
from speechbrain_merge.weights import digest, open_weights

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "OMP_NUM_THREADS": "1",
}


def test_under_ddp_the_main_process_collects(tmp_path):
    command = [python(), "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", HERE / "distributed_training.py"]
    done = subprocess.run(
        [*command, tmp_path], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        json.loads((tmp_path / f"rank-{rank}.json").read_text())
        for rank in (0, 1)
    )
    assert first["wrapped"] == second["wrapped"] == "DistributedDataParallel"
    # 16 utterances one at a time over two processes: 8 steps an epoch
    names = ["run/epoch-0002-step-000016", "run/epoch-0003-step-000024"]
    assert first["names"] == second["names"] == names
    last = read_pool(tmp_path / "pool")[-1]
    with open_weights(last) as weights:
        assert digest(weights) == last.digest
        assert {
            f"model.{name}": value for name, value in first["state"].items()
        } == {name: weights[name].tolist() for name in weights}


def test_trainings_side_by_side(tmp_path):
    pool = tmp_path / "pool"
    # Two of them were given the same name by mistake
    runs = ["same", "same", "other"]
    script = HERE / "simultaneous_training.py"
    processes = [
        subprocess.Popen(
            [python(), script, pool, run, str(seed), str(len(runs))],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, run in enumerate(runs)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert "is being written by another process" in "".join(errors)

    candidates = read_pool(pool)
    assert len(candidates) == 30
    assert sorted(path.name for path in pool.iterdir()) == [
        "other",
        "same",
        "same-2",
    ]
    for candidate in candidates:
        with open_weights(candidate) as weights:
            assert digest(weights) == candidate.digest
            value = int(weights["model.weight"][0, 0])
        assert value % 100 == candidate.epoch
    # Each run holds one training, in its order
    for run in ("other", "same", "same-2"):
        own = [c for c in candidates if c.run == run]
        assert [c.epoch for c in own] == list(range(11, 21))
    assert len({c.base_digest for c in candidates}) == 1
    best = select(candidates, per_run="best")
    assert [c.epoch for c in best] == [20, 20, 20]
