"""Whatever a crash leaves of a pool, a merge or an export, work goes on.

Every operation on a file is recorded, and every tree that a crash may leave is
made (`crash_states.py`). From each the work is begun again, and comes to the
undisturbed result. Of the states of a training, a search and a study, which take
long, a seeded sample is tried, or all with LONG_TESTS=1 in the environment.
"""

import contextlib
import json
import os
import random
import shutil

import pytest
import torch
from counted_scorings import ask, trained
from crash_states import recorded, states, write_tree
from kill_harness import StandingClock, contents, differences
from killed_stages import build, study_yaml
from safetensors.torch import load_file
from tiny_models import inference_yaml
from tiny_recipe import tiny_network

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge import engine
from speechbrain_merge.engine import merge
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.pool import CheckpointPool, verify_pool
from speechbrain_merge.pool.half_written import pass_over_remains
from speechbrain_merge.pool.merges import (
    Member,
    MergeRecord,
    read_merges,
    remember,
)
from speechbrain_merge.records.ownership import describe_files, read_mark
from speechbrain_merge.study import Study
from speechbrain_merge.weights import open_weights, write_weights


def sample(recorder, number):
    """Some of the states, seeded, or all of them with LONG_TESTS=1."""
    every = list(states(recorder))
    if os.environ.get("LONG_TESTS"):
        return every
    return random.Random(0).sample(every, number)


def test_a_merge(tmp_path):
    experts = [{"w": torch.full((4,), value)} for value in (1.0, 3.0)]
    root = tmp_path / "root"
    output = root / "merged.safetensors"

    def run(folder=root):
        merge(
            "average",
            experts,
            output=folder / output.name,
            progress=False,
        )

    # no merge replaces what no merge has made
    merge("average", [{"w": torch.zeros(4)}], output=output, progress=False)
    with recorded(root) as recorder:
        run()
    number = 0
    for number, (_, tree) in enumerate(states(recorder), start=1):
        folder = tmp_path / str(number)
        write_tree(tree, folder)
        found = load_file(folder / output.name)["w"].unique().tolist()
        assert found in ([0.0], [2.0])
        run(folder)
        assert load_file(folder / output.name)["w"].unique().tolist() == [2.0]
        assert [path.name for path in folder.iterdir()] == [output.name]
    assert number > 8


@pytest.mark.parametrize("before", [False, True])
def test_an_export(tmp_path, before):
    hparams = tmp_path / "inference.yaml"
    hparams.write_text(inference_yaml({"model.weight": torch.ones(3)}))
    root = tmp_path / "root"
    root.mkdir()

    def run(value, folder=root):
        source = {"model.weight": torch.full((3,), float(value))}
        export_pretrained(
            source, hparams, folder / "model", texts={"README.md": "card"}
        )

    def value_of(folder):
        """What a folder holds; it has to be whole."""
        assert read_mark(folder) == describe_files(folder)
        assert {"README.md", "merge.json", "model.ckpt"} <= {
            path.name for path in folder.iterdir()
        }
        with open_weights(folder / "model.ckpt") as weights:
            return weights["weight"].unique().item()

    if before:
        run(1)
    with recorded(root) as recorder:
        run(2)
    number = 0
    for number, (_, tree) in enumerate(states(recorder), start=1):
        folder = tmp_path / str(number)
        write_tree(tree, folder)
        if before or (folder / "model").exists():
            assert value_of(folder / "model") in ((1, 2) if before else (2,))
        run(3, folder)
        assert value_of(folder / "model") == 3
        assert [path.name for path in folder.iterdir()] == ["model"]
        shutil.rmtree(folder)
    assert number > 20


def test_remembered_merges(tmp_path):
    root = tmp_path / "root"
    root.mkdir()

    def record(name):
        members = (Member("a/1", "a", "0" * 64),)
        return MergeRecord(name, {"name": "average"}, members)

    remember(root, record("first"))
    with recorded(root) as recorder:
        remember(root, record("second"))
    for number, (_, tree) in enumerate(states(recorder)):
        folder = tmp_path / str(number)
        write_tree(tree, folder)
        assert "first" in [each.name for each in read_merges(folder)]
        remember(folder, record("second"))
        names = [each.name for each in read_merges(folder)]
        assert names == ["first", "second"]
    assert number > 1


EPOCHS = 3


