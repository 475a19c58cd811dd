"""Random kills over all stages: a few in a usual run, many with LONG_TESTS=1."""

import json
import os
import subprocess
import sys
from pathlib import Path

from killed_stages import STAGES

HARNESS = Path(__file__).with_name("kill_harness.py")


def test_every_stage_comes_to_the_same_end_whatever_kills_it():
    kills = 1000 if os.environ.get("LONG_TESTS") else len(STAGES)
    done = subprocess.run(
        [sys.executable, HARNESS, f"--kills={kills}", "--seed=0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    *lines, last = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["stage"] for row in rows] == list(STAGES)
    assert sum(row["kills"] for row in rows) >= kills
    # what kills at an operation sees the files of the stage
    assert all(row["operations"] > 10 for row in rows)
    assert last == "0 runs came to another end"
