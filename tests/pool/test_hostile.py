"""Pools whose files someone else wrote, or that were damaged since."""

import json
import os
import shutil
import time

import pytest
import torch
from filled_pool import collect, files, names, records, resume, train_a_little
from safetensors.torch import load_file, save_file
from sandbox import run_in_sandbox

from speechbrain_merge.pool import read_merges, read_pool

ATTACK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from filled_pool import collect, resume, train_a_little

def attack(folder, kind, name):
    victims = folder / "victims"
    victims.mkdir(parents=True)
    for file in ("weights.safetensors", "thesis.tex", "epoch-0001.safetensors"):
        (victims / file).write_text("precious")
    before = {each: each.read_text() for each in victims.iterdir()}
    _, saver, model = collect(folder, [{"WER": 2.0}] * 2, keep_last=3)
    name = name.format(victims=victims)
    if kind == "manifest":
        path = folder / "pool" / "run" / "manifest.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["file"] = name
        del lines[0]["check"]  # whoever changes a line can compute it
        path.write_text("".join(json.dumps(line) + "\\n" for line in lines))
    else:
        for checkpoint in saver.list_checkpoints():
            path = checkpoint.paramfiles["pool"]
            content = {**json.loads(path.read_text()), "run": name}
            del content["check"]
            path.write_text(json.dumps(content))
    try:
        pool, saver = resume(folder, torch.nn.Linear(2, 2), keep_last=1)
        for epoch in (3, 4, 5):
            train_a_little(saver.recoverables["model"], float(epoch))
            saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
        print("went on")
    except ValueError as error:
        print(error)
    assert {each: each.read_text() for each in victims.iterdir()} == before

for number, name in enumerate(sys.argv[4:]):
    attack(Path(sys.argv[1]) / str(number), sys.argv[3], name)
