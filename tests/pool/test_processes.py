"""Several processes and one pool: DDP, and trainings side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm_python import python

import speechbrain as sb
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.pool import CheckpointPool, read_pool, select
from speechbrain_merge.pool.coverage import check_pools
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


def two_pools(folder):
    """Of the two modules of one training, with the run that is usual."""
    modules = {
        "encoder": torch.nn.Linear(2, 2),
        "decoder": torch.nn.Linear(3, 3),
    }
    pools = {
        f"pool of the {name}": CheckpointPool(
            folder / "pool", {name: modules[name]}, partial=True
        )
        for name in modules
    }
    return modules, pools, Checkpointer(folder / "save", {**modules, **pools})


def test_two_pools_of_a_training_in_one_run(tmp_path):
    """The second took the candidates of the first for its own."""
    for epochs in ((1, 2), (3,)):
        modules, pools, saver = two_pools(tmp_path)
        for pool in pools.values():
            pool.store_base(resuming=3 in epochs)
        saver.recover_if_possible()
        for epoch in epochs:
            for module in modules.values():
                torch.nn.init.constant_(module.weight, epoch)
            saver.save_checkpoint(meta={"epoch": epoch})
    held = {"run": "encoder", "run-2": "decoder"}
    found = read_pool(tmp_path / "pool")
    assert [each.name for each in found] == [
        f"{run}/epoch-{epoch:04d}" for run in held for epoch in (1, 2, 3)
    ]
    for each in found:
        for path in (each.path, each.base):
            with open_weights(path) as weights:
                assert set(weights.names()) == {
                    f"{held[each.run]}.weight",
                    f"{held[each.run]}.bias",
                }


def test_two_pools_of_a_brain_in_one_run_are_refused(tmp_path):
    modules, _, saver = two_pools(tmp_path)
    brain = sb.Brain(modules=modules, run_opts={"device": "cpu"})
    brain.checkpointer = saver
    with pytest.raises(ValueError, match="Two pools of this training"):
        check_pools(brain)


def test_a_wrapped_module_is_refused_by_a_pool(tmp_path):
    """All was trained and merged, and then fitted no module."""
    wrapped = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'model' is wrapped"):
        CheckpointPool(tmp_path, {"model": wrapped})
