"""Files and links that someone put into a pool are kept, and not followed.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
from sandbox import run_in_sandbox

ATTACK = """\
import json, os, shutil, sys
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.pool import CheckpointPool

folder, what = Path(sys.argv[1]), sys.argv[2]
pool, outside = folder / "pool", folder / "outside"
outside.mkdir()
(outside / "epoch-0001.safetensors").write_text("someone's")
run = pool / "seed-1"


def train(epochs):
    model = torch.nn.Linear(2, 2)
    collected = CheckpointPool(
        pool, {"model": model}, run="seed-1", keep_last=1
    )
    checkpointer = Checkpointer(
        folder / "save", {"model": model, "pool": collected}
    )
    checkpointer.recover_if_possible()
    for epoch in epochs:
        torch.nn.init.constant_(model.weight, epoch)
        checkpointer.save_and_keep_only(meta={"WER": 9.0, "epoch": epoch})
    return [each.name for each in collected.candidates()]


def name_another(file):
    path = run / "manifest.jsonl"
    line = {**json.loads(path.read_text()), "file": file}
    del line["check"]  # whoever changes a line can compute it as well
    path.write_text(json.dumps(line) + "\\n")


train([1])
candidate = run / "epoch-0001.safetensors"
if what == "another name":
    (run / "thesis.safetensors").write_text("someone's")
    name_another("thesis.safetensors")
elif what == "another content":
    candidate.write_text("someone's")
elif what == "a folder":
    candidate.unlink()
    candidate.mkdir()
    (candidate / "thesis").write_text("someone's")
elif what == "linked quarantine":
    (run / "quarantine").symlink_to(outside)
    (run / "epoch-0009.safetensors").write_text("someone's")
elif what == "linked run":
    shutil.rmtree(run)
    run.symlink_to(outside)
elif what == "linked manifest":
    (outside / "profile").write_text("")
    (run / "manifest.jsonl").unlink()
    candidate.unlink()
    (run / "manifest.jsonl").symlink_to(outside / "profile")
try:
    print(train([2, 3]))
except FileExistsError as error:
    print(error)
there = {
    each.relative_to(folder).as_posix()
    for each in folder.rglob("*")
    if each.is_file() and not each.is_symlink()
    and each.read_bytes()[:9] == b"someone's"
}
print(sorted(there - {"pool/seed-1/quarantine/epoch-0001.safetensors"}))
print(sorted(each.name for each in outside.iterdir()))
print((outside / "profile").read_text() if what == "linked manifest" else "")
"""

ELSEWHERE = "outside/epoch-0001.safetensors"


@pytest.mark.parametrize(
    "what, kept",
    [
        ("another name", "pool/seed-1/thesis.safetensors"),
        ("another content", "pool/seed-1/epoch-0001.safetensors"),
        ("a folder", "pool/seed-1/epoch-0001.safetensors/thesis"),
        ("linked quarantine", "pool/seed-1/epoch-0009.safetensors"),
    ],
)
def test_what_a_pool_did_not_write_is_not_deleted(tmp_path, what, kept):
    done, there, outside, _ = run_in_sandbox(ATTACK, tmp_path, what).split(
        "\n"
    )[:4]
    assert done == "['seed-1/epoch-0003']"
    assert there == str([ELSEWHERE, kept])
    assert outside == "['epoch-0001.safetensors']"


def test_a_run_that_is_a_link_is_not_written(tmp_path):
    done, there, outside, _ = run_in_sandbox(
        ATTACK, tmp_path, "linked run"
    ).split("\n")[:4]
    assert done == "['seed-1-2/epoch-0003']"
    assert there == str([ELSEWHERE])
    assert outside == "['epoch-0001.safetensors']"


def test_a_manifest_that_is_a_link_is_not_added_to(tmp_path):
    done, _, _, profile = run_in_sandbox(
        ATTACK, tmp_path, "linked manifest"
    ).split("\n")[:4]
    assert "manifest.jsonl is a link" in done
    assert profile == ""
