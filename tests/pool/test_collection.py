"""CheckpointPool, filled by a real Checkpointer and a real Brain."""

import json
import os

import pytest
import torch
from filled_pool import collect, files, names, records, saver_of, train_a_little
from hyperpyyaml import load_hyperpyyaml
from tiny_models import tiny_conformer, tiny_ctc_brain, tiny_ctc_data

import speechbrain as sb
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain_merge import MergeMixin
from speechbrain_merge.pool import CheckpointPool, read_pool
from speechbrain_merge.weights import digest, open_weights

LOADER = {"batch_size": 4}


@pytest.fixture
def trained(tmp_path):
    """A Brain trained over three epochs with a pool, as a recipe does it."""
    model = tiny_conformer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pool = CheckpointPool(
        tmp_path / "pool",
        {"model": model},
        run="seed-1",
        hyperparameters={"lr": 0.02, "activation": torch.nn.GELU},
        tags=["clean"],
    )
    brain = tiny_ctc_brain(
        tmp_path, model, epochs=3, recoverables={"pool": pool}
    )
    pool.begin(brain)
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(16),
        tiny_ctc_data(8, seed=1),
        train_loader_kwargs=LOADER,
        valid_loader_kwargs=LOADER,
    )
    return brain, pool, before


def test_a_training_run_fills_the_pool(trained, tmp_path):
    brain, pool, before = trained
    candidates = pool.candidates()
    assert names(pool) == [
        "seed-1/epoch-0001-step-000004",
        "seed-1/epoch-0002-step-000008",
        "seed-1/epoch-0003-step-000012",
    ]
    rates = [row[3] for row in brain.stats if row[0] == "VALID"]
    assert [each.score for each in candidates] == rates
    assert [each.epoch for each in candidates] == [1, 2, 3]
    assert [each.step for each in candidates] == [4, 8, 12]
    assert candidates[0].hyperparameters == {
        "lr": 0.02,
        "activation": "<class 'torch.nn.modules.activation.GELU'>",
    }
    assert candidates[0].tags == ("clean",)
    assert read_pool(tmp_path / "pool") == candidates
    # The recipe's own checkpoints: the best and the last, as without a pool
    assert len(brain.checkpointer.list_checkpoints()) <= 2

    with open_weights(candidates[-1]) as weights:
        state = brain.hparams.model.state_dict()
        assert weights.names() == [f"model.{name}" for name in state]
        for name, tensor in state.items():
            assert torch.equal(weights[f"model.{name}"], tensor)
        assert digest(weights) == candidates[-1].digest
    with open_weights(candidates[-1].base) as weights:
        for name, tensor in before.items():
            assert torch.equal(weights[f"model.{name}"], tensor)
        assert digest(weights) == candidates[-1].base_digest


