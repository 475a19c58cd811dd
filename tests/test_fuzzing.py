"""Whatever is in a file, it ends in an answer or in an error of ours, soon.

Valid files are damaged: bytes are changed, cut and repeated, values in JSON are
put in the place of others. Every kind of record that is read is among them. A
short, seeded run is part of the tests; FUZZ=100000 in the environment asks for
so many inputs in all.
"""

import contextlib
import io
import json
import os
import resource
import struct
import sys
import time

import pytest
import torch
from filled_pool import collect
from hypothesis import (
    HealthCheck,
    given,
    settings,
    strategies as st,
)
from safetensors.torch import save_file
from speechbrain.utils.importutils import LazyModule

from speechbrain_merge.cli import main
from speechbrain_merge.command.plan import read_plan
from speechbrain_merge.pool import CheckpointPool, read_merges, read_pool
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.pool.meta import read_meta, read_progress
from speechbrain_merge.pool.recovery import own_record
from speechbrain_merge.pool.run_folder import RunFolder
from speechbrain_merge.records.ownership import foreign_files, write_mark
from speechbrain_merge.records.reading import parse_number
from speechbrain_merge.report import merge_card
from speechbrain_merge.weights import fold, open_weights

for _module in list(sys.modules.values()):
    if isinstance(_module, LazyModule):
        # hypothesis asks every module for its file, and SpeechBrain's lazy
        # ones would import what is not installed
        _module.__dict__.setdefault("__file__", None)

LONGEST = 10.0
"""Seconds that one input may take."""

MOST_MEMORY = 512 << 20
"""Bytes by which all inputs together may raise the memory of the process.

None of the files is larger than 100 kB.
"""

TARGETS = {}


def target(function):
    """Registers what a damaged file is given to."""
    TARGETS[function.__name__] = function
    return function


def _junk():
    numbers = st.one_of(
        st.integers(), st.floats(), st.sampled_from([10**50, -1, 2**63, 1e308])
    )
    words = st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            ["../../x", "/etc/passwd", "\0", "x" * 10_000, "1e99999999", "nan"]
            + ["!ref <a>", "!!python/name:os.system", "epoch-0001", "a" * 64]
        ),
    )
    plain = st.one_of(st.none(), st.booleans(), numbers, words)
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(max_size=8), inner, max_size=4),
        ),
        max_leaves=8,
    )


JUNK = _junk()


def damaged_json(value, choose):
    """The value with one thing in it, or all of it, replaced or removed."""
    if isinstance(value, (dict, list)) and value and choose(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = choose(st.sampled_from(list(keys)))
        copy = value.copy()
        if choose(st.integers(0, 9)):
            copy[key] = damaged_json(value[key], choose)
        else:
            del copy[key]
        return copy
    return choose(JUNK)


def damaged_bytes(data, choose):
    """Some bytes changed, put in, taken out, or all cut off."""
    data = bytearray(data)
    for _ in range(choose(st.integers(1, 4))):
        at = choose(st.integers(0, len(data)))
        kind = choose(st.sampled_from(["change", "insert", "remove", "cut"]))
        some = choose(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from(
                    [b"\0" * 8, b"\xff" * 8, b"[" * 500, b"{", b"*a"]
                ),
            )
        )
        if kind == "change":
            data[at : at + len(some)] = some
        elif kind == "insert":
            data[at:at] = some
        elif kind == "remove":
            del data[at : at + len(some)]
        else:
            del data[at:]
    return bytes(data)


