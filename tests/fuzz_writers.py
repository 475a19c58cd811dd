"""Damaged files and strange command lines, given to what writes and deletes.

A program for a sandbox (`sandbox.py`): what it works on are copies in the one
folder that it can write. Beside them lie decoys, which must stay as they are::

    python fuzz_writers.py FOLDER INPUTS SEED

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from filled_pool import collect, resume, train_a_little
from fuzz_targets import RECORD
from fuzzing import fuzz
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_models import inference_yaml

from speechbrain_merge.cli import main
from speechbrain_merge.command.options import parser
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.methods import available
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.records.log import Log
from speechbrain_merge.records.once import once
from speechbrain_merge.report import record_coefficients
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.tally import Tally

TARGETS = {}


def target(function):
    """Registers what damaged files are given to."""
    TARGETS[function.__name__] = function
    return function


class Place:
    """A folder to work in, made anew for each input, and decoys beside it.

    Arguments
    ---------
    folder : Path
        Where both lie.
    """

    def __init__(self, folder):
        self.folder, self.decoys = folder, folder / "decoys"
        self.template, self.work = folder / "template", folder / "work"
        self.decoys.mkdir()
        (self.decoys / "thesis.tex").write_text("years")
        save_file({"w": torch.ones(2)}, self.decoys / "x.safetensors")
        self.template.mkdir()
        collect(self.template, [{"WER": 3.0}, {"WER": 2.0}])
        tensors = {f"model.layers.{n}.weight": torch.ones(3) for n in range(3)}
        for name in ("a", "b"):
            save_file(
                tensors,
                self.template / f"{name}.safetensors",
                {"merge": json.dumps(RECORD)},
            )
        torch.save(tensors, self.template / "c.pt")
        (self.template / "hparams.yaml").write_text(inference_yaml(tensors))
        (self.template / "plan.yaml").write_text(
            "stages:\n  x:\n    method: average\n    experts: [a.safetensors, "
            "b.safetensors]\n    output: x.safetensors\n"
        )
        export_pretrained(
            self.template / "a.safetensors",
            self.template / "hparams.yaml",
            self.template / "exported",
        )
        member = Member("run/epoch-0001", "run", "0" * 64, 0.5)
        self.record = MergeRecord("m", {"name": "average"}, (member,), {})
        remember(self.template / "pool", self.record)
        once(self.template / "done.json", {"lr": 1}, lambda: 1)
        record_coefficients(self.template / "ratios.jsonl", 1, {"a": 0.5})
        Journal(self.template / "j.jsonl").record("k", Tally(1, 10))
        # the pool knows where its checkpoints are
        pointers = list((self.template / "save").glob("*/pool.ckpt"))
        self.pointer = pointers[0].relative_to(self.template)

    @contextlib.contextmanager
    def fresh(self):
        """A copy to work on; the decoys are looked at afterwards."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)
        os.chdir(self.work)
        before = _content(self.decoys)
        try:
            yield self.work
        finally:
            assert _content(self.decoys) == before, "a decoy was touched"


def _content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@target
def training_that_goes_on(place, damage):
    with place.fresh() as work, contextlib.ExitStack() as stack:
        run = work / "pool" / "run"
        files = [run / "manifest.jsonl", work / place.pointer]
        files += [next(run.glob("*.safetensors")), run.parent / "merges.jsonl"]
        for _ in range(1 + damage.number(2)):
            path = files.pop(damage.number(len(files)))
            stack.enter_context(damage(path))
        model = torch.nn.Linear(2, 2)
        _, saver = resume(work, model, keep_last=1)
        train_a_little(model, 9.0)
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": 9})


@target
def export_over_an_export(place, damage):
    with place.fresh() as work:
        files = ["a.safetensors", "hparams.yaml"]
        files += ["exported/.speechbrain_merge.json", "c.pt"]
        path = work / files[damage.number(len(files))]
        source = "c.pt" if path.suffix == ".pt" else "a.safetensors"
        with damage(path):
            export_pretrained(
                work / source, work / "hparams.yaml", work / "exported"
            )


