"""Resuming a training with a pool, and the base that it started from."""

import os
import shutil

import killed_stages
import pytest
import torch
from filled_pool import (
    collect,
    names,
    records,
    resume,
    saver_of,
    train_a_little,
)
from tiny_models import tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.pool.first_save import NOTE
from speechbrain_merge.pool.manifest import _let_go, is_held
from speechbrain_merge.pool.meta import read_meta
from speechbrain_merge.weights import digest, open_weights


def test_a_resumed_training_goes_on_with_its_run(tmp_path):
    collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}, {"WER": 1.0}], every=2)
    model = torch.nn.Linear(2, 2)
    pool, saver = resume(tmp_path, model, every=2)
    assert model.weight[0, 0] == 3.0
    train_a_little(model, 4.0)
    saver.save_checkpoint(meta={"WER": 0.5, "epoch": 4})
    # every=2 counts on over the resumption
    assert names(pool) == ["run/epoch-0002", "run/epoch-0004"]


def test_epochs_trained_again_count_once(tmp_path):
    pool, saver, model = collect(tmp_path, [{"WER": 3.0}], every=2)
    shutil.copytree(saver.list_checkpoints()[0].path, tmp_path / "kept")
    train_a_little(model, 2.0)
    saver.save_and_keep_only(meta={"WER": 2.0, "epoch": 2}, importance_keys=[])
    shutil.rmtree(saver.list_checkpoints()[0].path)
    shutil.copytree(tmp_path / "kept", tmp_path / "save" / "CKPT+kept")
    pool, saver = resume(tmp_path, model, every=2)
    for epoch in (2, 3, 4):
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    assert names(pool) == ["run/epoch-0002", "run/epoch-0004"]


def test_epochs_trained_again_are_not_collected_twice(tmp_path):
    pool, saver, _ = collect(tmp_path, [{"WER": 3.0}, {"WER": 2.0}])
    kept = tmp_path / "kept"
    [checkpoint] = saver.list_checkpoints()
    shutil.copytree(checkpoint.path, kept)
    model = torch.nn.Linear(2, 2)
    for epoch in (3, 4, 5):  # and then it is killed, and these are lost
        train_a_little(saver.recoverables["model"], float(epoch))
        saver.save_and_keep_only(
            meta={"WER": 1.0, "epoch": epoch}, importance_keys=[]
        )
    shutil.rmtree(saver.list_checkpoints()[0].path)
    shutil.copytree(kept, tmp_path / "save" / "CKPT+kept")

    pool, saver = resume(tmp_path, model)
    run = [f"run/epoch-{epoch:04d}" for epoch in range(1, 6)]
    assert names(pool) == run  # nothing is lost by resuming
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 3})
    assert names(pool) == run  # the same weights again
    train_a_little(model, 4.5)
    saver.save_checkpoint(meta={"WER": 0.5, "epoch": 4})
    # Others: they take the place of those that the training abandoned
    assert names(pool) == [*run[:3], run[4], "run/epoch-0004-2"]
    assert pool.candidates()[-1].score == 0.5
    assert not (tmp_path / "pool" / "run" / "epoch-0004.safetensors").exists()


def test_restoring_an_older_checkpoint_removes_nothing(tmp_path):
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    for epoch, rate in enumerate([3.0, 1.0, 2.0], start=1):
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": rate, "epoch": epoch})
    before = pool.candidates()
    saver.recover_if_possible(min_key="WER")
    assert model.weight[0, 0] == 2.0
    assert pool.candidates() == before
    saver.recover_if_possible()
    train_a_little(model, 4.0)
    saver.save_checkpoint(meta={"WER": 0.5, "epoch": 4})
    assert pool.candidates()[:3] == before
    assert names(pool)[3:] == ["run/epoch-0004"]


