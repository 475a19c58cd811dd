"""Whose a run of a pool is, and what its candidates started from."""

import gc
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from filled_pool import saver_of, take_checks, train_a_little
from safetensors.torch import load_file, save_file

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge.pool import (
    CheckpointPool,
    collection,
    read_pool,
    run_folder,
)
from speechbrain_merge.pool.manifest import Manifest, _let_go
from speechbrain_merge.pool.run_folder import RunFolder
from speechbrain_merge.pool.verification import verify_pool
from speechbrain_merge.weights import digest, open_weights


def model_of(seed):
    """Drawn anew in each start."""
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 2)


def start_of(seed):
    """The digest of the base that it starts from."""
    state = model_of(seed).state_dict()
    return digest({f"model.{name}": each for name, each in state.items()})


def train(folder, pool, seed, epochs, value=0.0, **settings):
    """A start of a training by a Brain, which goes on where it can."""
    model = model_of(seed)
    pool = CheckpointPool(pool, {"model": model}, **settings)
    saver = saver_of(folder, model, pool, counter=EpochCounter(9))
    pool.begin(SimpleNamespace(checkpointer=saver, optimizer_step=None))
    saver.recover_if_possible()
    for epoch in epochs:
        train_a_little(model, epoch + value)
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
        pool.saved()
    return pool


def ended():
    """As the end of a process does, locks are given back."""
    gc.collect()
    _let_go()


def found(pool):
    """Digests of the candidates, and of their bases, by name."""
    if not list(pool.glob("*/manifest.jsonl")):
        return {}
    return {
        each.name: (each.digest, each.base_digest) for each in read_pool(pool)
    }


def test_two_copies_that_go_on_into_another_pool(tmp_path):
    """Each had its pool in its results; the second took those of the first."""
    one, two, shared = (tmp_path / name for name in ("one", "two", "shared"))
    train(one, one / "pool", 1, [1, 2])
    ended()
    shutil.copytree(one, two)
    train(one, shared, 1, [3, 4])
    ended()
    before = found(shared)
    train(two, shared, 1, [3, 4], value=0.5)
    after = found(shared)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "run-2/epoch-0003",
        "run-2/epoch-0004",
    }
    ended()
    train(one, shared, 1, [5])
    assert set(found(shared)) - set(after) == {"run/epoch-0005"}


def test_a_copy_with_its_pool_is_what_it_was(tmp_path):
    """Also where it goes back to a checkpoint before its last candidate."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, one / "pool", 1, [1, 2, 3])
    ended()
    shutil.copytree(one, two)
    newest = sorted((two / "save").iterdir())[-1]
    shutil.rmtree(newest)
    train(two, two / "pool", 1, [3, 4], value=0.5)
    assert list(found(two / "pool")) == [
        "run/epoch-0001",
        "run/epoch-0002",
        "run/epoch-0003-2",
        "run/epoch-0004",
    ]


OTHER = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge.pool import CheckpointPool
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(seed)
model = torch.nn.Linear(2, 2)
pool = CheckpointPool(folder / "pool", {"model": model})
saver = Checkpointer(folder / "other", {"model": model, "pool": pool})
pool.begin(SimpleNamespace(checkpointer=saver, optimizer_step=None))
print("begun", flush=True)
input()
saver.save_checkpoint(meta={"epoch": 1})
"""


def test_a_run_that_another_process_has_begun_is_left_alone(tmp_path):
    """Its base went when a training beside it was resumed."""
    pool = tmp_path / "pool"
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "begun\n"
    train(tmp_path / "own", pool, 2, [1])
    ended()
    train(tmp_path / "own", pool, 2, [2])
    with pytest.raises(BlockingIOError, match="written by another process"):
        Manifest(pool / "run").append({"event": "base removed"})
    other.communicate("\n")
    assert other.returncode == 0
    bases = {name: base for name, (_, base) in found(pool).items()}
    assert bases == {
        "run/epoch-0001": start_of(1),
        "run-2/epoch-0001": start_of(2),
        "run-2/epoch-0002": start_of(2),
    }