def write_damaged(path, valid, choose):
    """Puts a damaged file in the place of a valid one."""
    lines = valid.splitlines()
    is_json = valid[:1] == b"{"
    if is_json and choose(st.booleans()):
        at = choose(st.integers(0, len(lines) - 1))
        try:
            value = json.loads(lines[at])
        except ValueError:
            value = json.loads(valid)
            lines, at = [valid], 0
        lines[at] = json.dumps(damaged_json(value, choose)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(damaged_bytes(valid, choose))


class Files:
    """One valid file of each kind."""

    def __init__(self, folder):
        self.folder = folder
        self.pool, saver, _ = collect(
            folder, [{"WER": 3.0}, {"WER": 2.0}], hyperparameters={"lr": 0.1}
        )
        self.checkpoint = saver.list_checkpoints()[0].path
        members = tuple(
            Member(each.name, each.run, each.digest, 0.5)
            for each in read_pool(folder / "pool")
        )
        method = {"name": "average", "weights": None}
        remember(folder / "pool", MergeRecord("m", method, members, {"a": 1.0}))
        tensors = {f"encoder.layers.{n}.fc": torch.ones(3) for n in range(3)}
        self.weights = folder / "model.safetensors"
        record = {
            "method": "ties",
            "parameters": {"density": 0.3},
            "sources": [{"label": "a", "path": "a.pt", "digest": "0" * 64}],
        }
        save_file(tensors, self.weights, {"merge": json.dumps(record)})
        self.torch = folder / "model.pt"
        torch.save(tensors, self.torch)
        self.shards = folder / "shards"
        self.shards.mkdir()
        save_file(tensors, self.shards / "a.safetensors")
        self.index = self.shards / "model.safetensors.index.json"
        self.index.write_text(
            json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")})
        )
        self.adapter = folder / "adapter"
        self.adapter.mkdir()
        factors = {
            "base_model.model.fc.lora_A.weight": torch.ones(2, 4),
            "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
        }
        save_file(factors, self.adapter / "adapter_model.safetensors")
        (self.adapter / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "lora_alpha": 4, '
            '"alpha_pattern": {"f.*": 2}, "use_rslora": false}'
        )
        self.plan = folder / "plan.yaml"
        self.plan.write_text(
            "stages:\n  m.safetensors:\n    method: ties\n"
            "    parameters: {density: 0.3}\n    base: &a base.pt\n"
            "    experts: [a.pt, *a]\n"
        )
        self.marked = folder / "marked"
        self.marked.mkdir()
        write_mark(self.marked, {"a": {"size": 1, "sha256": "0" * 64}})


@target
def manifest(files, damage):
    run = files.folder / "pool" / "run"
    with damage(run / "manifest.jsonl"):
        read_pool(files.folder / "pool")
        for path in run.glob("*.safetensors"):
            own_record(path, "run")
        RunFolder(run).lineages()


@target
def merges(files, damage):
    with damage(files.folder / "pool" / "merges.jsonl"):
        read_merges(files.folder / "pool")


@target
def pointer(files, damage):
    with damage(files.checkpoint / "pool.ckpt") as path:
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(files.folder / "pool", {"model": model})
        pool.load(path, end_of_epoch=True)


@target
def meta(files, damage):
    with damage(files.checkpoint / "CKPT.yaml"):
        found = read_meta(files.checkpoint)
        read_progress(files.checkpoint, found)
        read_pool(files.folder / "save", skip_broken=True)


@target
def checkpoint_file(files, damage):
    with damage(files.checkpoint / "model.ckpt"):
        with open_weights(files.checkpoint) as weights:
            for name in weights:
                _ = weights[name]


@target
def safetensors_header(files, damage):
    with damage(files.weights):
        with open_weights(files.weights) as weights:
            for name in weights:
                _ = weights[name]
            merge_card(weights.metadata)


@target
def torch_file(files, damage):
    with damage(files.torch):
        with open_weights(files.torch) as weights:
            for name in weights:
                _ = weights[name]


@target
def index(files, damage):
    with damage(files.index):
        with open_weights(files.shards) as weights:
            list(weights)


@target
def adapter_configuration(files, damage):
    with damage(files.adapter / "adapter_config.json"):
        with fold(files.adapter, base={"fc.weight": torch.ones(4, 4)}) as plain:
            _ = plain["fc.weight"]


@target
def plan(files, damage):
    with damage(files.plan):
        read_plan(files.plan)


@target
def mark(files, damage):
    with damage(files.marked / ".speechbrain_merge.json"):
        foreign_files(files.marked)


@target
def card(files, damage):
    path = files.folder / "record.json"
    path.write_text(
        '{"method": "layer_scaled", "parameters": {"method": {"method": '
        '"ties", "parameters": {"density": 0.3}}, "first": 1, "last": 1}, '
        '"sources": [{"path": "a", "label": "a", "digest": "0"}], '
        '"base": {"path": "b"}, "created": "2026", "versions": {"torch": "2"}}'
    )
    with damage(path):
        text = path.read_text(encoding="utf-8", errors="replace")
        with contextlib.suppress(UnicodeEncodeError):
            merge_card({"merge": text})


@target
def command_line(files, damage):
    with damage(files.weights):
        for arguments in (
            ["inspect", files.weights],
            ["compare", files.weights, files.torch],
        ):
            words = [str(each) for each in arguments]
            with contextlib.redirect_stdout(io.StringIO()):
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    assert main(words) in (0, 2)
            assert "Error:" not in said.getvalue(), said.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Valid files, restored after each input."""
    return Files(tmp_path_factory.mktemp("fuzzed"))


INPUTS = int(os.environ.get("FUZZ", 0)) // (len(TARGETS) + 1) or 25


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_damaged_files(files, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0

    @settings(
        max_examples=INPUTS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data):
        nonlocal count
        count += 1

        @contextlib.contextmanager
        def damage(path):
            valid = path.read_bytes()
            write_damaged(path, valid, data.draw)
            try:
                yield path
            finally:
                path.write_bytes(valid)

        begun = time.process_time()
        try:
            TARGETS[name](files, damage)
        except (ValueError, OSError):
            pass
        assert time.process_time() - begun < LONGEST

    run()
    print(f"{name}: {count} inputs")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < MOST_MEMORY


@settings(max_examples=INPUTS, deadline=None, derandomize=True, database=None)
@given(JUNK)
def test_numbers(value):
    try:
        found = parse_number(value, "a test")
    except ValueError as error:
        assert "a test: expected a number" in str(error)
    else:
        assert abs(found) <= 1e30


@pytest.mark.parametrize("length", [0, 1, 7, 8, 2**31, 2**63 - 1, 2**64 - 1])
def test_lengths_of_headers(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}      ")
    with pytest.raises(ValueError, match="model.safetensors"):
        open_weights(path)