def test_a_pool_can_be_added_to_a_training_that_has_begun(tmp_path):
    data = tiny_ctc_data(8)
    brain = tiny_ctc_brain(tmp_path, epochs=1)
    brain.fit(brain.hparams.epoch_counter, data, data)

    model = tiny_network(seed=5)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path, model, epochs=2, recoverables={"pool": pool}
    )
    pool.begin(brain)
    brain.fit(brain.hparams.epoch_counter, data, data)
    assert [candidate.epoch for candidate in pool.candidates()] == [2]


def test_another_training_does_not_mix_into_a_run(tmp_path, caplog):
    collect(tmp_path / "one", [{"WER": 3.0}])
    shutil.copytree(tmp_path / "one" / "pool", tmp_path / "two" / "pool")
    pool, saver, model = collect(tmp_path / "two", [{"WER": 2.0}] * 2)
    assert names(pool) == [
        "run/epoch-0001",
        "run-2/epoch-0001",
        "run-2/epoch-0002",
    ]
    assert "run 'run' holds a training" in caplog.text
    # and goes on there when it is resumed, whatever became of the other
    shutil.rmtree(tmp_path / "two" / "pool" / "run")
    pool, saver = resume(tmp_path / "two", model)
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 3})
    assert names(pool) == [f"run-2/epoch-000{epoch}" for epoch in (1, 2, 3)]


def test_a_torn_pointer_says_what_to_do(tmp_path):
    _, saver, model = collect(tmp_path, [{"WER": 3.0}])
    [checkpoint] = saver.list_checkpoints()
    checkpoint.paramfiles["pool"].write_text('{"pool": "')
    with pytest.raises(ValueError, match="Delete the folder .*CKPT"):
        resume(tmp_path, model)


def test_the_base_is_stored_once(tmp_path):
    model = torch.nn.Linear(2, 2)
    arguments = (tmp_path / "pool", {"model": model})
    CheckpointPool(*arguments).store_base()
    before = model.weight.clone()
    train_a_little(model)
    CheckpointPool(*arguments).store_base()
    with open_weights(tmp_path / "pool" / "run" / "base.safetensors") as base:
        assert torch.equal(base["model.weight"], before)
    assert len(records(tmp_path / "pool" / "run")) == 1


def test_a_new_attempt_replaces_the_base_of_one_that_got_nowhere(tmp_path):
    model = torch.nn.Linear(2, 2)
    arguments = (tmp_path / "pool", {"model": model})
    CheckpointPool(*arguments).store_base(resuming=False)
    train_a_little(model)
    pool = CheckpointPool(*arguments)
    pool.store_base(resuming=False)
    saver_of(tmp_path, model, pool).save_checkpoint(meta={"epoch": 0})
    [candidate] = pool.candidates()
    with open_weights(candidate.base) as base:
        assert torch.equal(base["model.weight"], model.weight)
        assert candidate.base_digest == digest(base)


def test_a_kill_between_a_base_and_its_line_costs_no_identity(tmp_path):
    """The training is known when it is resumed, and others are told apart."""
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    pool.store_base(resuming=False)
    (tmp_path / "pool" / "run" / "manifest.jsonl").unlink()
    del pool
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    pool.store_base(resuming=False)
    saver = saver_of(tmp_path, model, pool)
    for epoch in (1, 2):
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    del pool, saver
    pool, saver = resume(tmp_path, model)
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 1.0, "epoch": 3})
    own = [f"run/epoch-000{epoch}" for epoch in (1, 2, 3)]
    assert names(pool) == own
    del pool, saver

    other = CheckpointPool(tmp_path / "pool", {"model": model})
    other.store_base(resuming=False)
    train_a_little(model, 4.0)
    saver_of(tmp_path / "other", model, other).save_checkpoint(
        meta={"WER": 1.0, "epoch": 1}
    )
    assert names(other) == [*own, "run-2/epoch-0001"]


