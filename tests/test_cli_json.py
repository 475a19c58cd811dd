"""Results on the standard output, as JSON where asked; the rest on the other."""

import json
from pathlib import Path

import pytest
import torch
from filled_pool import saver_of, train_a_little

from speechbrain_merge.cli import main
from speechbrain_merge.methods import available
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.weights import open_weights


@pytest.fixture
def found(capsys):
    """Runs a command; gives its document, which is all that it prints."""

    def run(*arguments, status=0):
        assert main([*map(str, arguments), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool with three candidates, and the base that they started from."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, run="seed-1")
    pool.store_base(resuming=False)
    saver = saver_of(tmp_path, model, pool)
    for epoch, wer in enumerate((9.0, 7.5, 8.0), start=1):
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"epoch": epoch, "WER": wer})
    return tmp_path / "pool"


def test_each_command_has_one_document(pool, found, tmp_path):
    experts = [each.path for each in read_pool(pool)]
    done = found("merge", "average", pool, "-o", "m.safetensors")
    (stage,) = done["stages"]
    assert stage == {
        "stage": "m.safetensors",
        "state": "merged",
        "output": "m.safetensors",
    }
    arguments = ("merge", "average", pool, "-o", "m.safetensors", "--dry-run")
    (stage,) = found(*arguments)["stages"]
    assert stage["state"] == "up to date" and len(stage["experts"]) == 3
    copy = found("again", "m.safetensors", "-o", "copy.safetensors")
    assert Path("copy.safetensors").read_bytes() == (
        Path("m.safetensors").read_bytes()
    )
    assert copy["output"] == "copy.safetensors" and len(copy["sha256"]) == 64
    inside = found("inspect", "m.safetensors")
    assert sum(inside["types"].values()) == 6
    assert inside["merged"]["method"] == "average"
    (row, whole) = found("compare", experts[0], experts[1])["parts"]
    assert whole["part"] == "all" and whole["entries"] == row["entries"] == 6
    assert found("inspect", "--verify", pool)["faults"] == []
    lineage = found("inspect", "--verify", "m.safetensors")["lineage"]
    assert [row["depth"] for row in lineage] == [0, 1, 1, 1]
    assert "smact" in found("fragments")["fragments"]
    assert "method:" in found("fragments", "smact")["texts"]["smact"]
    (file,) = found("fragments", "smact", "-o", "hparams")["files"]
    assert file.endswith("smact.yaml") and (tmp_path / file).is_file()


def test_what_methods_need(found, capsys):
    listed = found("methods")["methods"]
    assert [each["name"] for each in listed] == available()
    by_name = {each["name"]: each for each in listed}
    assert by_name["ties"]["needs_base"] and not by_name["ties"]["statistics"]
    assert by_name["ties"]["parameters"]["density"] == {"default": 0.2}
    assert by_name["fisher"]["statistics"] == "fisher"
    assert by_name["slerp"]["maximum_experts"] == 2
    assert by_name["layer_scaled"]["parameters"]["method"]["required"]
    assert "2306.01708" in found("methods", "ties")["paper"]
    assert main(["methods"]) == 0
    rows = capsys.readouterr().out.splitlines()
    (row,) = [row for row in rows if row.startswith("layer_scaled ")]
    assert "base, method" in row
    assert main(["methods", "monosoup"]) == 0
    assert "Needs: 1 expert, base\n" in capsys.readouterr().out


def test_a_pool_shows_its_candidates(pool, found, capsys):
    shown = found("inspect", pool)
    expected = read_pool(pool)
    assert [each["name"] for each in shown["candidates"]] == [
        each.name for each in expected
    ]
    assert [each["score"] for each in shown["candidates"]] == [9.0, 7.5, 8.0]
    for each, candidate in zip(shown["candidates"], expected):
        assert each["bytes"] == candidate.path.stat().st_size
        assert each["base_digest"] == candidate.base_digest
        assert each["epoch"] == candidate.epoch
    capsys.readouterr()
    assert main(["inspect", str(pool)]) == 0
    out = capsys.readouterr().out
    assert "candidate" in out and "WER" in out and "7.50" in out
    assert "3 candidates, " in out


def test_a_run_that_kept_no_pool_shows_its_checkpoints(pool, found):
    shown = found("inspect", pool.parent / "save")
    assert [each["score"] for each in shown["candidates"]] == [9.0, 7.5, 8.0]
    assert all(each["bytes"] > 0 for each in shown["candidates"])


def test_the_base_is_the_pools(pool, found):
    done = found("merge", "ties", pool, "-o", "m.safetensors", "--dry-run")
    base = read_pool(pool)[0].base
    assert done["stages"][0]["base"] == str(base)
    for arguments in ((), ("--base", base)):
        output = f"{len(arguments)}.safetensors"
        found("merge", "ties", pool, "-o", output, *arguments)
    with (
        open_weights("0.safetensors") as one,
        open_weights("2.safetensors") as other,
    ):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_changed_is_in_the_document_and_on_the_other_output(
    pool, found, capsys
):
    path = read_pool(pool)[1].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    document = found("inspect", "--verify", pool, status=2)
    assert len(document["faults"]) == 1
    assert main(["inspect", "--verify", str(pool)]) == 2
    printed = capsys.readouterr()
    assert "changed" in printed.out
    assert printed.err.startswith("speechbrain-merge inspect: ")
    assert len(printed.err.splitlines()) == 1


def test_an_error_leaves_no_document(pool, capsys):
    assert main(["inspect", "none.pt", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "none.pt does not exist" in printed.err