"""


def test_a_manifest_cannot_have_other_files_deleted(tmp_path):
    names = [
        "{victims}/weights.safetensors",
        "../../victims/weights.safetensors",
        "../../victims/thesis.tex",
        "..",
        "",
    ]
    output = run_in_sandbox(ATTACK, tmp_path, _tests(), "manifest", *names)
    said = output.splitlines()
    assert len(said) == len(names)
    for line in said:
        assert "manifest.jsonl, line 1, key 'file'" in line


def test_a_checkpoint_cannot_move_the_pool(tmp_path):
    runs = ["../../victims", "/{victims}", "..", "a/b"]
    output = run_in_sandbox(ATTACK, tmp_path, _tests(), "pointer", *runs)
    said = output.splitlines()
    assert len(said) == len(runs)
    for line in said:
        assert "pool.ckpt, key 'run'" in line


def _tests():
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_a_manifest_cannot_have_other_files_read(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 2.0}])
    secret = tmp_path / "secret.safetensors"
    shutil.copy(pool.candidates()[0].path, secret)
    manifest = tmp_path / "pool" / "run" / "manifest.jsonl"
    line = {**records(manifest.parent)[0], "file": str(secret)}
    manifest.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="line 1, key 'file'"):
        read_pool(tmp_path / "pool")


def go_on(folder, **arguments):
    """Resumes the training of `collect` for one more epoch."""
    pool, saver = resume(folder, torch.nn.Linear(2, 2), **arguments)
    train_a_little(saver.recoverables["model"], 9.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 9})
    return pool


@pytest.mark.parametrize(
    "damage", ["deleted", "empty", "cut", "newline", "first line lost"]
)
def test_a_lost_manifest_costs_no_candidate(tmp_path, damage, caplog):
    pool, _, _ = collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}, {"WER": 1.0}])
    before = names(pool)
    path = tmp_path / "pool" / "run" / "manifest.jsonl"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[:-30])
    elif damage == "newline":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[content.index(b"\n") + 1 :])
    pool = go_on(tmp_path)
    assert sorted(names(pool)) == [*before, "run/epoch-0009"]
    assert {each.epoch: each.score for each in pool.candidates()} == {
        1: 3.0,
        2: 2.0,
        3: 1.0,
        9: 1.0,
    }
    if damage == "deleted":  # in the order as collected, too
        assert names(pool) == [*before, "run/epoch-0009"]
        assert "epoch-0003.safetensors: recovered" in caplog.text


def test_another_training_leaves_a_lost_manifest_alone(tmp_path):
    collect(tmp_path / "one", [{"WER": 3.0}] * 2)
    (tmp_path / "one" / "pool" / "run" / "manifest.jsonl").unlink()
    shutil.copytree(tmp_path / "one" / "pool", tmp_path / "two" / "pool")
    pool, _, _ = collect(tmp_path / "two", [{"WER": 2.0}])
    assert names(pool) == ["run-2/epoch-0001"]
    assert len(files(tmp_path / "two" / "pool" / "run")) == 2


@pytest.mark.parametrize("kind", ["other run", "no record", "damaged", "link"])
def test_a_file_copied_in_by_hand_is_put_aside_and_kept(tmp_path, kind, caplog):
    collect(tmp_path, [{"WER": 3.0}])
    run = tmp_path / "pool" / "run"
    mine = run / "epoch-0009.safetensors"
    if kind == "other run":
        other, _, _ = collect(tmp_path / "other", [{"WER": 1.0}], run="other")
        shutil.copy(other.candidates()[0].path, mine)
    elif kind == "no record":
        save_file({"weight": torch.ones(3)}, mine)
    elif kind == "damaged":
        content = bytearray((run / "epoch-0001.safetensors").read_bytes())
        content[-1] ^= 1
        mine.write_bytes(content.replace(b"epoch-0001", b"epoch-0009"))
    else:
        (tmp_path / "elsewhere.safetensors").write_text("precious")
        mine.symlink_to(tmp_path / "elsewhere.safetensors")
    before = os.readlink(mine) if kind == "link" else mine.read_bytes()
    pool = go_on(tmp_path)
    kept = run / "quarantine" / "epoch-0009.safetensors"
    assert names(pool) == ["run/epoch-0001", "run/epoch-0009"]
    assert before == (
        os.readlink(kept) if kind == "link" else kept.read_bytes()
    )
    assert "epoch-0009.safetensors: moved to" in caplog.text


def test_other_names_are_a_persons_own(tmp_path):
    collect(tmp_path, [{"WER": 3.0}])
    run = tmp_path / "pool" / "run"
    own = {"my-model.safetensors", "notes.txt", "epoch-1.safetensors"}
    for name in own:
        (run / name).write_text("mine")
    go_on(tmp_path, keep_last=1)
    assert own <= {path.name for path in run.iterdir()}


def test_aliases_in_a_meta_do_not_hang(tmp_path):
    _, saver, _ = collect(tmp_path, [{"WER": 3.0}])
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, now in zip("abcdefgh", "bcdefghi")
    )
    path = saver.list_checkpoints()[0].path
    (path / "CKPT.yaml").write_text(bomb + "unixtime: 1.0\n")
    begun = time.process_time()
    with pytest.raises(ValueError, match="CKPT.yaml stands for more than"):
        read_pool(tmp_path / "save")
    assert time.process_time() - begun < 10


def test_a_read_only_pool_is_merged_and_not_written(tmp_path):
    code = """
import sys
from pathlib import Path
from speechbrain_merge.pool.merges import Member, MergeRecord, remember
from speechbrain_merge.pool import read_pool
pool = Path("/") / sys.argv[2]
[candidate] = read_pool(pool)
member = Member(candidate.name, candidate.run, candidate.digest)
remember(pool, MergeRecord("m", {"name": "average"}, (member,)))
print("done")
"""
    collect(tmp_path / "colleague", [{"WER": 3.0}])
    (tmp_path / "mine").mkdir()
    pool = str(tmp_path / "colleague" / "pool")
    assert "done" in run_in_sandbox(code, tmp_path / "mine", pool)
    assert read_merges(pool) == []


def test_half_a_line_of_merges_is_named(tmp_path):
    (tmp_path / "merges.jsonl").write_text('{"name": "m", "members": 3}\n')
    with pytest.raises(ValueError, match="merges.jsonl, line 1"):
        read_merges(tmp_path)


def test_a_candidate_keeps_what_its_file_holds(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 3.0}])
    (tmp_path / "pool" / "run" / "manifest.jsonl").unlink()
    go_on(tmp_path)
    [first, _] = pool.candidates()
    assert load_file(first.path)["model.weight"].unique().tolist() == [1.0]
    assert first.hyperparameters == {} and first.metric == "WER"