def go_on(folder, epochs, pool, value=0.0, **bounds):
    """A training that is resumed, with its pool elsewhere."""
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(pool, {"model": model}, **bounds)
    saver = saver_of(folder, model, pool)
    saver.recover_if_possible()
    for epoch in epochs:
        train_a_little(model, epoch + value)
        saver.save_checkpoint(meta={"WER": 1.0, "epoch": epoch})
    return pool


def weights_of(pool):
    """The first weight of each candidate, by name."""
    found = {}
    for candidate in pool.candidates():
        with open_weights(candidate) as weights:
            found[candidate.name] = weights["model.weight"][0, 0].item()
    return found


@pytest.mark.parametrize(
    "how",
    ["moved and copied", "copied", "copied, saves gone", "copied, pool moved"],
)
def test_two_copies_of_a_training_that_both_go_on(tmp_path, how, caplog):
    shared = tmp_path / "pool"
    go_on(tmp_path / "one", [1, 2], shared)
    first = "one"
    if how == "moved and copied":
        (tmp_path / "one").rename(tmp_path / "lr1")
        first = "lr1"
    shutil.copytree(tmp_path / first, tmp_path / "lr2")
    before = weights_of(go_on(tmp_path / first, [3, 4], shared))
    assert list(before) == [f"run/epoch-000{epoch}" for epoch in range(1, 5)]
    if how == "copied":
        (tmp_path / "one").rename(tmp_path / "archive")
    elif how == "copied, saves gone":
        shutil.rmtree(tmp_path / "one" / "save")
    elif how == "copied, pool moved":
        shared = shared.rename(tmp_path / "moved")
    found = weights_of(go_on(tmp_path / "lr2", [3, 4], shared, value=0.5))
    own = {f"run-2/epoch-000{epoch}": epoch + 0.5 for epoch in (3, 4)}
    assert found == {**before, **own}
    assert "under a name of its own" in caplog.text
    # and one that was only moved is the same
    (tmp_path / "lr2").rename(tmp_path / "lr3")
    found = weights_of(go_on(tmp_path / "lr3", [5], shared))
    assert found == {**before, **own, "run-2/epoch-0005": 5.0}


def back_to(folder, epoch):
    """Deletes what was saved later."""
    for path in (folder / "save").iterdir():
        if read_meta(path)["epoch"] > epoch:
            shutil.rmtree(path)


def test_a_training_that_goes_back_to_what_it_was_before(tmp_path):
    """With the same weights again, the abandoned ones go."""
    for value in (0.0, 0.5, 0.0):
        if (tmp_path / "save").exists():
            back_to(tmp_path, 2)
            epochs = [3, 4]
        else:
            epochs = [1, 2, 3, 4]
        pool = go_on(tmp_path, epochs, tmp_path / "pool", value)
        found = sorted(weights_of(pool).values())
        assert found == [1.0, 2.0, 3 + value, 4 + value]


@pytest.mark.parametrize("bound", [{"keep_last": 1}, {"every": 2}])
def test_a_looser_bound_holds_for_what_is_trained_again(tmp_path, bound):
    go_on(tmp_path, [1, 2, 3], tmp_path / "pool", **bound)
    back_to(tmp_path, 1)
    found = weights_of(go_on(tmp_path, [2, 3], tmp_path / "pool"))
    assert sorted(found.values())[-2:] == [2.0, 3.0]


def test_a_copy_by_hard_links_leaves_the_first_as_it_was(tmp_path):
    go_on(tmp_path / "one", [1, 2], tmp_path / "one" / "pool")
    copy = tmp_path / "two"
    shutil.copytree(tmp_path / "one", copy, copy_function=os.link)
    before = (tmp_path / "one/pool/run/manifest.jsonl").read_bytes()
    _let_go()  # as the end of the first process does
    go_on(copy, [3, 4], copy / "pool", keep_last=2)
    assert (tmp_path / "one/pool/run/manifest.jsonl").read_bytes() == before
    found = [each.name for each in read_pool(tmp_path / "one" / "pool")]
    assert found == ["run/epoch-0001", "run/epoch-0002"]
    found = [each.name for each in read_pool(copy / "pool")]
    assert found == ["run/epoch-0003", "run/epoch-0004"]