def test_a_run_beside_without_a_base_is_given_none(tmp_path):
    """It got that of a training whose run has another name."""
    pool = tmp_path / "pool"
    train(tmp_path / "one", pool, 1, [1], base=False)
    ended()
    for epoch in (1, 2):
        train(tmp_path / "two", pool, 2, [epoch])
        ended()
    bases = {name: base for name, (_, base) in found(pool).items()}
    assert bases.pop("run/epoch-0001") is None
    assert set(bases.values()) == {start_of(2)} and len(bases) == 2
    assert not (pool / "run" / "base.safetensors").exists()


def test_a_pool_is_added_where_another_start_has_left_its_base(
    tmp_path, caplog
):
    """It was taken for the base of the training that went on."""
    pool = tmp_path / "pool"
    train(tmp_path / "one", pool, 1, [])  # killed in its first epoch
    ended()
    model = model_of(2)
    modules = {"model": model, "counter": EpochCounter(9)}
    saver = Checkpointer(tmp_path / "two" / "save", modules)
    saver.save_checkpoint(meta={"epoch": 1})
    train(tmp_path / "two", pool, 2, [2])
    assert found(pool)["run/epoch-0002"][1] == start_of(2)
    assert "was saved without this pool" in caplog.text
    ended()
    # what is drawn anew is no base of one that has begun
    train(tmp_path / "two", pool, 3, [3])
    assert found(pool)["run/epoch-0003"][1] == start_of(2)


def test_a_renamed_training_does_not_take_the_base_of_another_start(tmp_path):
    pool = tmp_path / "pool"
    train(tmp_path / "one", pool, 1, [1], run="a", base=False)
    ended()
    train(tmp_path / "two", pool, 2, [], run="b")  # killed in its first epoch
    ended()
    train(tmp_path / "one", pool, 1, [2], run="b", base=False)
    assert found(pool)["b/epoch-0002"][1] is None


@pytest.mark.parametrize("name", [None, "best"])
def test_two_seeds_in_one_process_and_an_emptied_folder(tmp_path, name):
    """The second took the first, which had ended, for itself when killed."""

    def train_plain(seed):
        model = model_of(seed)
        pool = CheckpointPool(tmp_path / "pool", {"model": model})
        pool.store_base(resuming=False)
        saver = saver_of(tmp_path, model, pool)
        train_a_little(model, float(seed))
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": 1}, name=name)

    train_plain(1)
    before = found(tmp_path / "pool")
    shutil.rmtree(tmp_path / "save")
    train_plain(2)
    after = found(tmp_path / "pool")
    assert after.pop("run-2/epoch-0001")[1] == start_of(2)
    assert after == before and before["run/epoch-0001"][1] == start_of(1)


def test_one_pool_object_for_two_trainings(tmp_path):
    """As in a notebook: the second was taken for the first, going on."""
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, keep_last=2)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        model.reset_parameters()
        saver = saver_of(tmp_path / str(seed), model, pool)
        pool.begin(SimpleNamespace(checkpointer=saver, optimizer_step=None))
        last = saver.recover_if_possible()
        first = last.meta["epoch"] + 1 if last else 1
        for epoch in (first, first + 1):
            train_a_little(model, 10.0 * seed + epoch)
            saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
            pool.saved()
    bases = {name: base for name, (_, base) in found(pool.folder).items()}
    assert bases == {
        "run/epoch-0003": start_of(1),
        "run/epoch-0004": start_of(1),
        "run-2/epoch-0001": start_of(2),
        "run-2/epoch-0002": start_of(2),
    }


@pytest.mark.parametrize("epochs", [[], [1]])
def test_a_base_whose_file_is_gone_is_stored_again(tmp_path, epochs):
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, epochs)
    ended()
    (pool / "run" / "base.safetensors").unlink()
    train(tmp_path, pool, 1, [2])
    (base,) = {each.base for each in read_pool(pool)}
    assert base.is_file() and found(pool)["run/epoch-0002"][1] == start_of(1)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_was_lost_whole(tmp_path, seed, caplog):
    """With the weights that it started from again it has its base."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1])
    ended()
    shutil.rmtree(pool / "run")
    train(tmp_path, pool, seed, [])
    assert ("base is lost" in caplog.text) == (seed == 2)  # before it trains
    ended()
    train(tmp_path, pool, seed, [2])
    base = found(pool)["run/epoch-0002"][1]
    assert base == (start_of(1) if seed == 1 else None)


def test_a_candidate_has_no_other_base_than_it_names(tmp_path):
    """Also where the base of its run was replaced in some way."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1])
    folder = pool / "run"
    manifest = folder / "manifest.jsonl"
    base, candidate = Manifest(folder).records()
    assert candidate["base"] == base["digest"]
    lines = [{**base, "digest": "0" * 64}, candidate]
    manifest.write_text("".join(json.dumps(each) + "\n" for each in lines))
    (one,) = read_pool(pool)
    assert one.base is None and one.base_digest is None
    # candidates of earlier versions name none, and have that of their run
    del candidate["base"]
    lines = [base, candidate]
    manifest.write_text("".join(json.dumps(each) + "\n" for each in lines))
    (one,) = read_pool(pool)
    assert one.base_digest == base["digest"]


