"""The merge stage under torchrun: the same outcome, with the work shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_merging import train_and_merge

from speechbrain_merge.engine import provenance
from speechbrain_merge.pool import read_pool
from speechbrain_merge.weights import open_weights

HERE = Path(__file__).parent


def files_of(folder):
    """All files of the merge stages by their relative path."""
    return sorted(
        str(path.relative_to(folder))
        for path in (folder / "merge").rglob("*")
        if path.is_file()
    )


def test_two_processes_do_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    # candidates once, in one process, which merges them as well
    alone = train_and_merge(None, one, epochs=6)
    assert alone["collected"] == 6
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", HERE / "distributed_merging.py"]
    done = subprocess.run(
        [*command, one / "pool", two],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [
        json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)
    ]
    for rank in ranks:
        assert rank["wrapped"] == "DistributedDataParallel"
        assert rank["collected"] == 2
    assert files_of(two) == files_of(one)
    # merged and result of each, and the trials of all
    assert len(files_of(two)) == 3 * 2 + 1
    known = {each.name: each.digest for each in read_pool(one / "pool")}
    for name, expected in alone["results"].items():
        decoded = 0
        for rank in ranks:
            found = rank["results"][name]
            assert found["selected"] == expected["selected"]
            assert found["value"] == expected["value"] == found["evaluated"]
            assert found["state"] == expected["state"]
            assert found["loss"] == pytest.approx(expected["loss"])
            decoded += found["decoded"]
        path = two / "merge" / f"greedy-{name}" / "merged.safetensors"
        with (
            open_weights(path) as merged,
            open_weights(one / path.relative_to(two)) as reference,
        ):
            assert {n: merged[n].tolist() for n in merged} == {
                n: reference[n].tolist() for n in reference
            }
        sources = provenance(path)["sources"]
        assert {each["label"]: each["digest"] for each in sources} == {
            each: known[each] for each in expected["selected"]
        }
    # the work was shared: with nine batches nobody did more than five ninths
    # of what a process alone does without racing
    for rank in ranks:
        assert rank["results"]["9"]["decoded"] <= 6 * 5
    # races were run, and lost
    assert any(each["skipped"] > 0 for each in alone["results"].values())
    assert any(each["skipped"] > 0 for each in ranks[0]["results"].values())
