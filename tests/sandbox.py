"""A sandbox for attacks: they see decoys, and can reach nothing else.

Tests that hand absolute or climbing paths to code that writes or deletes run
here: in a process of its own, in a private mount namespace where all but one
temporary folder is read-only, and without capabilities.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import shutil
import subprocess
import sys
from functools import cache

import pytest

_SETUP = """\
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
if [ -n "$SMALL" ]; then mount -t tmpfs -o size=1m none "$1/$SMALL"; fi
mount -o remount,bind,ro /
shift
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def run_in_sandbox(code, folder, *arguments, small=""):
    """Runs Python where only one folder can be written.

    Arguments
    ---------
    code : str
        The program. ``sys.argv[1]`` is the folder, the arguments follow.
    folder : Path
        What it may write.
    *arguments : str
        More of them.
    small : str
        Name of a folder in it that is a disk of one megabyte inside.

    Returns
    -------
    str
        What it printed. Fails the test where the program fails.
    """
    needed = [tool for tool in ("unshare", "setpriv") if not shutil.which(tool)]
    if needed or not _works(os.fspath(folder)):
        pytest.skip(
            "attacks run in a private mount namespace, which is not possible "
            f"here ({', '.join(needed) or 'unshare -m is refused'})"
        )
    command = [sys.executable, "-c", code, os.fspath(folder), *arguments]
    done = _run(folder, *command, small=small)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _run(folder, *command, small=""):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": os.fspath(folder),
        "SMALL": small,
    }
    return subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            _SETUP,
            "sh",
            os.fspath(folder),
            *command,
        ],
        env=environment,
        capture_output=True,
        text=True,
    )


@cache
def _works(folder):
    """Whether the folder can be written in a sandbox, and its parent not."""
    script = 'touch "$1/probe" && rm "$1/probe" && ! touch "$1/../probe"'
    return _run(folder, "sh", "-c", script, "sh", folder).returncode == 0