def test_no_base_is_stored_after_training(tmp_path, caplog):
    """It would be the trained weights."""
    pool = train(tmp_path, tmp_path / "pool", 1, [1], base=False)
    pool.base = True
    pool.store_base()
    assert "its training began without one" in caplog.text
    assert not (tmp_path / "pool" / "run" / "base.safetensors").exists()


@pytest.mark.parametrize("bounds", [{}, {"keep_last": 2}])
@pytest.mark.parametrize("kind", ["plain", "begun without it"])
def test_one_pool_object_for_two_folders_of_checkpoints(tmp_path, kind, bounds):
    """The second training was collected as the first, which lost candidates."""
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, **bounds)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.reset_parameters()
        counter = EpochCounter(9)
        if kind != "plain":
            modules = {"model": model, "counter": counter}
            before = Checkpointer(tmp_path / str(seed) / "save", modules)
            before.save_checkpoint(meta={"epoch": 0})
        saver = saver_of(tmp_path / str(seed), model, pool, counter=counter)
        if kind == "plain":
            pool.store_base(resuming=False)
        else:
            brain = SimpleNamespace(checkpointer=saver, optimizer_step=None)
            pool.begin(brain)
        saver.recover_if_possible()
        for epoch in (1, 2):
            train_a_little(model, 10.0 * seed + epoch)
            saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    bases = {name: base for name, (_, base) in found(pool.folder).items()}
    assert bases == {
        f"{run}/epoch-000{epoch}": start_of(seed)
        for run, seed in (("run", 1), ("run-2", 2))
        for epoch in (1, 2)
    }
    # and each goes on as itself
    saver = saver_of(tmp_path / "1", model, pool, counter=EpochCounter(9))
    saver.recover_if_possible()
    train_a_little(model, 13.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 3})
    assert found(pool.folder)["run/epoch-0003"][1] == start_of(1)
    assert found(pool.folder)["run-2/epoch-0002"][1] == start_of(2)


def test_interrupted_before_its_first_save_and_begun_with_other_weights(
    tmp_path,
):
    """With the same pool object, the base was that of the first start."""
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.reset_parameters()
        saver = saver_of(tmp_path, model, pool, counter=EpochCounter(9))
        pool.begin(SimpleNamespace(checkpointer=saver, optimizer_step=None))
    train_a_little(model, 1.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 1})
    assert found(pool.folder) == {
        "run/epoch-0001": (pool.candidates()[0].digest, start_of(2))
    }


def test_a_training_that_began_without_a_base_gets_none_later(tmp_path, caplog):
    """It got the weights that a later start happened to hold."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1], base=False)
    ended()
    train(tmp_path, pool, 2, [2])
    bases = [base for _, base in found(pool).values()]
    assert bases == [None, None]
    assert "its training began without one" in caplog.text


def test_a_plain_training_of_one_save_and_then_a_brain_there(tmp_path):
    """Its checkpoint lacks what a Brain saves last, and it was not killed."""
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    train_a_little(model, 1.0)
    saver_of(tmp_path, model, pool).save_checkpoint(meta={"epoch": 1})
    before = found(tmp_path / "pool")
    ended()
    train(tmp_path, tmp_path / "pool", 2, [1])
    after = found(tmp_path / "pool")
    assert set(after) - set(before) == {"run-2/epoch-0001"}
    assert {name: after[name] for name in before} == before


def test_a_save_that_is_tried_again_counts_once(tmp_path, monkeypatch):
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, every=2)
    saver = saver_of(tmp_path, model, pool)
    for epoch in (1, 2, 3, 4):
        train_a_little(model, float(epoch))
        if epoch == 2:
            with monkeypatch.context() as full:
                full.setattr(RunFolder, "store", no_space)
                with pytest.raises(OSError, match="No space"):
                    saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    assert [each.epoch for each in pool.candidates()] == [2, 4]


def no_space(*arguments):
    """As on a full disk."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["another checkpoint's", "a digit"])
