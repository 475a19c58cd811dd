"""The command of `warm_python`: hands its arguments over, and ends alike.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import signal
import socket
import sys


def main(python, place, arguments):
    """Runs Python itself where the arguments are none of a script or module."""
    kind = arguments[1:2] if arguments[:1] == ["-u"] else arguments[:1]
    if not kind or (kind[0].startswith("-") and kind[0] != "-m"):
        os.execv(python, [python, *arguments])
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        size = len(text).to_bytes(4, "big")
        socket.send_fds(connection, [size], [0, 1, 2])
        connection.sendall(text)
        answer = b""
        while received := connection.recv(4096):
            answer += received
    if not answer:
        sys.exit("The process that forks has ended.")
    code, seconds = json.loads(answer)
    if "WARM_PYTHON_USED" in os.environ:
        with open(os.environ["WARM_PYTHON_USED"], "a") as file:
            file.write(f"{seconds}\n")
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
