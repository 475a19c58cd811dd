"""The command ``speechbrain-merge``: merges, and looks at, files from a shell.

::

    speechbrain-merge merge average a.safetensors results/b/pool -o m.safetensors
    speechbrain-merge merge ties a.pt b.pt --base base.pt \\
        --parameters '{density: 0.3}' -o m.safetensors
    speechbrain-merge merge plan.yaml --dry-run
    speechbrain-merge inspect m.safetensors
    speechbrain-merge compare a.pt b.pt --base base.pt
    speechbrain-merge export whisper m.safetensors --whisper openai/whisper-tiny \\
        -o folder
    speechbrain-merge merge plan.yaml --sign key.pem
    speechbrain-merge verify m.safetensors --key key.pub
    speechbrain-merge methods
    speechbrain-merge fragments smact -o hparams

An error is reported in one line, and the exit status is then 2. What a command
needs is loaded when it is run: ``--help`` and ``--version`` answer at once.

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

import argparse
import sys
from importlib import import_module

from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.versions import versions


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
    options = _parser().parse_args(arguments)
    try:
        command = import_module(f"speechbrain_merge.command.{options.runs}")
        command.run(options)
    except Exception as error:
        if options.traceback:
            raise
        text = printable(" ".join(str(error).split()))
        if not isinstance(error, (ValueError, OSError)):
            # One that this package did not foresee
            text = (
                f"{type(error).__name__}: {text}. (To see where, write "
                "`speechbrain-merge --traceback` in front.)"
            )
        print(f"speechbrain-merge {options.command}: {text}", file=sys.stderr)
        return 2
    return 0


class _Version(argparse.Action):
    """Prints the versions of what takes part, and ends."""

    def __call__(self, parser, *_):
        """Called by argparse where the option is given."""
        known = versions()
        own = known.pop("speechbrain_merge")
        others = ", ".join(f"{name} {word}" for name, word in known.items())
        print(f"{parser.prog} {own} ({others})")
        parser.exit()


def _parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="speechbrain-merge",
        description="Merges speech recognisers from a shell.",
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        help="of this package and of those it builds on",
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show where an error comes from, for a report of a defect",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "merge", help="merge models by a method, or by a plan in YAML"
    )
    command.set_defaults(runs="merging")
    command.add_argument("method", help="a method's name, or a plan (.yaml)")
    command.add_argument(
        "experts",
        nargs="*",
        help="files, checkpoint folders, Hugging Face folders, pools, globs",
    )
    command.add_argument("--base", help="what the experts were fine-tuned from")
    command.add_argument("-o", "--output", help="the .safetensors to write")
    command.add_argument(
        "--parameters", help="of the method, as YAML: '{density: 0.3}'"
    )
    for name, text in (
        ("include", "merge only parts that match, e.g. encoder.layers.0-3"),
        ("exclude", "but not parts that match"),
    ):
        command.add_argument(f"--{name}", action="append", help=text)
    command.add_argument(
        "--otherwise",
        choices=("average", "base", "first"),
        help="how the other parts are made",
    )
    command.add_argument(
        "--different-bases",
        action="store_true",
        help="merge experts that were fine-tuned from different weights, "
        "or have different vocabularies or heads",
    )
    command.add_argument(
        "--dtype",
        help="of the result: float64, float32, float16 or bfloat16; by default "
        "that of the experts",
    )
    command.add_argument("--workers", type=int, default=1, help="threads")
    command.add_argument(
        "--dry-run", action="store_true", help="check all, merge nothing"
    )
    command.add_argument("--quiet", action="store_true", help="no bars")
    _add_signing(command)

    command = commands.add_parser(
        "inspect", help="what is in a file of weights, or merged of a pool"
    )
    command.set_defaults(runs="inspection")
    command.add_argument("file")
    command.add_argument(
        "--verify",
        action="store_true",
        help="read a pool, or all that a merged model was made of, as far as "
        "it is there, and compare it with what is on record",
    )

    command = commands.add_parser("compare", help="how two models differ")
    command.set_defaults(runs="comparison")
    command.add_argument("first")
    command.add_argument("second")
    command.add_argument("--base", help="what both were fine-tuned from")
    command.add_argument(
        "--layers", action="store_true", help="a row for each layer"
    )

    command = commands.add_parser("export", help="make a folder that loads")
    command.set_defaults(runs="exporting")
    command.add_argument("kind", choices=("whisper", "pretrained"))
    command.add_argument("source", help="merged weights")
    command.add_argument("-o", "--output", required=True, help="the folder")
    command.add_argument(
        "--whisper", help="folder or hub name of a Whisper of the same size"
    )
    command.add_argument("--module", default="whisper", help="its module name")
    command.add_argument("--language", help="of a multilingual Whisper")
    command.add_argument("--hparams", help="the YAML for inference")
    command.add_argument(
        "--file", action="append", default=[], help="another loadable's file"
    )
    _add_signing(command)

    command = commands.add_parser(
        "verify", help="who signed a model, and whether it is unchanged"
    )
    command.set_defaults(runs="verification")
    command.add_argument("path", help="a merged file or an exported folder")
    command.add_argument("--key", help="the public key of who signed it")
    command.add_argument(
        "--certificate-chain",
        action="append",
        default=[],
        metavar="FILE",
        help="or certificates that you trust, the root's among them",
    )
    command.add_argument(
        "--signature", help="where it is, if not beside the file (.sig)"
    )

    command = commands.add_parser("methods", help="the merge methods there are")
    command.set_defaults(runs="method_list")
    command.add_argument("name", nargs="?", help="one, explained in full")

    command = commands.add_parser(
        "fragments", help="ready YAML, one a method, to include in a recipe"
    )
    command.set_defaults(runs="fragments")
    command.add_argument(
        "names", nargs="*", help="print these, or copy them; by default all"
    )
    command.add_argument("-o", "--output", help="copy into this folder")
    return parser


def _add_signing(command):
    """The options by which an output is signed."""
    command.add_argument(
        "--sign",
        metavar="KEY",
        help="sign with this private key (needs speechbrain_merge[sign])",
    )
    command.add_argument("--certificate", help="of the key")
    command.add_argument(
        "--certificate-chain",
        action="append",
        default=[],
        metavar="FILE",
        help="certificates between that and the root's",
    )


if __name__ == "__main__":
    sys.exit(main())
