"""The command ``speechbrain-merge``: merges, and looks at, files from a shell.

::

    speechbrain-merge merge average a.safetensors results/b/pool -o m.safetensors
    speechbrain-merge merge ties a.pt b.pt --base base.pt \\
        --parameters '{density: 0.3}' -o m.safetensors
    speechbrain-merge merge plan.yaml --dry-run
    speechbrain-merge merge ties digits/ read/ --adapter core -o merged/
    speechbrain-merge extract expert.pt --base base.pt --rank 16 -o adapter/
    speechbrain-merge again m.safetensors -o copy.safetensors
    speechbrain-merge inspect m.safetensors
    speechbrain-merge inspect results/pool --json
    speechbrain-merge compare a.pt b.pt --base base.pt
    speechbrain-merge compare a.pt b.pt c.pt --base base.pt -o before
    speechbrain-merge export whisper m.safetensors --whisper openai/whisper-tiny \\
        -o folder
    speechbrain-merge merge plan.yaml --sign key.pem
    speechbrain-merge verify m.safetensors --key key.pub
    speechbrain-merge evaluate train.py hparams/train.yaml \\
        --weights m.safetensors --set test-clean
    speechbrain-merge study results/aode --page
    speechbrain-merge methods
    speechbrain-merge fragments smact -o hparams
    speechbrain-merge completion > \\
        ~/.local/share/bash-completion/completions/speechbrain-merge

Results go to the standard output, in words or, with ``--json``, as one JSON
document; progress, logs and errors go to the standard error. Each fault is
reported in a line, and the exit status is then 2. What a command needs is
loaded when it is run: ``--help`` and ``--version`` answer at once.

Example
-------
>>> import torch
>>> folder = getfixture("tmp_path")
>>> torch.save({"fc.weight": torch.zeros(2, 3)}, folder / "a.pt")
>>> main(["inspect", str(folder / "a.pt")])  # doctest: +ELLIPSIS
/.../a.pt
1 tensors, 6 weights (float32), 24 bytes
<BLANKLINE>
part   tensors  weights
other        1        6
<BLANKLINE>
tensor     shape   type
fc.weight  [2, 3]  float32
0

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import sys
from contextlib import redirect_stdout
from importlib import import_module

from speechbrain_merge.command.options import parser
from speechbrain_merge.records.errors import printable


def main(arguments=None) -> int:
    """Runs the command.

    Arguments
    ---------
    arguments : list of str, optional
        As on the command line; by default what is there.

    Returns
    -------
    status : int
        0, or 2 after an error, which is printed.
    """
    command_line = parser()
    options, more = command_line.parse_known_args(arguments)
    if options.runs == "evaluating":
        options.overrides = more
    elif more:
        command_line.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        command = import_module(f"speechbrain_merge.command.{options.runs}")
        with redirect_stdout(sys.stderr):
            found = command.run(options)
        if options.json:
            print(_json(found))
        else:
            command.show(found)
        faults = found.get("faults", [])
    except Exception as error:
        if options.traceback:
            raise
        faults = _lines(error)
    if faults:
        first, *more = map(printable, faults)
        print(f"speechbrain-merge {options.command}: {first}", file=sys.stderr)
        for line in more:
            print(f"  {line}", file=sys.stderr)
    return 2 if faults else 0


def _json(found):
    """Results as JSON, for other programs and for a terminal.

    JSON has no number that is not finite: it is null. What a terminal would
    not print is escaped.
    """
    text = json.dumps(_finite(found), indent=2, ensure_ascii=False)
    return "".join(
        each
        if each.isprintable() or each == "\n"
        else json.dumps(each).strip('"')
        for each in text
    )


def _finite(value):
    """Plain data with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lines(error):
    """What an error says, a fault a line."""
    if isinstance(error, (ValueError, OSError)):
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        return [line for line in lines if line] or [type(error).__name__]
    # One that this package did not foresee
    text = " ".join(str(error).split())
    return [
        f"{type(error).__name__}: {text}. (To see where, write "
        "`speechbrain-merge --traceback` in front.)"
    ]


if __name__ == "__main__":
    sys.exit(main())