def train(folder):
    """One training: begins, or goes on from the last whole checkpoint."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    counter = EpochCounter(limit=EPOCHS)
    pool = CheckpointPool(
        folder / "pool", {"model": model}, keep_last=2, epoch_counter=counter
    )
    recoverables = {"model": model, "pool": pool, "counter": counter}
    saver = Checkpointer(folder / "save", recoverables)

    class Brain:
        checkpointer = saver
        optimizer_step = None

    pool.begin(Brain())
    pool._brain = None
    pass_over_remains(saver)
    saver.recover_if_possible()
    for epoch in counter:
        torch.nn.init.constant_(model.weight, float(epoch))
        saver.save_and_keep_only(meta={"WER": float(-epoch)})
    return pool


def test_collecting(tmp_path):
    root = tmp_path / "root"
    (root / "pool").mkdir(parents=True)
    (root / "save").mkdir()
    saves = []

    def keep_checkpoints():
        # SpeechBrain's own files are as they are at the time
        copy = tmp_path / "saves" / str(len(saves))
        shutil.copytree(root / "save", copy)
        saves.append(copy)

    keep_checkpoints()
    with recorded(root / "pool") as recorder:
        recorder.after.append(keep_checkpoints)
        train(root)
    expected = {
        path.name: load_file(path)
        for path in (root / "pool" / "run").glob("*.safetensors")
    }
    assert len(expected) == 3  # the base, and the last two epochs
    assert len(list(states(recorder))) > 80
    for number, tree in sample(recorder, 25):
        shutil.rmtree(root)
        write_tree(tree, root / "pool")
        shutil.copytree(saves[number], root / "save")
        pool = train(root)
        names = [(each.run, each.epoch) for each in pool.candidates()]
        assert names == [("run", 2), ("run", 3)], number
        assert [each.fault for each in verify_pool(root / "pool")] == [""] * 3
        left = {path.name for path in (root / "pool" / "run").iterdir()}
        left -= {"manifest.jsonl", ".lock", ".first-save.json", "quarantine"}
        values = [each.path.name for each in pool.candidates()] + [
            "base.safetensors"
        ]
        assert left == set(values), number
        for name, tensors in expected.items():
            for key, tensor in tensors.items():
                again = _same_epoch(pool, name)
                assert torch.equal(load_file(again)[key], tensor)


def _same_epoch(pool, name):
    """The file of the same epoch, whatever number its name has."""
    if name.startswith("base"):
        return pool.candidates()[0].base
    epoch = int(name[len("epoch-") :][:4])
    [found] = [each for each in pool.candidates() if each.epoch == epoch]
    return found.path


def test_a_search(tmp_path):
    """No scored trial is lost, and none is counted that was not scored."""
    results = tmp_path / "results"
    brain = trained(results)
    (results / "merge").mkdir()
    pool = (results / "pool").rename(tmp_path / "pool as it was")
    shutil.copytree(pool, results / "pool")
    with recorded(results / "merge") as recorder:
        first, scored = ask(brain)
    merged = load_file(first.path)
    trials = results / "merge/trials.jsonl"
    assert scored == len(trials.read_text().splitlines()) > 3
    left = {path.name for path in first.path.parent.iterdir()}
    for _, tree in sample(recorder, 12):
        shutil.rmtree(results / "merge")
        shutil.rmtree(results / "pool")
        write_tree(tree, results / "merge")
        shutil.copytree(pool, results / "pool")
        known = len(whole_lines(tree.get("trials.jsonl") or b""))
        again, scored_again = ask(brain)
        if not again.reused:
            assert scored_again == scored - known
        assert (again.selected, again.value) == (first.selected, first.value)
        for name, tensor in load_file(again.path).items():
            assert torch.equal(tensor, merged[name])
        assert {path.name for path in again.path.parent.iterdir()} == left
        assert len(whole_lines(trials.read_bytes())) == scored
        assert len(read_merges(results / "pool")) == 1


def whole_lines(content):
    """Lines of a log that are whole, with their end or without."""
    found = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def test_a_study(tmp_path, monkeypatch):
    """Records, scores, tables, pictures and results come to the same files."""
    monkeypatch.setattr(engine, "datetime", StandingClock)
    root = tmp_path / "root"
    root.mkdir()
    study_yaml(tmp_path)
    for seed, name in enumerate("ab"):
        tensors = tiny_network(seed).state_dict()
        write_weights(
            tmp_path / f"{name}.safetensors",
            {f"model.{key}": tensor for key, tensor in tensors.items()},
        )

    def run():
        monkeypatch.chdir(tmp_path)
        Study(
            "root",
            {
                "a": {"load": "a.safetensors"},
                "b": {"load": "b.safetensors"},
                "average": {
                    "merge": "average",
                    "of": ["a", "b"],
                    "same_base": False,
                },
            },
            {"expert": {"hparams": "train.yaml"}},
            domains=["a", "b"],
            compare=[["a", "average"]],
        ).run(build, {})

    with recorded(root) as recorder:
        run()
    expected = contents(root)
    assert {"results.json", "results.md"} <= set(expected)
    for number, tree in sample(recorder, 6):
        shutil.rmtree(root)
        write_tree(tree, root)
        run()
        found = list(differences(contents(root), expected))
        assert not found, (number, found)
