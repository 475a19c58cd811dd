"""read_pool over pools, past SpeechBrain runs, files and folders."""

import os
import shutil

import pytest
import torch
from filled_pool import collect, train_a_little
from tiny_models import tiny_ctc_brain, tiny_ctc_data, tiny_whisper

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.weights import digest, open_weights


def past_run(folder, metas, **recoverables):
    """A save folder with one checkpoint for each meta."""
    model = torch.nn.Linear(2, 2)
    saver = Checkpointer(folder / "save", {"model": model, **recoverables})
    for index, meta in enumerate(metas, start=1):
        train_a_little(model, float(index))
        saver.save_checkpoint(meta=meta, name=f"{index}")
    return folder / "save"


def names(candidates):
    return [candidate.name for candidate in candidates]


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    """What a recipe without any pool leaves, all checkpoints kept."""
    folder = tmp_path_factory.mktemp("results") / "tiny" / "1986"
    brain = tiny_ctc_brain(folder, epochs=3)
    keep_all = brain.checkpointer.save_checkpoint

    def save_and_keep_only(meta, min_keys):
        # As the Whisper recipe: no epoch in the meta
        keep_all(meta={"WER": meta["WER"]})

    brain.checkpointer.save_and_keep_only = save_and_keep_only
    data = tiny_ctc_data(8)
    brain.fit(brain.hparams.epoch_counter, data, data)
    return folder, [row[3] for row in brain.stats if row[0] == "VALID"]


def test_a_past_run_is_read_without_retraining(recipe_run):
    folder, rates = recipe_run
    for source in (folder, folder / "save", str(folder / "s*e")):
        candidates = read_pool(source)
        assert [each.score for each in candidates] == rates
        assert [each.epoch for each in candidates] == [1, 2, 3]
        assert [each.step for each in candidates] == [8, 16, 24]
        assert {each.run for each in candidates} == {"1986"}
        assert candidates[0].name == f"1986/{candidates[0].path.name}"
    with open_weights(candidates[0]) as weights:
        assert "model.ctc_lin.weight" in weights
        # The normalizer's statistics and the optimizer are no model
        assert {name.split(".")[0] for name in weights} == {"model"}
        assert digest(weights) == candidates[0].digest


def test_reading_changes_nothing(recipe_run):
    folder, _ = recipe_run

    def state():
        return sorted(
            (path, path.stat().st_mtime_ns) for path in folder.rglob("*")
        )

    before = state()
    read_pool(folder)
    assert state() == before


def test_checkpoints_come_in_the_order_of_time(tmp_path):
    save = past_run(tmp_path, [{"WER": 3.0}, {"WER": 2.0}, {"WER": 1.0}])
    # A name tells nothing, and neither do the times of the files
    (save / "CKPT+1").rename(save / "CKPT+9")
    os.utime(save / "CKPT+9" / "CKPT.yaml")
    assert names(read_pool(save)) == [
        f"{tmp_path.name}/CKPT+{name}" for name in (9, 2, 3)
    ]


def test_checkpoints_saved_in_testing_are_left_out(tmp_path, caplog):
    save = past_run(
        tmp_path, [{"WER": 5.0, "epoch": 1}, {"WER": -0.1, "epoch": None}]
    )
    assert [each.score for each in read_pool(save)] == [5.0]
    assert "CKPT+2 was saved in testing" in caplog.text
    shutil.rmtree(save / "CKPT+1")
    with pytest.raises(ValueError, match="CKPT\\+2 was saved in testing"):
        read_pool(save)
    # Whoever names it wants it
    assert [each.score for each in read_pool(save / "CKPT+2")] == [-0.1]


def test_checkpoints_within_an_epoch_are_left_out(tmp_path):
    save = past_run(tmp_path, [{"WER": 5.0}, {INTRA_EPOCH_CKPT_FLAG: True}])
    assert len(read_pool(save)) == 1
    assert len(read_pool(save, intra_epoch=True)) == 2