def test_a_candidate_is_a_file_for_other_tools(trained):
    from safetensors import safe_open

    _, pool, _ = trained
    candidate = pool.candidates()[1]
    with safe_open(candidate.path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        record = json.loads(file.metadata()["candidate"])
    assert record["run"] == "seed-1"
    assert record["meta"]["WER"] == candidate.score
    assert record["hyperparameters"]["lr"] == 0.02


def test_testing_adds_nothing(trained):
    brain, pool, _ = trained
    before = pool.candidates()
    brain.hparams.save_on_test = True
    for _ in range(2):
        brain.evaluate(
            tiny_ctc_data(8, seed=2),
            min_key="WER",
            test_loader_kwargs=LOADER,
        )
    assert pool.candidates() == before


def test_an_average_saved_in_testing_is_no_candidate(tmp_path):
    pool, saver, model = collect(tmp_path, [{"WER": 30.0}])
    train_a_little(model, 1.5)  # stands for averaging: weights yet unseen
    saver.save_checkpoint(meta={"WER": -0.1, "epoch": None})
    assert names(pool) == ["run/epoch-0001"]


def test_known_weights_with_a_made_up_metric_are_not_stored(tmp_path):
    pool, saver, _ = collect(
        tmp_path, [{"WER": 30.0}, {"WER": 20.0}], keep_last=1
    )
    assert names(pool) == ["run/epoch-0002"]
    # Without an epoch in its meta, a test's checkpoint looks like any other;
    # these weights are in the pool, and those were in it
    saver.save_checkpoint(meta={"WER": -0.1})
    train_a_little(saver.recoverables["model"], 1.0)
    saver.save_checkpoint(meta={"WER": -0.1})
    assert [(c.name, c.score) for c in pool.candidates()] == [
        ("run/epoch-0002", 20.0)
    ]


def test_a_test_after_an_epoch_that_was_not_due_adds_nothing(tmp_path):
    pool, saver, _ = collect(
        tmp_path, [{"WER": 10.0}, {"WER": 20.0}, {"WER": 30.0}], every=2
    )
    assert names(pool) == ["run/epoch-0002"]
    saver.save_checkpoint(meta={"WER": -0.1})  # epoch 3, the fourth save
    assert names(pool) == ["run/epoch-0002"]


class Rated(MergeMixin, sb.Brain):
    """A Brain whose epochs have given error rates."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - 1).square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            rate = [30.0, 10.0, 20.0][epoch - 1]
            self.checkpointer.save_and_keep_only(
                meta={"WER": rate, "epoch": epoch}, min_keys=["WER"]
            )


@pytest.mark.parametrize("interval", [2, 3, 4])
@pytest.mark.parametrize("bounds", [{"keep_best": 1}, {}])
def test_an_interval_that_ends_with_the_epoch_hides_no_score(
    tmp_path, interval, bounds
):
    """SpeechBrain saves twice then: before it validates, and after."""
    model, counter = torch.nn.Linear(2, 1), EpochCounter(3)
    pool = CheckpointPool(
        tmp_path / "pool", {"model": model}, intra_epoch=True, **bounds
    )
    brain = Rated(
        {"model": model},
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        run_opts={
            "device": "cpu",
            "noprogressbar": True,
            "ckpt_interval_steps": interval,
        },
        checkpointer=saver_of(tmp_path, model, pool, counter=counter),
    )
    data = torch.utils.data.DataLoader(torch.randn(4, 2))
    brain.fit(counter, data, data)
    scores = [each.score for each in pool.candidates()]
    if bounds:
        assert scores == [10.0]
    else:
        assert [each for each in scores if each] == [30.0, 10.0, 20.0]
        digests = [each.digest for each in pool.candidates()]
        assert len(set(digests)) == len(digests)
    assert not list(tmp_path.rglob("quarantine"))


def test_intra_epoch_checkpoints_are_passed_over_unless_asked_for(tmp_path):
    flagged = {INTRA_EPOCH_CKPT_FLAG: True, "epoch": 1}
    for wanted in (False, True):
        model = torch.nn.Linear(2, 2)
        pool = CheckpointPool(
            tmp_path / f"pool-{wanted}",
            {"model": model},
            intra_epoch=wanted,
        )
        saver = saver_of(tmp_path / str(wanted), model, pool)
        for step in (100, 200):
            train_a_little(model)
            saver.save_checkpoint(
                meta={**flagged, "step": step}, end_of_epoch=False
            )
        assert names(pool) == (
            ["run/epoch-0001-step-000100", "run/epoch-0001-step-000200"]
            if wanted
            else []
        )


@pytest.mark.parametrize(
    "arguments, kept",
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"every": 2}, [2, 4, 6]),
        ({"keep_last": 2}, [5, 6]),
        ({"keep_best": 2}, [2, 3]),
        ({"keep_last": 1, "keep_best": 2}, [2, 3, 6]),
        ({"keep_best": 2, "mode": "max"}, [1, 6]),
        ({"keep_best": 1, "metric": "loss"}, [5]),
        ({"every": 2, "keep_best": 1}, [2]),
    ],
)
def test_a_pool_bounds_itself(tmp_path, arguments, kept):
    rates = [50.0, 10.0, 20.0, float("nan"), 30.0, 40.0]
    losses = [5.0, 4.0, 3.0, 2.0, 1.0, float("inf")]
    pool, _, _ = collect(
        tmp_path,
        [{"WER": w, "loss": x} for w, x in zip(rates, losses)],
        **arguments,
    )
    assert [candidate.epoch for candidate in pool.candidates()] == kept
    assert files(tmp_path / "pool" / "run") == [
        f"epoch-{epoch:04d}.safetensors" for epoch in kept
    ]


def test_what_is_not_kept_is_not_even_written(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 1.0}, {"WER": 2.0}], keep_best=1)
    events = [r["event"] for r in records(tmp_path / "pool" / "run")]
    assert events == ["candidate", "passed"]
    assert names(pool) == ["run/epoch-0001"]


def test_of_equal_metrics_the_newer_is_kept(tmp_path):
    pool, _, _ = collect(tmp_path, [{"WER": 5.0}] * 3, keep_best=1)
    assert names(pool) == ["run/epoch-0003"]


def test_removing_touches_nothing_but_its_own(tmp_path):
    run = tmp_path / "pool" / "run"
    run.mkdir(parents=True)
    (run / "notes.safetensors").write_text("mine")
    (run / "epoch-one.safetensors").write_text("mine")
    rates = [{"WER": 9.0 - e} for e in range(4)]
    pool, saver, model = collect(tmp_path, rates, based=True, keep_last=1)
    assert files(run) == [
        "base.safetensors",
        "epoch-0004.safetensors",
        "epoch-one.safetensors",
        "notes.safetensors",
    ]
    removed = [r["name"] for r in records(run) if r["event"] == "removed"]
    assert removed == ["epoch-0001", "epoch-0002", "epoch-0003"]
    [checkpoint] = saver.list_checkpoints()
    assert sorted(path.name for path in checkpoint.path.iterdir()) == [
        "CKPT.yaml",
        "model.ckpt",
        "pool.ckpt",
    ]


def test_a_metric_that_is_no_number_is_stored_but_never_best(tmp_path):
    pool, _, _ = collect(
        tmp_path, [{"WER": float("nan")}, {"WER": 90.0}, {}, {"WER": "low"}]
    )
    assert [c.score for c in pool.candidates()] == [None, 90.0, None, None]


def test_numpy_metrics_do_not_stop_the_pool(tmp_path):
    numpy = pytest.importorskip("numpy")
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = saver_of(tmp_path, model, pool)
    saver.save_checkpoint(
        meta={"WER": numpy.float64(12.5), "epoch": numpy.int64(3)}
    )
    [candidate] = pool.candidates()
    assert (candidate.score, candidate.epoch) == (12.5, 3)
    assert type(candidate.meta["WER"]) is float
    with pytest.raises(Exception, match="could not determine a constructor"):
        saver.list_checkpoints()  # SpeechBrain itself cannot read it


def test_the_epoch_is_found_where_the_meta_has_none(tmp_path):
    counter = EpochCounter(limit=2)
    model = torch.nn.Linear(2, 2)
    # As the Whisper and wav2vec 2.0 recipes: the counter is a recoverable
    # before the pool, and the meta is the error rate alone
    first = CheckpointPool(tmp_path / "a", {"model": model})
    saver = Checkpointer(
        tmp_path / "save", {"model": model, "counter": counter, "pool": first}
    )
    second = CheckpointPool(
        tmp_path / "b", {"model": model}, epoch_counter=counter
    )
    third = CheckpointPool(tmp_path / "c", {"model": model})
    other = Checkpointer(
        tmp_path / "other", {"model": model, "second": second, "third": third}
    )
    for epoch in counter:
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": 1.0})
        other.save_checkpoint(meta={"WER": 1.0})
    assert names(first) == ["run/epoch-0001", "run/epoch-0002"]
    assert names(second) == ["run/epoch-0001", "run/epoch-0002"]
    assert names(third) == ["run/save-0001", "run/save-0002"]


def test_a_checkpoint_saved_over_another_does_not_lend_its_epoch(tmp_path):
    counter = EpochCounter(limit=9)
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver = Checkpointer(
        tmp_path / "save", {"model": model, "pool": pool, "counter": counter}
    )
    for epoch in (1, 2):
        counter.current = epoch
        train_a_little(model, float(epoch))
        saver.save_checkpoint(meta={"WER": 1.0}, name="latest")
        now = os.stat(tmp_path / "save" / "CKPT+latest" / "CKPT.yaml")
        old = (now.st_atime, now.st_mtime - 60)
        os.utime(tmp_path / "save" / "CKPT+latest" / "counter.ckpt", old)
    assert names(pool) == ["run/save-0001", "run/save-0002"]


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 40)
            self.output = torch.nn.Linear(40, 50, bias=False)
            self.output.weight = self.embedding.weight

    model = Tied()
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    saver_of(tmp_path, model, pool).save_checkpoint(meta={"epoch": 1})
    [candidate] = pool.candidates()
    assert candidate.path.stat().st_size < 1.5 * 50 * 40 * 4
    with open_weights(candidate) as weights:
        assert weights.tied == {"model.output.weight": "model.embedding.weight"}
        assert digest(weights) == candidate.digest


def test_a_pool_is_a_few_lines_of_yaml(tmp_path):
    hparams = load_hyperpyyaml(
        f"""
        seed: 7
        model: !new:torch.nn.Linear [2, 2]
        epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
            limit: 2
        pool: !new:speechbrain_merge.pool.CheckpointPool
            folder: {tmp_path}/pool
            run: !ref seed-<seed>
            modules: {{model: !ref <model>}}
            epoch_counter: !ref <epoch_counter>
            hyperparameters: {{seed: !ref <seed>}}
        checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
            checkpoints_dir: {tmp_path}/save
            recoverables:
                model: !ref <model>
                pool: !ref <pool>
                counter: !ref <epoch_counter>
        """
    )
    for _ in hparams["epoch_counter"]:
        train_a_little(hparams["model"])
        hparams["checkpointer"].save_and_keep_only(meta={"WER": 9.0})
    candidates = hparams["pool"].candidates()
    assert [candidate.name for candidate in candidates] == [
        "seed-7/epoch-0001",
        "seed-7/epoch-0002",
    ]
    assert candidates[0].hyperparameters == {"seed": 7}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"modules": {}}, "modules: expected a dict"),
        ({"modules": {"m": 3}}, "'m' is a int"),
        ({"run": "a/b"}, "run='a/b'"),
        ({"run": ".."}, "run='..'"),
        ({"every": 0}, "every=0: expected 1 or more"),
        ({"keep_last": 0}, "keep_last=0"),
        ({"keep_best": -1}, "keep_best=-1"),
        ({"mode": "low"}, "mode='low'"),
    ],
)
def test_arguments_are_checked(tmp_path, wrong, message):
    arguments = {"modules": {"m": torch.nn.Linear(1, 1)}, **wrong}
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        CheckpointPool(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