def test_a_pointer_that_is_not_of_its_checkpoint_is_named(tmp_path, what):
    """The training counted as one that went back, and lost a candidate."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1, 2, 3])
    before = found(pool)
    ended()
    first, *_, last = sorted((tmp_path / "save").iterdir())
    pointer = last / "pool.ckpt"
    if what == "a digit":
        text = pointer.read_text()
        pointer.write_text(text.replace('"saves": 3', '"saves": 2'))
    else:
        shutil.copy(first / "pool.ckpt", pointer)
    with pytest.raises(ValueError, match="pool.ckpt.*Delete the folder .*CKPT"):
        train(tmp_path, pool, 1, [4])
    assert found(pool) == before
    shutil.rmtree(last)
    train(tmp_path, pool, 1, [3, 4], value=0.5)
    assert len(found(pool)) == 4


def test_a_whole_checkpoint_by_another_name_is_taken(tmp_path):
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1, 2])
    ended()
    *_, last = sorted((tmp_path / "save").iterdir())
    last.rename(last.with_name("CKPT+kept"))
    train(tmp_path, pool, 1, [3])
    assert list(found(pool)) == [f"run/epoch-000{epoch}" for epoch in (1, 2, 3)]


def test_a_candidate_whose_file_is_gone_takes_no_place(tmp_path):
    """Another one was deleted for it."""
    model = model_of(1)
    pool = CheckpointPool(tmp_path / "pool", {"model": model}, keep_best=2)
    saver = saver_of(tmp_path, model, pool)
    for epoch, rate in enumerate([10.0, 20.0, 30.0], start=1):
        if epoch == 3:
            (tmp_path / "pool/run/epoch-0001.safetensors").unlink()
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": rate, "epoch": epoch})
    there = sorted((tmp_path / "pool" / "run").glob("*.safetensors"))
    assert [path.stem for path in there] == ["epoch-0002", "epoch-0003"]


def test_what_is_trained_again_replaces_a_candidate_whose_file_is_gone(
    tmp_path,
):
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1, 2])
    ended()
    (pool / "run" / "epoch-0002.safetensors").unlink()
    *_, last = sorted((tmp_path / "save").iterdir())
    shutil.rmtree(last)
    train(tmp_path, pool, 1, [2], value=0.5)
    files = [each.path for each in read_pool(pool)]
    assert len(files) == 2 and all(path.is_file() for path in files)


def test_a_run_of_an_earlier_version_goes_on_with_its_base(tmp_path):
    """Neither its checkpoints nor its candidates name one."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1])
    ended()
    take_checks(pool / "run" / "manifest.jsonl")
    lines = Manifest(pool / "run").records()
    lines[1].pop("base")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (pool / "run" / "manifest.jsonl").write_text(text)
    (pointer,) = (tmp_path / "save").glob("*/pool.ckpt")
    known = json.loads(pointer.read_text())
    for key in ("base", "check", "saved"):
        del known[key]
    pointer.write_text(json.dumps(known))
    train(tmp_path, pool, 2, [2])
    assert {base for _, base in found(pool).values()} == {start_of(1)}


def test_a_copy_at_the_place_of_the_first_which_was_renamed(tmp_path):
    """`mv a good; cp -r good a`, then back, lost candidates of the first."""
    pool = tmp_path / "pool"
    train(tmp_path / "a", pool, 1, [1, 2, 3])
    ended()
    before = found(pool)
    (tmp_path / "a").rename(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "a")
    *_, last = sorted((tmp_path / "a" / "save").iterdir())
    shutil.rmtree(last)
    train(tmp_path / "a", pool, 1, [3, 4], value=0.5)
    ended()
    after = found(pool)
    assert {name: after[name] for name in before} == before
    new = {"run-2/epoch-0003", "run-2/epoch-0004"}
    assert set(after) - set(before) == new
    # which of the two is the copy is not known, so nothing is taken from either
    train(tmp_path / "good", pool, 1, [4])
    last = found(pool)
    assert {name: last[name] for name in after} == after
    assert len(last) == len(after) + 1


