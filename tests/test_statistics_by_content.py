"""Files that a method reads are known by their content, wherever it counts."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_merge import MergeStage, merge
from speechbrain_merge.cli import main
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import Fisher, LayerScaled, OptimalTransport
from speechbrain_merge.methods.transport.symmetry_map import MAPS
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.stage.job import resolve
from speechbrain_merge.weights import digest, open_weights, write_weights

PLAN = """\
stages:
  out:
    method: fisher
    parameters: {statistics: [a.fisher.safetensors, b.fisher.safetensors]}
    experts: [a.safetensors, b.safetensors]
    output: out.safetensors
"""
EXPERTS = ["a.safetensors", "b.safetensors"]
STATISTICS = ["a.fisher.safetensors", "b.fisher.safetensors"]


def collect(seed):
    """Statistics, as collected anew into the same files."""
    torch.manual_seed(seed)
    for name in STATISTICS:
        write_weights(name, {"m.weight": torch.rand(8, 8) + 0.1})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Experts, their statistics and a plan."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    torch.manual_seed(0)
    base = torch.randn(8, 8)
    for name in EXPERTS:
        write_weights(name, {"m.weight": base + 0.01 * torch.randn(8, 8)})
    collect(1)
    Path("plan.yaml").write_text(PLAN)
    return tmp_path / "work"


def run_plan(capsys):
    assert main(["merge", "plan.yaml", "--quiet"]) == 0
    return capsys.readouterr().out


def merged():
    return load_file("out.safetensors")["m.weight"]


def test_a_plan_sees_new_statistics(folder, capsys):
    """It said "up to date", and kept the merge by the old ones."""
    assert "merged" in run_plan(capsys)
    assert "up to date" in run_plan(capsys)
    first = merged()
    collect(2)
    assert ": merged" in run_plan(capsys)
    expected = merge(Fisher(STATISTICS), EXPERTS, progress=False)["m.weight"]
    assert torch.equal(merged(), expected) and not torch.equal(first, expected)
    # the same content again is the same plan, whenever it was written
    collect(2)
    assert "up to date" in run_plan(capsys)


def test_a_plan_makes_an_output_again_that_is_not_what_it_made(
    folder, capsys, caplog
):
    """It said "up to date" of an output with another bit in it."""
    run_plan(capsys)
    path, first = Path("out.safetensors"), merged().clone()
    content = bytearray(path.read_bytes())
    content[-1] ^= 16
    path.write_bytes(content)
    assert not torch.equal(merged(), first)
    caplog.clear()
    assert main(["merge", "plan.yaml", "--dry-run"]) == 0
    assert "[to be merged]" in capsys.readouterr().out
    assert "out.safetensors: its content has the hash blake3:" in caplog.text
    assert ": merged" in run_plan(capsys)
    assert torch.equal(merged(), first)
    assert "up to date" in run_plan(capsys)
    # what is not of the tensors does not count: an export tells it otherwise
    with open_weights(path) as weights:
        told = {**weights.metadata, "format": "pt"}
        write_weights("other.safetensors", weights, told)
    os.replace("other.safetensors", path)
    assert "up to date" in run_plan(capsys)


def test_statistics_are_on_record(folder, capsys):
    run_plan(capsys)
    record = provenance("out.safetensors")
    assert record["files"] == [
        {"path": name, "digest": digest(name)} for name in STATISTICS
    ]
    assert main(["inspect", "--verify", "out.safetensors"]) == 0
    assert capsys.readouterr().out.count("as recorded") == 4
    known = digest(STATISTICS[0])
    collect(2)
    assert main(["inspect", "--verify", "out.safetensors"]) != 0
    told = capsys.readouterr()
    assert known in told.err and digest(STATISTICS[0]) in told.err
    assert told.out.count("changed") == 2
    line = ["again", "out.safetensors", "-o", "copy.safetensors", "--quiet"]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert f"{STATISTICS[0]} is not what was merged" in told and known in told
    assert not Path("copy.safetensors").exists()


def test_a_merge_is_made_again_with_statistics_that_were_moved(folder, capsys):
    run_plan(capsys)
    Path("elsewhere").mkdir()
    for name in STATISTICS:
        shutil.move(name, "elsewhere")
    line = ["again", "out.safetensors", "-o", "copy.safetensors", "--quiet"]
    assert main(line) == 2
    assert f"--source '{STATISTICS[0]}=PATH'" in capsys.readouterr().err
    for name in STATISTICS:
        line += ["--source", f"{name}=elsewhere/{name}"]
    assert main(line) == 0
    assert digest("copy.safetensors") == digest("out.safetensors")


def test_records_of_earlier_versions_are_read(folder, capsys):
    """They say nothing of the files of a method."""
    merge(Fisher(STATISTICS), EXPERTS, output="new.safetensors", progress=False)
    with open_weights("new.safetensors") as weights:
        record = json.loads(weights.metadata["merge"])
    del record["files"]
    notes = {"merge": json.dumps(record)}
    write_weights("old.safetensors", load_file("new.safetensors"), notes)
    assert main(["inspect", "--verify", "old.safetensors"]) == 0
    line = ["again", "old.safetensors", "-o", "copy.safetensors", "--quiet"]
    assert main(line) == 0
    assert digest("copy.safetensors") == digest("old.safetensors")


@pytest.mark.parametrize("place", ["", "./"])
def test_a_merge_stage_sees_new_statistics(folder, place):
    """A path without a folder was a word like any other."""

    def job():
        method = Fisher([place + name for name in STATISTICS])
        stage = MergeStage(method, EXPERTS, name="out", search=GreedySearch())
        return resolve(stage, folder / "results")

    first = job()
    known = first.journal().key_of([*first.members])
    assert job().fingerprint == first.fingerprint
    collect(2)
    second = job()
    assert second.fingerprint != first.fingerprint
    assert second.journal().key_of([*second.members]) != known


def test_maps_and_methods_in_methods_have_files(folder):
    whole = MAPS / "whisper.yaml"
    shutil.copy(whole, "own.yaml")
    method = OptimalTransport(
        architecture="own.yaml", method=Fisher(STATISTICS)
    )
    assert list(method.files()) == [*STATISTICS, "own.yaml"]
    before = method.files()["own.yaml"]
    Path("own.yaml").write_text(whole.read_text() + "# another\n")
    assert method.files()["own.yaml"] != before
    Path("average").write_text("a file that has the name of a word")
    assert LayerScaled("task_arithmetic", first=0, last=1).files() == {}
