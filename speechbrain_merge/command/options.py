"""The options of ``speechbrain-merge``, a function for each command.

Nothing else of the package is loaded for them, so that ``--help`` answers at
once.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse

from speechbrain_merge.command.export_options import add_export, add_signing
from speechbrain_merge.records.versions import versions

_ABOUT_MERGING = """\
coefficients:
  a number for all experts   --parameters '{scale: 0.4}'
  one for each, in order     --parameters '{weights: [3, 1]}'
  by expert                  --parameters '{scale: {experts: {a.pt: 0.6, b.pt: 0.2}}}'
  by part of the model       --parameters '{scale: {parts: {encoder: 0.3}, default: 0.5}}'
  by depth, first to last    --parameters '{scale: {depth: [0.2, 0.6]}}'
  around another method      --parameters '{method: {method: ties, density: 0.3},
                             first: 0.2, last: 0.6}'   (layer_scaled)

statistics (fisher, regmean, optimal_transport with cost: activations) are
collected by a recipe, see collect_statistics; one file for each expert:
  --parameters '{statistics: [a.fisher.safetensors, b.fisher.safetensors]}'

a plan (plan.yaml) names steps, of which each may be an expert of others:
  stages:
    clean:
      method: average
      experts: [results/clean-*/pool]
    merged:
      method: ties
      parameters: {density: 0.3}
      experts: [clean, noisy.safetensors]
      base: whisper/model.safetensors
      output: merged.safetensors
  Further keys: include, exclude, otherwise, different_bases, dtype.

