"""Epochs below zero, and names that are too long for a file system.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from filled_pool import collect, files, names, train_a_little

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import CheckpointPool, MergeStage
from speechbrain_merge.study import Study


def test_epochs_below_zero_are_pruned_like_others(tmp_path):
    metas = [{"epoch": epoch} for epoch in (-3, -2, -1, 0, 1)]
    pool, *_ = collect(tmp_path, metas, keep_last=2)
    assert names(pool) == ["run/epoch-0000", "run/epoch-0001"]
    assert files(tmp_path / "pool/run") == [
        "epoch-0000.safetensors",
        "epoch-0001.safetensors",
    ]
    pool, *_ = collect(tmp_path / "all", metas[:2])
    assert names(pool) == ["run/save-0001", "run/save-0002"]


def test_a_counter_below_zero_is_pruned_like_others(tmp_path):
    class Counter:
        current = -3

    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(
        tmp_path / "pool",
        {"model": model},
        keep_last=1,
        epoch_counter=Counter(),
    )
    saver = Checkpointer(tmp_path / "save", {"model": model, "pool": pool})
    for value in (1.0, 2.0, 3.0):
        train_a_little(model, value)
        pool.epoch_counter.current += 1
        saver.save_checkpoint(meta={"WER": value})
    assert len(pool.candidates()) == len(files(tmp_path / "pool/run")) == 1


LONG = 300 * "n"


def test_a_name_that_is_too_long_is_refused_at_once(tmp_path):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="run: 'nnn.*300 bytes .* 200 at most"):
        CheckpointPool(tmp_path / "pool", {"model": model}, run=LONG)
    with pytest.raises(ValueError, match="`name` of a merge stage: 'nnn"):
        MergeStage("average", [tmp_path], name=LONG)
    path = tmp_path / "train.yaml"
    path.write_text("seed: 1\noutput_folder: results\n")
    with pytest.raises(ValueError, match="The name of a model: 'nnn"):
        Study(
            tmp_path / "study",
            {LONG: {"train": "a"}},
            {"expert": {"hparams": path}},
            domains=["a"],
        ).run(lambda *arguments: None)
    # the longest that is taken can be written, with all that is added to it
    pool, *_ = collect(tmp_path, [{}, {}], run=200 * "n")
    assert len(pool.candidates()) == 2
