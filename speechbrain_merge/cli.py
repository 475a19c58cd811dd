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
    speechbrain-merge methods

An error is reported in one line, and the exit status is then 2.

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
import inspect
import json
import sys
import time
from collections import Counter
from math import prod

from speechbrain_merge.command.comparison import compare
from speechbrain_merge.command.plan import Plan, parse_yaml, read_plan
from speechbrain_merge.command.plan_run import PlanRun
from speechbrain_merge.command.tables import number_cell, print_table
from speechbrain_merge.export import export_pretrained, export_whisper
from speechbrain_merge.methods import available
from speechbrain_merge.methods.registry import find
from speechbrain_merge.pool import read_merges, verify_pool
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import open_weights, part
from speechbrain_merge.weights.dtypes import RESULT_DTYPES

PLANS = (".yaml", ".yml")


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
        options.run(options)
    except Exception as error:
        if options.traceback:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, (ValueError, OSError)):
            # One that this package did not foresee
            text = (
                f"{type(error).__name__}: {text}. (To see where, write "
                "`speechbrain-merge --traceback` in front.)"
            )
        print(f"speechbrain-merge {options.command}: {text}", file=sys.stderr)
        return 2
    return 0


def _parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="speechbrain-merge",
        description="Merges speech recognisers from a shell.",
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
    command.set_defaults(run=run_merge)
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
        choices=RESULT_DTYPES,
        help="of the result; by default that of the experts",
    )
    command.add_argument("--workers", type=int, default=1, help="threads")
    command.add_argument(
        "--dry-run", action="store_true", help="check all, merge nothing"
    )
    command.add_argument("--quiet", action="store_true", help="no bars")

    command = commands.add_parser(
        "inspect", help="what is in a file of weights, or merged of a pool"
    )
    command.set_defaults(run=run_inspect)
    command.add_argument("file")
    command.add_argument(
        "--verify",
        action="store_true",
        help="read a whole pool, and compare it with what it has on record",
    )

    command = commands.add_parser("compare", help="how two models differ")
    command.set_defaults(run=run_compare)
    command.add_argument("first")
    command.add_argument("second")
    command.add_argument("--base", help="what both were fine-tuned from")
    command.add_argument(
        "--layers", action="store_true", help="a row for each layer"
    )

    command = commands.add_parser("export", help="make a folder that loads")
    command.set_defaults(run=run_export)
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

    command = commands.add_parser("methods", help="the merge methods there are")
    command.set_defaults(run=run_methods)
    command.add_argument("name", nargs="?", help="one, explained in full")
    return parser


def run_merge(options):
    """Merges by one method, or by a plan."""
    if options.method.endswith(PLANS):
        given = [
            f"--{name.replace('_', '-')}" if name != "experts" else "experts"
            for name in (
                "experts",
                "base",
                "output",
                "parameters",
                "include",
                "exclude",
                "otherwise",
                "different_bases",
                "dtype",
            )
            if getattr(options, name)
        ]
        if given:
            raise ValueError(
                f"{options.method} is a plan, which says all this itself: "
                f"leave out {', '.join(given)}."
            )
        plan = read_plan(options.method)
    else:
        if options.output is None:
            raise ValueError("give --output, the .safetensors file to write.")
        if not options.experts:
            raise ValueError("give the experts to merge.")
        stage = {
            "method": options.method,
            "parameters": parse_yaml(
                options.parameters or "{}", "--parameters"
            ),
        }
        for name in (
            "experts",
            "base",
            "include",
            "exclude",
            "otherwise",
            "output",
            "different_bases",
            "dtype",
        ):
            stage[name] = getattr(options, name)
        plan = Plan({options.output: stage})
    if options.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {options.workers}.")
    run = PlanRun(plan)
    if options.dry_run:
        print("\n".join(run.describe()))
        return
    done = run.run(options.workers, progress=not options.quiet)
    for name, state in done.items():
        output = plan.stages[name].get("output", "not kept")
        print(f"{name}: {state}" + (f" ({output})" if output != name else ""))