def test_a_training_whose_save_is_whole_keeps_its_run(tmp_path):
    """Though it ends by a signal after its only epoch, and its saves are gone."""

    def train(seed):
        network = tiny_network(seed)
        pool = CheckpointPool(tmp_path / "pool", {"model": network})
        brain = tiny_ctc_brain(
            tmp_path,
            network,
            killed_stages.ASR,
            epochs=1,
            recoverables={"pool": pool},
        )
        data = tiny_ctc_data(4)
        brain.fit(brain.hparams.epoch_counter, data, data)
        return pool

    pool = train(0)
    assert not (tmp_path / "pool" / "run" / NOTE).exists()
    (first,) = pool.candidates()
    shutil.rmtree(tmp_path / "save")
    found = train(1).candidates()
    assert found[0] == first and found[1].run == "run-2"


def test_the_run_of_another_training_is_not_held(tmp_path):
    """So that it can go on while this one is running."""
    go_on(tmp_path / "one", [1], tmp_path / "pool")
    _let_go()  # as the end of the first process does
    go_on(tmp_path / "two", [1], tmp_path / "pool", value=0.5)
    assert not is_held(tmp_path / "pool" / "run")
    assert is_held(tmp_path / "pool" / "run-2")
    found = weights_of(go_on(tmp_path / "one", [2], tmp_path / "pool"))
    assert found == {
        "run/epoch-0001": 1.0,
        "run/epoch-0002": 2.0,
        "run-2/epoch-0001": 1.5,
    }


def test_runs_from_one_base_share_its_file(tmp_path):
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for run, module in (("a", model), ("b", model), ("c", other)):
        CheckpointPool(tmp_path, {"model": module}, run=run).store_base()
    paths = [tmp_path / run / "base.safetensors" for run in "abc"]
    assert paths[0].samefile(paths[1])
    assert not paths[0].samefile(paths[2])
    shutil.rmtree(tmp_path / "a")
    with open_weights(paths[1]) as base:
        assert torch.equal(base["model.weight"], model.weight)


def test_no_base_unless_wanted(tmp_path):
    pool = CheckpointPool(tmp_path, {"m": torch.nn.Linear(2, 2)}, base=False)
    pool.store_base()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bounds", [{}, {"keep_last": 3}])
def test_gone_back_and_on_with_other_batches(tmp_path, bounds):
    """Epochs of other steps stood beside those of the abandoned training; a
    bounded pool deleted a good candidate for one of them."""

    def trained(batch_size):
        brain = killed_stages.brain_of(tmp_path, "run", epochs=4, **bounds)
        brain.fit(
            brain.hparams.epoch_counter,
            tiny_ctc_data(12, seed=1),
            tiny_ctc_data(6, seed=50),
            train_loader_kwargs={"batch_size": batch_size},
            valid_loader_kwargs=dict(killed_stages.VALID),
        )
        return {
            candidate.epoch: candidate.step
            for candidate in read_pool([tmp_path / "pool"])
        }

    before = trained(4)
    assert before[4] == 12
    for folder in (tmp_path / "run/save").glob("CKPT*"):
        if read_meta(folder)["epoch"] > 2:
            shutil.rmtree(folder)
    after = trained(6)
    assert after == {**before, 3: 8, 4: 10}
    assert len(read_pool([tmp_path / "pool"])) == len(after)


