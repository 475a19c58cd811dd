"""The Python that is forked behaves as Python does.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from warm_python import python, run_measured

SCRIPT = """\
import os, signal, sys
print(sys.argv, os.getcwd(), __name__, sys.path[0], os.environ["GIVEN"])
print(sys.stdin.read(), flush=True)
what = sys.argv[1]
if what == "status":
    sys.exit(3)
if what == "message":
    sys.exit("it says why")
if what == "error":
    raise ValueError("it fails")
if what == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    "what", ["nothing", "status", "message", "error", "signal"]
)
def test_it_ends_as_python_does(tmp_path, what):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/script.py").write_text(SCRIPT)
    found = []
    for command in (sys.executable, python()):
        done = subprocess.run(
            [command, "folder/script.py", what, "--key=a b"],
            cwd=tmp_path,
            env={**os.environ, "GIVEN": what},
            input="what is typed",
            capture_output=True,
            text=True,
        )
        last = done.stderr.splitlines()[-1:]
        found.append((done.returncode, done.stdout, last))
    assert found[0] == found[1]
    assert "what is typed" in found[0][1]


def test_it_does_not_outlive_its_command(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen(
        [python(), script], stdout=subprocess.PIPE, text=True
    )
    worker = int(process.stdout.readline())
    assert worker != process.pid
    os.kill(worker, 0)  # it is there
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    until = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.kill(worker, 0)
            time.sleep(0.01)


def test_what_it_uses_is_measured(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time\nwhile time.process_time() < 0.5:\n    pass\nprint(1)"
    )
    for command in (sys.executable, python()):
        done, seconds = run_measured([command, script], env={**os.environ})
        assert done.stdout == "1\n" and 0.4 < seconds < 5