def run_inspect(options):
    """Prints what is in a file: parts, tensors, ties, provenance."""
    if options.verify:
        print_verified(verify_pool(options.file))
        return
    merges = read_merges(options.file)
    if merges:
        print_merges(merges)
        return
    with open_weights(options.file) as weights:
        own = [name for name in weights.names() if name not in weights.tied]
        sizes = {name: prod(weights.shape(name)) for name in own}
        types = Counter()
        parts, tensors = Counter(), Counter()
        for name in own:
            types[_type(weights, name)] += sizes[name]
            found = part(name)
            row = ".".join(word for word in (found.stack, found.role) if word)
            parts[row] += sizes[name]
            tensors[row] += 1
        size = sum(sizes[name] * weights.dtype(name).itemsize for name in own)
        print(
            f"{weights.label}\n{len(own)} tensors, {sum(sizes.values())} "
            f"weights ({', '.join(types)}), {size} bytes\n"
        )
        print_table(
            ["part", "tensors", "weights"],
            [[row, tensors[row], parts[row]] for row in parts],
        )
        print()
        print_table(
            ["tensor", "shape", "type"],
            [
                [name, str(list(weights.shape(name))), _type(weights, name)]
                for name in own
            ],
        )
        if weights.tied:
            print()
            rows = [[alias, kept] for alias, kept in weights.tied.items()]
            print_table(["tied", "to"], rows)
        if "merge" in weights.metadata:
            print("\nmerged:")
            record = parse_json(weights.metadata["merge"], weights.label)
            print(json.dumps(record, indent=2, ensure_ascii=False))


def print_verified(found):
    """Prints what a pool has, and fails where a file is not as recorded."""
    print_table(
        ["candidate", "SHA-256", "content"],
        [
            [each.name, each.digest, "changed" if each.fault else "as recorded"]
            for each in found
        ],
    )
    faults = [each.fault for each in found if each.fault]
    if faults:
        raise ValueError("\n".join(faults))


def print_merges(merges):
    """Prints what was merged of a pool, the last one at the end."""
    rows = []
    for merge in merges:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(merge.time))
        for member in merge.members:
            rows.append(
                [
                    merge.name,
                    when,
                    merge.method["name"],
                    member.name,
                    number_cell(member.weight, "{:.4f}"),
                ]
            )
    print_table(["merge", "made", "method", "member", "weight"], rows)


def run_compare(options):
    """Prints how two models differ, part by part."""
    rows = compare(options.first, options.second, options.base, options.layers)
    what = "task vectors" if options.base else "weights"
    print_table(
        [f"part ({what})", "weights", "cosine", "distance", "sign conflicts"],
        [
            [
                row.part,
                row.entries,
                number_cell(row.cosine, "{:.4f}"),
                number_cell(row.distance, "{:.4f}"),
                number_cell(row.conflicts, "{:.1%}"),
            ]
            for row in rows
        ],
    )


def run_export(options):
    """Writes a folder that loads like any other model."""
    if options.kind == "pretrained":
        if options.hparams is None:
            raise ValueError("give --hparams, the YAML for inference.")
        folder = export_pretrained(
            options.source, options.hparams, options.output, options.file
        )
    else:
        if options.whisper is None:
            raise ValueError(
                "give --whisper, a folder or hub name of a Whisper of the same "
                "architecture, for its configuration and tokenizer."
            )
        from huggingface_hub.constants import HF_HUB_CACHE
        from speechbrain.integrations.huggingface.whisper import Whisper

        try:
            whisper = Whisper(
                options.whisper, str(HF_HUB_CACHE), language=options.language
            )
        except Exception as error:
            # transformers raises whatever comes of a missing file
            raise ValueError(
                f"--whisper {options.whisper}: cannot be opened as a Whisper "
                "with its configuration, tokenizer and feature extractor "
                f"({type(error).__name__}: {error})."
            ) from error
        folder = export_whisper(
            options.source, whisper, options.output, options.module
        )
    print(folder)


def run_methods(options):
    """Prints the methods, or one in full."""
    if options.name is not None:
        method = find(options.name)
        print(f"{options.name}{inspect.signature(method)}\n")
        print(inspect.getdoc(method))
        return
    rows = []
    for name in available():
        method = find(name)
        summary = (inspect.getdoc(method) or "").partition("\n")[0]
        rows.append([name, "base" if method.needs_base else "", summary])
    print_table(["method", "needs", ""], rows)


def _type(weights, name):
    """The type of a tensor, in a word."""
    return str(weights.dtype(name)).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