`speechbrain-merge methods` says what each method needs.
"""


def parser() -> argparse.ArgumentParser:
    """The command line.

    Returns
    -------
    parser : argparse.ArgumentParser
        Its ``runs`` is the module of ``speechbrain_merge.command`` that does
        what is asked.

    Example
    -------
    >>> options = parser().parse_args(["inspect", "merged.safetensors"])
    >>> options.runs, options.json
    ('inspection', False)
    """
    made = argparse.ArgumentParser(
        prog="speechbrain-merge",
        description="Merges speech recognisers from a shell.",
    )
    made.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        help="of this package and of those it builds on",
    )
    made.add_argument(
        "--traceback",
        action="store_true",
        help="show where an error comes from, for a report of a defect",
    )
    commands = made.add_subparsers(dest="command", required=True)
    for add in (
        _add_merge,
        _add_extract,
        _add_again,
        _add_inspect,
        _add_compare,
        _add_evaluate,
        _add_study,
        add_export,
        _add_verify,
        _add_methods,
        _add_fragments,
        _add_completion,
    ):
        add(commands)
    commands.choices["completion"].set_defaults(parser=made)
    for command in commands.choices.values():
        command.add_argument(
            "--json", action="store_true", help="print results as JSON"
        )
    return made


class _Version(argparse.Action):
    """Prints the versions of what takes part, and ends."""

    def __call__(self, parser, *_):
        """Called by argparse where the option is given."""
        known = versions()
        own = known.pop("speechbrain_merge")
        others = ", ".join(f"{name} {word}" for name, word in known.items())
        print(f"{parser.prog} {own} ({others})")
        parser.exit()


def _add_merge(commands):
    command = commands.add_parser(
        "merge",
        help="merge models by a method, or by a plan in YAML",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_ABOUT_MERGING,
    )
    command.set_defaults(runs="merging")
    command.add_argument("method", help="a method's name, or a plan (.yaml)")
    command.add_argument(
        "experts",
        nargs="*",
        help="files, checkpoint folders, Hugging Face folders or names on the "
        "hub, pools, globs",
    )
    command.add_argument(
        "--base",
        help="what the experts were fine-tuned from; by default the one that "
        "their pool kept",
    )
    command.add_argument(
        "-o",
        "--output",
        help="the .safetensors to write; or a folder, where the first expert "
        "is a Hugging Face folder",
    )
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
    command.add_argument(
        "--adapter",
        choices=("concatenate", "svd", "core"),
        help="the experts are LoRA adapters, and so is the result: the exact "
        "sum, the nearest of a --rank, or any method in Core Space "
        "(docs/adapters.md)",
    )
    command.add_argument("--rank", type=int, help="of the merged adapter")
    command.add_argument(
        "--alpha",
        type=float,
        help="LoRA's, where the adapters do not say it: SpeechBrain's do not",
    )
    _add_format(command, "of the merged adapter; by default the adapters' own")
    command.add_argument("--workers", type=int, default=1, help="threads")
    command.add_argument(
        "--device",
        default="cpu",
        help="where tensors are merged: cpu, cuda, cuda:1, or auto, a GPU if "
        "there is one",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="check all, merge nothing"
    )
    command.add_argument(
        "--anywhere",
        action="store_true",
        help="let a plan write outside of the working folder and its own",
    )
    command.add_argument("--quiet", action="store_true", help="no bars")
    add_signing(command)


def _add_extract(commands):
    command = commands.add_parser(
        "extract", help="make a LoRA adapter of a fine-tuned model"
    )
    command.set_defaults(runs="extraction")
    command.add_argument("expert", help="the fine-tuned model")
    command.add_argument(
        "--base", required=True, help="what it was fine-tuned from"
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        help="a folder for PEFT, a .safetensors for SpeechBrain",
    )
    command.add_argument(
        "--rank", type=int, required=True, help="of each layer"
    )
    _add_format(command, "by default that of the output")
    command.add_argument(
        "--leave-out",
        action="append",
        default=[],
        help="tensors that stay as in the base, e.g. '*.embed_tokens.weight'",
    )
    command.add_argument(
        "--different-bases",
        action="store_true",
        help="take a model that was fine-tuned from other weights",
    )
    command.add_argument("--workers", type=int, default=1, help="threads")
    command.add_argument("--quiet", action="store_true", help="no bars")


def _add_again(commands):
    command = commands.add_parser(
        "again", help="make a merged file again, byte by byte"
    )
    command.set_defaults(runs="again")
    command.add_argument("model", help="a merged file or an exported folder")
    command.add_argument(
        "-o", "--output", required=True, help="the .safetensors to write"
    )
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a source is now, by its name, path or SHA-256 on record; "
        "what was moved together with the model is found",
    )
    command.add_argument("--workers", type=int, default=1, help="threads")
    command.add_argument("--quiet", action="store_true", help="no bars")


def _add_inspect(commands):
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


def _add_compare(commands):
    command = commands.add_parser("compare", help="how models differ")
    command.set_defaults(runs="comparison")
    command.add_argument("first", help="a file, a folder; of many, a pool")
    command.add_argument("second")
    command.add_argument("more", nargs="*", help="more models, or pools")
    command.add_argument("--base", help="what they were fine-tuned from")
    command.add_argument(
        "-o", "--output", help="a folder for pictures and comparison.html"
    )
    command.add_argument(
        "--layers", action="store_true", help="a row for each layer"
    )


def _add_evaluate(commands):
    command = commands.add_parser(
        "evaluate",
        help="error rates of weights on the test sets of a recipe",
        usage="speechbrain-merge evaluate TRAIN.PY HPARAMS.YAML --weights FILE "
        "[--set NAME] [--KEY VALUE ...]",
        epilog="Other options are those of the recipe, as on its own command "
        "line: run options such as --device cuda, and overrides of the YAML, "
        "such as --output_folder results/evaluated. TRAIN.PY needs a function "
        "`build`, see docs/studies.md.",
        allow_abbrev=False,
    )
    command.set_defaults(runs="evaluating")
    command.add_argument(
        "train", metavar="TRAIN.PY", help="the recipe's script"
    )
    command.add_argument("hparams", metavar="HPARAMS.YAML", help="its YAML")
    command.add_argument(
        "--weights",
        required=True,
        help="a merged file, a candidate, a checkpoint folder",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME",
        help="only this test set; may be given several times",
    )
    command.add_argument(
        "--metric", default="WER", help="the checkpoints' error rate"
    )
    command.add_argument(
        "--tracker",
        help="the Brain's attribute with its ErrorRateStats; by default "
        "the metric in lower case with _metric",
    )


def _add_study(commands):
    command = commands.add_parser(
        "study", help="the tables of a study, or how far it has come"
    )
    command.set_defaults(runs="studying")
    command.add_argument("folder", help="of the study, with its results.json")
    command.add_argument(
        "--page", action="store_true", help="write report.html there"
    )


def _add_verify(commands):
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


def _add_methods(commands):
    command = commands.add_parser("methods", help="the merge methods there are")
    command.set_defaults(runs="method_list")
    command.add_argument("name", nargs="?", help="one, explained in full")


def _add_fragments(commands):
    command = commands.add_parser(
        "fragments", help="ready YAML, one a method, to include in a recipe"
    )
    command.set_defaults(runs="fragments")
    command.add_argument(
        "names", nargs="*", help="print these, or copy them; by default all"
    )
    command.add_argument("-o", "--output", help="copy into this folder")


def _add_completion(commands):
    command = commands.add_parser(
        "completion", help="a script that completes words in bash"
    )
    command.set_defaults(runs="completion")


def _add_format(command, text):
    """The option that says for whom an adapter is written."""
    command.add_argument("--format", choices=("peft", "speechbrain"), help=text)
