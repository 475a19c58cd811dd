"""A Python that has already imported what recipes import.

A recipe that is run as a process of its own imports torch, SpeechBrain and
transformers for four seconds, and then trains its tiny model for two. `python`
gives the path of a command that is used as Python is. Behind it a process has
imported these modules, and forks for every command:

- the child has the command's folder, environment, arguments, and standard
  streams, runs the script as ``__main__``, and ends as an interpreter does;
- its exit status and the signal that ended it are passed on, and it does not
  outlive the command;
- what it starts with ``sys.executable`` is as quick.

It differs from Python in this: modules that a script forgot to import may be
there, all commands hash strings alike, and variables that libraries read at
import have the values that the tests started with. Hence a recipe's tests run
it by Python itself at least once. A command with other options than ``-m`` and
``-u`` is given to Python as it is.

Example
-------
>>> done = subprocess.run(
...     [python(), "-m", "speechbrain_merge", "methods", "--json"],
...     capture_output=True,
...     text=True,
... )
>>> "ties" in done.stdout
True

Authors
 * The speechbrain_merge authors 2026
"""

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent

MODULES = (
    "torch",
    "torch.distributed.run",
    "torch.utils._sympy.functions",
    "speechbrain.core",
    "speechbrain.integrations.huggingface.whisper",
    "speechbrain.integrations.huggingface.wav2vec2",
    "speechbrain.lobes.models.transformer.TransformerASR",
    "transformers.models.whisper.modeling_whisper",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "scipy.stats",
    "matplotlib.pyplot",
    "speechbrain_merge.brain",
    "speechbrain_merge.study",
    "speechbrain_merge.cli",
)
"""What is imported once."""


@cache
def python() -> str:
    """The path of the command, which lasts as long as this process.

    Returns
    -------
    str
        In its folder is ``speechbrain-merge`` as well. ``sys.executable``
        where a process cannot be waited for by a file descriptor, which needs
        Linux.
    """
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    command = folder / "python"
    client = (sys.executable, "-I", "-S", HERE / "warm_client.py")
    words = [*client, sys.executable, folder / "socket"]
    command.write_text(
        f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o700)
    ours = folder / "speechbrain-merge"
    script = Path(sys.executable).with_name(ours.name)
    ours.write_text(
        f'#!/bin/sh\nexec {command} {shlex.quote(str(script))} "$@"\n',
        encoding="utf-8",
    )
    ours.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), str(command)],
            stdin=subprocess.PIPE,  # it ends when this is closed
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )
    atexit.register(server.stdin.close)  # and not when this function ends
    return str(command)


def run_measured(command, **options):
    """Runs a command of Python or of `python`, and measures it.

    Arguments
    ---------
    command : list of str
        It must succeed.
    **options
        Of ``subprocess.run``; ``env`` has to be given.

    Returns
    -------
    done : subprocess.CompletedProcess
        With its output as text.
    seconds : float
        Of one processor, for its process and those that it waited for.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile("r") as used:
        options["env"] = {**options["env"], "WARM_PYTHON_USED": used.name}
        done = subprocess.run(
            command, capture_output=True, text=True, **options
        )
        seconds = sum(map(float, used))
    assert done.returncode == 0, (done.stderr + done.stdout)[-5000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds += after.ru_utime + after.ru_stime
    return done, seconds - before.ru_utime - before.ru_stime


def serve(listener, folder):
    """Forks for every command, until standard input ends.

    Arguments
    ---------
    listener : socket.socket
        Where commands come in.
    folder : Path
        Of the command. Removed in the end.

    Returns
    -------
    dict
        The command, in the process that shall run it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave nothing
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder)
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        with connection.makefile("rb") as file:
            request = json.loads(file.read(int.from_bytes(size, "big")))
        child = os.fork()
        if not child:
            connection.close()
            for stream, descriptor in enumerate(streams):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            return request
        keep(child, connection)


def keep(child, connection):
    """Tells the command how its process ended; ends it where the command did.

    Arguments
    ---------
    child : int
        The process.
    connection : socket.socket
        To the command, which sends nothing more.
    """
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    answer = [os.waitstatus_to_exitcode(status), seconds]
    try:
        connection.sendall(json.dumps(answer).encode())
    except OSError:  # the command was ended
        pass
    os._exit(0)


def become(request, command):
    """Makes this process the one that a command asks for.

    Arguments
    ---------
    request : dict
        ``arguments``, ``folder``, ``environment``.
    command : str
        The path of the command.

    Returns
    -------
    callable
        Runs the script or the module.
    """
    import numpy
    import torch

    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    numpy.random.seed()  # unlike those of torch, others at each start
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    arguments = request["arguments"]
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        del arguments[0]
    module = arguments[0] == "-m"
    sys.argv = arguments[1:] if module else arguments
    first = os.getcwd() if module else os.path.dirname(sys.argv[0])
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # instead of this file's folder, and of the PYTHONPATH of the tests
    sys.path[:2] = [os.path.realpath(first), *filter(None, more)]
    sys.executable = command
    importlib.invalidate_caches()
    if module:
        return lambda: runpy.run_module(
            sys.argv[0], run_name="__main__", alter_sys=True
        )
    return lambda: runpy.run_path(sys.argv[0], run_name="__main__")


def run_to_the_end(script):
    """Runs, and ends the process as an interpreter does, but without delay.

    Arguments
    ---------
    script : callable
        What runs.
    """
    code = 0
    try:
        script()
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # as multiprocessing ends a process: to free all modules takes half a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # what is never looked at stays shared
    with socket.socket(fileno=int(sys.argv[1])) as door:
        asked = serve(door, Path(sys.argv[2]).parent)
    run_to_the_end(become(asked, sys.argv[2]))