def test_results_that_were_put_back_from_a_backup_go_on(tmp_path):
    pool = tmp_path / "pool"
    train(tmp_path / "a", pool, 1, [1, 2])
    ended()
    shutil.copytree(tmp_path / "a", tmp_path / "backup" / "a")
    train(tmp_path / "a", pool, 1, [3])
    ended()
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "backup" / "a", tmp_path / "a")
    train(tmp_path / "a", pool, 1, [3, 4], value=0.5)
    assert list(found(pool)) == [
        "run/epoch-0001",
        "run/epoch-0002",
        "run/epoch-0003-2",
        "run/epoch-0004",
    ]


@pytest.mark.parametrize("how", [None, os.link])
@pytest.mark.parametrize("away", ["old/a", "archive/2026/a", "backup/a"])
def test_a_backup_in_the_place_of_the_first(tmp_path, caplog, how, away):
    """However far that was moved, its later candidates are kept."""
    pool, copy = tmp_path / "pool", how or shutil.copy2
    first, backup = tmp_path / "results/a", tmp_path / "backup/a"
    train(first, pool, 1, [1, 2, 3], keep_last=9)
    ended()
    shutil.copytree(first, backup, copy_function=copy)
    train(first, pool, 1, [4, 5], keep_last=9)
    ended()
    before = found(pool)
    first.rename(tmp_path / "moved")
    backup.rename(first)
    away = tmp_path / away
    away.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moved").rename(away)
    train(first, pool, 1, [4, 5], value=0.5, keep_last=9)
    ended()
    after = found(pool)
    assert list(after) == [
        *(f"run/epoch-000{epoch}" for epoch in (1, 2, 3)),
        *(f"run/epoch-000{epoch}-2" for epoch in (4, 5)),
    ]
    for epoch in (4, 5):
        name = f"run/epoch-000{epoch}"
        kept = pool / "run/quarantine" / f"epoch-000{epoch}.safetensors"
        with open_weights(kept) as weights:
            assert digest(weights) == before[name][0]
        assert f"moved to {kept}: 'epoch-000{epoch}' was trained" in caplog.text
    # and the first goes on, with what it has
    train(away, pool, 1, [6], keep_last=9)
    assert found(pool).items() > after.items()


@pytest.mark.parametrize("what", ["epoch-0001", "base"])
def test_what_was_trained_on_in_its_place_is_kept(tmp_path, what, caplog):
    """It was saved with the metadata of the file that it began with."""
    pool = tmp_path / "pool"
    # a base that nothing was trained from is replaced by the next start's
    train(tmp_path, pool, 1, [] if what == "base" else [1], keep_last=1)
    ended()
    path = pool / "run" / f"{what}.safetensors"
    with open_weights(path) as weights:
        known = dict(weights.metadata)
    mine = {name: each + 1 for name, each in load_file(path).items()}
    save_file(mine, path, known)
    content = path.read_bytes()
    train(tmp_path, pool, 2 if what == "base" else 1, [2], keep_last=1)
    ended()
    train(tmp_path, pool, 1, [3], keep_last=1)
    files = [each.read_bytes() for each in pool.rglob("*.safetensors")]
    assert content in files
    assert f"{path}: " in caplog.text
    # where nothing takes it for a candidate
    kept = pool / "run" / "quarantine" / path.name
    assert kept.read_bytes() == content


@pytest.mark.parametrize("run", ["run", "run-2"])
def test_a_lost_manifest_of_a_training_that_has_ended(tmp_path, run):
    """It stores no base, and collects nothing more."""
    pool = tmp_path / "pool"
    if run == "run-2":
        train(tmp_path / "other", pool, 2, [1], base=False)
        ended()
    train(tmp_path / "one", pool, 1, [1, 2], base=False)
    ended()
    before = found(pool)
    (pool / run / Manifest.FILE).unlink()
    if run == "run":
        with pytest.raises(ValueError, match="2 candidates are left out"):
            read_pool(pool)
    train(tmp_path / "one", pool, 1, [], base=False)
    assert found(pool) == before


