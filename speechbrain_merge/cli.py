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

import argparse
import json
import sys
from contextlib import redirect_stdout
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
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if options.runs == "evaluating":
        options.overrides = more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        command = import_module(f"speechbrain_merge.command.{options.runs}")
        with redirect_stdout(sys.stderr):
            found = command.run(options)
        if options.json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
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


_ABOUT_EXPORTS = """\
what each kind needs, and what else it takes:
  whisper      --whisper; --module --language --dtype --max-shard-size
  ctc          --ssl --labels; --module --head --blank-index --dtype
               --max-shard-size
  recipe       --hparams --interface --encoder --tokenizer; --decoder --file
               --blank-index --overrides --dtype
  pretrained   --hparams; --file
  ctranslate2  --dtype
  ggml         none
All write the card of the merge, README.md.

A Conformer with CTC, and a transducer:
  speechbrain-merge export recipe m.safetensors --hparams hyperparams.yaml \\
      --interface EncoderASR --tokenizer label_encoder.txt -o folder \\
      --encoder compute_features,normalize,CNN,Transformer,ctc_lin \\
      --file normalize=normalizer.ckpt
  speechbrain-merge export recipe m.safetensors --hparams hyperparams.yaml \\
      --interface StreamingASR --tokenizer tokenizer.model -o folder \\
      --encoder compute_features,normalize,CNN,enc,proj_enc \\
      --decoder Greedysearcher --file normalize=normalizer.ckpt
"""


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
    _add_signing(command)

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

    command = commands.add_parser(
        "study", help="the tables of a study, or how far it has come"
    )
    command.set_defaults(runs="studying")
    command.add_argument("folder", help="of the study, with its results.json")
    command.add_argument(
        "--page", action="store_true", help="write report.html there"
    )

    command = commands.add_parser(
        "export",
        help="make a folder that loads",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_ABOUT_EXPORTS,
    )
    command.set_defaults(runs="exporting")
    command.add_argument(
        "kind",
        choices=(
            "whisper",
            "ctc",
            "recipe",
            "pretrained",
            "ctranslate2",
            "ggml",
        ),
    )
    command.add_argument(
        "source",
        help="merged weights; for ctranslate2 (faster-whisper) and ggml "
        "(whisper.cpp) a folder that `export whisper` wrote",
    )
    command.add_argument("-o", "--output", required=True, help="the folder")
    command.add_argument(
        "--whisper", help="folder or hub name of a Whisper of the same size"
    )
    command.add_argument("--language", help="of a multilingual Whisper")
    command.add_argument(
        "--ssl",
        help="folder or hub name of a wav2vec 2.0, HuBERT or WavLM of the same "
        "size",
    )
    command.add_argument(
        "--labels", help="label_encoder.txt of the training, or a vocab.json"
    )
    command.add_argument(
        "--module", help="name of the Whisper, or wav2vec 2.0, in the weights"
    )
    command.add_argument("--head", help="name of CTC's layer in the weights")
    command.add_argument("--blank-index", type=int, help="CTC's blank")
    command.add_argument(
        "--hparams",
        help="of `recipe` the YAML of the training, of `pretrained` that for "
        "inference",
    )
    command.add_argument(
        "--overrides", help="of that YAML: '{data_folder: null}'"
    )
    command.add_argument(
        "--interface", help="EncoderASR, EncoderDecoderASR or StreamingASR"
    )
    command.add_argument(
        "--encoder",
        metavar="KEYS",
        help="what audio passes through, in order: "
        "compute_features,normalize,CNN,Transformer,ctc_lin",
    )
    command.add_argument("--decoder", metavar="KEY", help="the search")
    command.add_argument(
        "--tokenizer", help="a SentencePiece model, or label_encoder.txt"
    )
    command.add_argument(
        "--file",
        action="append",
        default=[],
        help="another loadable's file; of `recipe` as KEY=PATH, such as "
        "normalize=CKPT+latest/normalizer.ckpt",
    )
    command.add_argument(
        "--dtype",
        help="of the stored weights: float32, float16, bfloat16; for "
        "ctranslate2 also int8, int8_float16, …",
    )
    command.add_argument(
        "--max-shard-size",
        "--max_shard_size",
        metavar="SIZE",
        help="the largest file of weights, as 2GB",
    )
    command.add_argument(
        "--card",
        metavar="YAML",
        help="what the card says besides: license, language, tags, …",
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

    command = commands.add_parser(
        "completion", help="a script that completes words in bash"
    )
    command.set_defaults(runs="completion", parser=parser)

    for command in commands.choices.values():
        command.add_argument(
            "--json", action="store_true", help="print results as JSON"
        )
    return parser


def _add_format(command, text):
    """The option that says for whom an adapter is written."""
    command.add_argument("--format", choices=("peft", "speechbrain"), help=text)


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
