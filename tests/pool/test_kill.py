"""SIGKILL at any instant: a candidate is in the manifest whole, or not."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_pool_survives_a_kill_at_any_instant(tmp_path):
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same, different, randomly = map(int, done.stdout.split()[-3:])
    # Each candidate alone opens, renames and notes down at least three times
    assert same == different > 20
    assert randomly > 5