@target
def records_that_are_added_to(place, damage):
    with place.fresh() as work:
        names = ["pool/merges.jsonl", "done.json", "ratios.jsonl", "j.jsonl"]
        name = names[damage.number(len(names))]
        with damage(work / name):
            if name == "done.json":
                once(work / name, {"lr": 2}, lambda: 2, again=True)
            elif name == "j.jsonl":
                Journal(work / name).record("n", Tally(2, 10))
            elif name == "ratios.jsonl":
                record_coefficients(work / name, 2, {"a": 0.6})
            else:
                remember(work / "pool", place.record)
        assert Log(work / "ratios.jsonl").records()


@target
def merge_of_a_damaged_file(place, damage):
    with place.fresh() as work:
        names = ["a.safetensors", "c.pt", "plan.yaml"]
        name = names[damage.number(len(names))]
        words = ["merge", "plan.yaml", "--quiet"]
        if name != "plan.yaml":
            method = ["average", "ties", "dare", "model_stock"]
            words = ["merge", method[damage.number(4)], name, "b.safetensors"]
            words += ["--base", "b.safetensors", "-o", "new.safetensors"]
            words += ["--quiet", "--different-bases"]
        with damage(work / name):
            run_command(words)


@target
def command_lines(place, damage):
    with place.fresh():
        run_command(strange_command(damage.choose))


_VALUES = ["a.safetensors", "b.safetensors", "c.pt", "pool", "save", "*.pt"]
_VALUES += ["plan.yaml", "hparams.yaml", "new.safetensors", "exported", "new"]
_VALUES += ["nothing", "", ".", "..", "-", "--", "{density: 0.3}", "[1", "1"]
_VALUES += ["{scale: 1e400}", "{scale: [1, {}]}", "{method: ties}", "-1", "8"]
_VALUES += ["encoder", "re:(a+)+b", "re:(", "*", "layers.0-9", "layers.9-0"]
_VALUES += ["average", "float16", "a\0b", "x" * 5000, "/dev/null", "/proc/self"]
_VALUES += ["**/*", "[", "\ud800", "9" * 5000, "pretrained", "whisper"]


def strange_command(choose):
    """A sub-command with options and values of any kind.

    What it takes is read from the parser itself.
    """
    choices = parser()._subparsers._group_actions[0].choices
    name = choose(st.sampled_from(sorted(choices)))
    values = st.one_of(
        st.sampled_from(_VALUES),
        st.sampled_from(_VALUES),
        st.sampled_from(available()),
        st.text(max_size=10),
    )
    words = []
    for action in choices[name]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        often = 1 if action.required else 2
        if choose(st.integers(0, often)) > 1 and not choose(st.booleans()):
            continue
        known = st.sampled_from(list(action.choices or _VALUES))
        given = [choose(st.one_of(known, values))]
        if action.nargs == 0:
            given = []
        elif action.nargs == "*":
            given += choose(st.lists(values, max_size=3))
        elif action.nargs is None and not choose(st.integers(0, 15)):
            given = []
        option = list(action.option_strings[-1:])
        words.append([*option, *given])
    if choose(st.booleans()):
        words = choose(st.permutations(words))
    return [name, *(str(word) for group in words for word in group)]


def run_command(words):
    """Runs a command, which ends with 0 or in one line."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as ended:  # argparse
            status = ended.code
    assert status in (0, 2), (words, status)
    assert "To see where" not in said.getvalue(), (words, said.getvalue())


def run(folder, inputs, number):
    """Gives inputs to all targets; a line of JSON for each."""
    logging.disable(logging.CRITICAL)
    place = Place(folder)
    for name, function in TARGETS.items():
        begun = time.perf_counter()
        costs = fuzz(lambda damage: function(place, damage), inputs, number)
        found = dataclasses.asdict(costs)
        found["seconds"] = round(time.perf_counter() - begun, 1)
        print(json.dumps({"kind": name, **found}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