def _empty_model(folder):
    (folder / "model.ckpt").write_bytes(b"")


def _cut_model(folder):
    content = (folder / "model.ckpt").read_bytes()
    (folder / "model.ckpt").write_bytes(content[: len(content) // 2])


def _no_model(folder):
    (folder / "model.ckpt").unlink()


def _no_decoder(folder):
    (folder / "decoder.ckpt").unlink()


def _empty_meta(folder):
    (folder / "CKPT.yaml").write_text("")


def _cut_meta(folder):
    (folder / "CKPT.yaml").write_text("{WER: [3.0")


def _no_meta(folder):
    (folder / "CKPT.yaml").unlink()


def _nothing_but_meta(folder):
    for path in folder.glob("*.ckpt"):
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _empty_model,
        _cut_model,
        _no_model,
        _no_decoder,
        _empty_meta,
        _cut_meta,
        _no_meta,
        _nothing_but_meta,
    ],
)
def test_half_written_checkpoints_are_named(tmp_path, damage, caplog):
    save = past_run(
        tmp_path,
        [{"WER": 5.0}, {"WER": 4.0}],
        decoder=torch.nn.Linear(2, 2),
    )
    damage(save / "CKPT+2")
    with pytest.raises(ValueError, match="CKPT\\+2.*half-written") as raised:
        read_pool(save)
    assert "skip_broken=True" in str(raised.value)
    assert "CKPT+1" not in str(raised.value)
    found = read_pool(save, skip_broken=True)
    assert [candidate.path.name for candidate in found] == ["CKPT+1"]
    assert "CKPT+2: left out" in caplog.text


def test_numpy_metas_of_old_runs_are_read(tmp_path):
    numpy = pytest.importorskip("numpy")
    save = past_run(
        tmp_path,
        [
            {"WER": numpy.float64(5.25), "epoch": numpy.int64(7)},
            {"WER": numpy.float32(4.5), "loss": torch.tensor(1.0)},
        ],
    )
    first, second = read_pool(save)
    assert (first.score, first.epoch, second.score) == (5.25, 7, 4.5)
    assert "loss" not in second.meta


def test_one_checkpoint_and_one_of_its_files(tmp_path):
    save = past_run(tmp_path / "7", [{"WER": 5.0, "epoch": 1}])
    [whole] = read_pool(save / "CKPT+1")
    assert (whole.name, whole.run, whole.score) == ("7/CKPT+1", "7", 5.0)
    [part] = read_pool(str(save / "CKPT*" / "model.ckpt"))
    assert (part.name, part.run, part.epoch) == ("7/CKPT+1/model", "7", 1)
    with open_weights(part) as weights:
        assert weights.names() == ["weight", "bias"]


def test_a_candidate_moved_elsewhere_knows_itself(tmp_path):
    pool, _, _ = collect(
        tmp_path, [{"WER": 5.0}], hyperparameters={"lr": 1}, tags=["x"]
    )
    [original] = pool.candidates()
    (tmp_path / "gift").mkdir()
    shutil.copy(original.path, tmp_path / "gift" / "mine.safetensors")
    [moved] = read_pool(tmp_path / "gift" / "mine.safetensors")
    assert moved.name == "gift/mine"
    assert (moved.score, moved.epoch, moved.tags) == (5.0, 1, ("x",))
    assert moved.hyperparameters == {"lr": 1}
    assert moved.digest == original.digest