def test_a_candidate_that_a_person_put_back_is_kept(tmp_path):
    """The bounds had removed it, which a kill may have left half done."""
    pool, saved = tmp_path / "pool", tmp_path / "saved"
    train(tmp_path, pool, 1, [1, 2], keep_last=2)
    ended()
    shutil.copytree(pool / "run", saved)
    train(tmp_path, pool, 1, [3], keep_last=2)
    ended()
    back = pool / "run" / "epoch-0001.safetensors"
    assert not back.exists()
    shutil.copy(saved / back.name, back)
    train(tmp_path, pool, 1, [4], keep_last=2)
    assert list(found(pool)) == ["run/epoch-0003", "run/epoch-0004"]
    kept = pool / "run" / "quarantine" / back.name
    assert kept.read_bytes() == (saved / back.name).read_bytes()


def test_a_kill_between_the_line_and_the_move(tmp_path, monkeypatch):
    """What is to be kept is not taken for what is to be deleted."""
    pool = tmp_path / "pool"
    train(tmp_path / "a", pool, 1, [1, 2, 3])
    ended()
    code = found(pool)["run/epoch-0003"][0]
    *_, last = sorted((tmp_path / "a" / "save").iterdir())
    shutil.rmtree(last)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "put_aside", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", pool, 1, [3], value=0.5)
    ended()
    monkeypatch.undo()
    train(tmp_path / "a", pool, 1, [3], value=0.5)
    assert "run/epoch-0003" not in found(pool) and len(found(pool)) == 3
    with open_weights(
        pool / "run/quarantine/epoch-0003.safetensors"
    ) as weights:
        assert digest(weights) == code


@pytest.mark.parametrize("seed", [1, 2])
def test_another_after_a_kill_in_the_first_save(tmp_path, monkeypatch, seed):
    """Where a plain Checkpointer saves is not known when the base is stored."""

    def start(folder, seed, value, epochs=(1,)):
        model = model_of(seed)
        pool = CheckpointPool(tmp_path / "pool", {"model": model})
        saver = saver_of(tmp_path / folder, model, pool)
        pool.store_base(resuming=saver.find_checkpoint() is not None)
        saver.recover_if_possible()
        for epoch in epochs:
            train_a_little(model, epoch + value)
            saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
        ended()

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        start("one", 1, 0.0)
    ended()
    monkeypatch.undo()
    before = found(tmp_path / "pool")
    assert before["run/epoch-0001"][1] == start_of(1)
    start("two", seed, 0.5, (1, 2))
    after = found(tmp_path / "pool")
    assert after.items() > before.items()
    assert [after[name][1] for name in after if name not in before] == [
        start_of(seed)
    ] * 2
    assert {name.split("/")[0] for name in after} == {"run", "run-2"}
    assert not (tmp_path / "pool/run/quarantine").exists()
    # and the first knows itself, without what SpeechBrain cannot load
    [torn] = (tmp_path / "one/save").iterdir()
    shutil.rmtree(torn)
    start("one", 1, 0.25, (1, 2))
    last = found(tmp_path / "pool")
    assert {name for name in last if name.startswith("run/")} == {
        "run/epoch-0001-2",
        "run/epoch-0002",
    }


@pytest.mark.parametrize("what", ["lost", "damaged"])
def test_what_is_trained_again_is_stored_where_its_file_is_not_whole(
    tmp_path, what
):
    """The manifest was believed, and the merge refused after the training."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1, 2])
    ended()
    before = [each.digest for each in read_pool(pool)]
    path = pool / "run" / "epoch-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink() if what == "lost" else path.write_bytes(content)
    *_, last = sorted((tmp_path / "save").iterdir())
    shutil.rmtree(last)
    train(tmp_path, pool, 1, [2])
    assert [each.digest for each in read_pool(pool)] == before
    assert not any(row.fault for row in verify_pool(pool))


def test_the_lost_line_of_a_removal(tmp_path):
    """The pool named a candidate for ever that its bounds had removed."""
    pool = tmp_path / "pool"
    train(tmp_path, pool, 1, [1, 2, 3], keep_last=2)
    ended()
    manifest = pool / "run" / "manifest.jsonl"
    *lines, last = manifest.read_text().splitlines(keepends=True)
    assert '"removed"' in last
    manifest.write_text("".join(lines))
    train(tmp_path, pool, 1, [4], keep_last=2)
    assert [each.epoch for each in read_pool(pool)] == [3, 4]
