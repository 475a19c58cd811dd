"""Jobs of a study end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed_stages
import pytest

SCRIPT = """
import json
import sys

import killed_stages
from speechbrain_merge.study import Study

given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
Study(
    "results",
    {"a": {"train": "a"}, "b": {"train": "b"}},
    {"expert": {"hparams": "train.yaml", "with": {"number_of_epochs": 10**6}}},
    domains=["a", "b"],
    tests=["a"],
    only=json.loads(given.get("only", "null")),
    jobs=int(given.get("jobs", 2)),
).run(killed_stages.build, {"noprogressbar": True})
"""


def running(script):
    """The processes that run a script."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(script).encode() in words:
            found.append(int(place.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_study_that_is_stopped_stops_its_jobs(tmp_path):
    """They went on, and held the models that the study made when begun again."""
    killed_stages.study_yaml(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = Path(killed_stages.__file__).parent
    study = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [tests, *sys.path])),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(1200):
            time.sleep(0.1)
            if len(list(tmp_path.glob("results/seed-*/models/*/pool"))) == 2:
                break
            assert study.poll() is None
        assert len(running(script)) == 3
        study.terminate()
        assert study.wait(timeout=60) != 0
        assert not running(script)
    finally:
        for process in running(script):
            os.kill(process, signal.SIGKILL)