def test_files_know_their_content(tmp_path):
    state = {"w": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.ckpt")
    torch.save({"model.w": state["w"]}, tmp_path / "b.pt")
    a, b = read_pool([tmp_path / "b.pt", tmp_path / "a.ckpt"])[::-1]
    assert a.digest == digest(state) != b.digest
    assert (a.score, a.epoch, a.time) == (None, None, None)


def test_a_hugging_face_folder(tmp_path):
    folder = tiny_whisper(tmp_path / "whisper-tiny")
    [candidate] = read_pool(folder)
    assert (candidate.name, candidate.run) == ("whisper-tiny",) * 2
    with open_weights(candidate) as weights:
        assert "model.encoder.conv1.weight" in weights


def test_several_runs_in_one_pool(tmp_path):
    for seed, rates in ((2, [5.0, 4.0]), (1, [6.0])):
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(
            tmp_path / "pool", {"m": model}, run=f"seed-{seed}"
        )
        saver = Checkpointer(tmp_path / f"{seed}", {"m": model, "pool": pool})
        for epoch, rate in enumerate(rates, start=1):
            train_a_little(model)
            saver.save_checkpoint(meta={"WER": rate, "epoch": epoch})
    expected = [
        "seed-1/epoch-0001",
        "seed-2/epoch-0001",
        "seed-2/epoch-0002",
    ]
    assert names(read_pool(pool)) == expected
    assert names(read_pool(tmp_path / "pool")) == expected
    assert names(read_pool(tmp_path / "pool" / "seed-2")) == expected[1:]
    assert names(read_pool(str(tmp_path / "pool" / "seed-*"))) == expected
    # What is named twice is given once, at its first place
    twice = [tmp_path / "pool" / "seed-2", pool, pool.candidates()]
    assert names(read_pool(twice)) == expected[1:] + expected[:1]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for path in ("whisper/1986", "whisper/7", "conformer/1986"):
        past_run(tmp_path / path, [{"WER": 5.0}])
    found = read_pool(sorted(map(str, tmp_path.glob("*/*"))))
    assert names(found) == [
        "conformer/1986/CKPT+1",
        "whisper/1986/CKPT+1",
        "7/CKPT+1",
    ]
    assert [candidate.run for candidate in found] == [
        "conformer/1986",
        "whisper/1986",
        "7",
    ]


def test_another_metric(tmp_path):
    save = past_run(tmp_path, [{"ACC": 0.5}])
    assert read_pool(save)[0].score is None
    assert read_pool(save, metric="ACC")[0].score == 0.5


def test_a_candidate_whose_file_is_gone(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 5.0}, {"WER": 4.0}])
    pool.candidates()[0].path.unlink()
    with pytest.raises(ValueError, match="epoch-0001.safetensors: missing"):
        read_pool(pool)
    assert names(read_pool(pool, skip_broken=True)) == ["run/epoch-0002"]


def test_nothing_found(tmp_path):
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "mistyped"
    with pytest.raises(ValueError, match="mistyped.*does not exist"):
        read_pool([tmp_path / "empty", missing])
    assert not missing.exists()
    with pytest.raises(ValueError, match="no candidate in .*/run-\\*"):
        read_pool(str(tmp_path / "run-*"))
    with pytest.raises(ValueError, match="no candidate in an empty list"):
        read_pool([])
    with pytest.raises(TypeError, match="cannot be read from a int"):
        read_pool(3)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="notes.txt is no weights file"):
        read_pool(tmp_path / "notes.txt")


def test_a_pool_without_candidates(tmp_path):
    pool, _, _ = collect(tmp_path, [])
    assert pool.candidates() == []
    with pytest.raises(ValueError, match="no candidate in .*pool"):
        read_pool(pool)
    pool.store_base()
    with pytest.raises(ValueError, match="no candidate in .*pool"):
        read_pool(pool)


def test_a_file_of_a_pool_is_the_candidate_that_it_is(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 9.0}, {"WER": 8.0}], based=True)
    expected = pool.candidates()[1]
    (found,) = read_pool(expected.path)
    assert found == expected and found.base_digest == expected.base_digest
    assert found.base_digest is not None
    # the base itself is no candidate of the pool, but can be read
    (base,) = read_pool(expected.base)
    assert base.name == "run/base" and base.base_digest is None