@pytest.mark.parametrize("lost", ["manifest", "run", "nothing"])
def test_a_base_is_what_the_run_started_from(tmp_path, lost, caplog):
    """And not what the modules hold in a later start, drawn anew."""

    def start(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(tmp_path / "pool", {"model": model})
        saver = saver_of(tmp_path, model, pool)
        pool.store_base(resuming=bool(saver.list_checkpoints()))
        saver.recover_if_possible()
        train_a_little(model)
        saver.save_checkpoint(meta={"WER": 9.0})
        return pool

    pool = start(0)
    before = {each.base_digest for each in pool.candidates()}
    folder = tmp_path / "pool" / "run"
    if lost == "manifest":
        (folder / "manifest.jsonl").unlink()
    elif lost == "run":
        shutil.rmtree(folder)
    del pool
    found = {each.base_digest for each in start(1).candidates()}
    assert found == ({None} if lost == "run" else before)
    assert ("is lost" in caplog.text) == (lost == "run")
    assert (folder / "base.safetensors").exists() == (lost != "run")


def test_a_base_of_a_start_that_ended_at_once(tmp_path, caplog):
    """It was killed before it had loaded its checkpoint."""

    def start(seed, run, ends=False):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(tmp_path / "pool", {"model": model}, run=run)
        saver = saver_of(tmp_path, model, pool)
        pool.store_base(resuming=bool(saver.list_checkpoints()))
        if not ends:
            saver.recover_if_possible()
            train_a_little(model)
            saver.save_checkpoint(meta={"WER": 9.0})

    start(0, "a")
    start(1, "b", ends=True)
    start(1, "b")
    found = {each.run: each for each in read_pool(tmp_path / "pool")}
    assert found["a"].base_digest == found["b"].base_digest is not None
    assert found["b"].base.samefile(found["a"].base)
    assert "is lost" not in caplog.text


def test_a_copy_under_another_name_has_the_base_of_the_first(tmp_path):
    """And not the weights that its own start drew."""

    def start(seed, run, place):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(tmp_path / "pool", {"model": model}, run=run)
        saver = saver_of(tmp_path / place, model, pool)
        pool.store_base(resuming=bool(saver.list_checkpoints()))
        saver.recover_if_possible()
        train_a_little(model, seed + 1.0)
        saver.save_checkpoint(meta={"WER": 9.0})

    start(0, "a", "results")
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    start(1, "b", "copy")
    found = read_pool(tmp_path / "pool")
    assert [each.run for each in found] == ["a", "b"]
    assert found[0].base_digest == found[1].base_digest is not None


@pytest.mark.parametrize(
    "before, after, rates, kept",
    [
        ({}, {"keep_best": 2}, [28.0, 27.0], ["1", "2"]),
        ({}, {"every": 2}, [28.0, 27.0], ["1", "2", "4"]),
        ({"keep_best": 2}, {"keep_best": 2}, [float("nan"), 27.0], ["1", "4"]),
    ],
)
def test_what_is_trained_again_and_not_kept(
    tmp_path, before, after, rates, kept
):
    """The abandoned candidate of its place stayed, and was merged."""
    metas = [{"WER": 22.0}, {"WER": 25.0}]
    _, saver, model = collect(tmp_path, metas, **before)
    shutil.copytree(saver.list_checkpoints()[0].path, tmp_path / "kept")
    train_a_little(model, 3.0)
    saver.save_and_keep_only(meta={"WER": 20.0, "epoch": 3}, importance_keys=[])
    shutil.rmtree(saver.list_checkpoints()[0].path)
    shutil.copytree(tmp_path / "kept", tmp_path / "save" / "CKPT+kept")
    pool, saver = resume(tmp_path, model, **after)
    for epoch, rate in zip((3, 4), rates):
        train_a_little(model, 10.0 + epoch)
        saver.save_checkpoint(meta={"WER": rate, "epoch": epoch})
    assert names(pool) == [f"run/epoch-000{each}" for each in kept]


def test_a_tighter_bound_holds_for_what_was_there(tmp_path):
    """Also where nothing that comes is kept."""
    _, saver, model = collect(tmp_path, [{"WER": 1.0}, {"WER": 2.0}])
    pool, saver = resume(tmp_path, model, keep_best=1)
    train_a_little(model, 3.0)
    saver.save_checkpoint(meta={"WER": 3.0, "epoch": 3})
    assert names(pool) == ["run/epoch-0001"]
