"""Moving averages: by hand, through a kill, and in a recipe by YAML alone."""

import gc
from textwrap import dedent

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge import MergeMixin
from speechbrain_merge.pool import CheckpointPool
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.training import MovingAverage, SlantedTriangularScheduler


class Merging(MergeMixin, TinyCTC):
    """A recipe's Brain."""


def walk(parameter, optimizer, values):
    """Steps of an optimizer (SGD, rate 1) to these values."""
    for value in values:
        parameter.grad = parameter.detach() - value
        optimizer.step()


def one_weight():
    """A module of one weight, and an optimizer for ``walk``."""
    model = torch.nn.Linear(1, 1, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_the_exponential_average_by_hand(decay):
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, decay=decay)
    values = [3.0, -1.0, 2.0, 5.0, 0.5, 4.0]
    walk(model.weight, optimizer, values)
    expected = 0.0
    for number, value in enumerate(values, 1):
        expected += max(1 - decay, 1 / number) * (value - expected)
    assert float(average.weights()["m.weight"]) == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_the_first_updates_are_a_plain_mean():
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, decay=0.999)
    walk(model.weight, optimizer, [1.0, 2.0, 6.0])
    assert float(average.weights()["m.weight"]) == pytest.approx(3.0)


def test_a_window_is_the_mean_of_the_latest_snapshots():
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, window=2, every=3)
    walk(model.weight, optimizer, range(1, 12))
    # snapshots after steps 3, 6 and 9, of which two are kept
    assert float(average.weights()["m.weight"]) == 7.5


def test_every_leaves_steps_out():
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, decay=0.8, every=2)
    walk(model.weight, optimizer, [9.0, 1.0, 9.0, 3.0, 9.0])
    # 0.8 ** 2 for two steps: 1 - 0.64 is less than a half
    assert float(average.weights()["m.weight"]) == pytest.approx(2.0)


def test_each_tensor_goes_by_its_own_optimizer():
    models = {name: torch.nn.Linear(1, 1, bias=False) for name in "ab"}
    optimizers = {
        name: torch.optim.SGD(model.parameters(), lr=1.0)
        for name, model in models.items()
    }
    other = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(models, decay=0.9)
    walk(models["a"].weight, optimizers["a"], [2.0, 4.0])
    walk(models["b"].weight, optimizers["b"], [1.0])
    walk(other.weight, torch.optim.SGD(other.parameters(), lr=1.0), [5.0])
    weights = average.weights()
    assert float(weights["a.weight"]) == 3.0
    assert float(weights["b.weight"]) == 1.0


def test_frozen_tensors_buffers_ties_and_integers():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False),
        torch.nn.BatchNorm1d(2),
        torch.nn.Linear(2, 2, bias=False),
        torch.nn.Linear(2, 2, bias=False),
    )
    model[2].weight = model[0].weight
    model[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1
    )
    average = MovingAverage({"m": model}, decay=0.9)
    seen = []
    for _ in range(3):
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        seen.append(model[1].running_mean.clone())
    weights = average.weights()
    torch.testing.assert_close(
        weights["m.1.running_mean"], torch.stack(seen).mean(0)
    )
    assert weights["m.1.num_batches_tracked"] == 3
    assert torch.equal(weights["m.3.weight"], model[3].weight)
    assert "m.2.weight" not in weights  # as m.0.weight


def test_in_modules_and_back_also_after_an_error():
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, decay=0.9)
    with average.in_modules():
        assert not average.ready  # nothing to put there yet
    walk(model.weight, optimizer, [1.0, 3.0])
    with pytest.raises(RuntimeError, match="no memory"):
        with average.in_modules():
            assert model.weight.item() == 2.0
            with average.in_modules():  # as a pool inside a validation
                assert model.weight.item() == 2.0
            assert model.weight.item() == 2.0
            raise RuntimeError("no memory")
    assert model.weight.item() == 3.0


def test_half_precision_is_averaged_in_float32():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    average = MovingAverage({"m": model}, decay=0.9999)
    values = [1.0, 1.001, 1.002, 1.0, 1.001]
    walk(model.weight, optimizer, values)
    kept = average.weights()["m.weight"]
    assert kept.dtype == torch.float16
    assert average._average["m.weight"].dtype == torch.float32


def test_an_average_does_not_outlive_its_owner():
    model, optimizer = one_weight()
    average = MovingAverage({"m": model})
    walk(model.weight, optimizer, [1.0])
    del average
    gc.collect()
    walk(model.weight, optimizer, [2.0])


@pytest.mark.parametrize("settings", [{"decay": 0.9}, {"window": 3}])
def test_resuming_goes_on_to_the_bit(tmp_path, settings):
    """Four epochs at once, or two, and then two in another process's place."""
    data = tiny_ctc_data(24)

    def trained(folder, epochs):
        """The average after so many epochs, from whatever is in a folder."""
        torch.manual_seed(5)
        model = tiny_network()
        average = MovingAverage({"model": model}, every=2, **settings)
        brain = tiny_ctc_brain(
            folder,
            model,
            Merging,
            epochs=epochs,
            recoverables={"average": average},
        )
        brain.fit(
            brain.hparams.epoch_counter,
            data,
            data,
            train_loader_kwargs={"batch_size": 5},
        )
        return average

    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 2)
    parts = trained(tmp_path / "parts", 4)
    assert whole.ready and whole._steps == parts._steps
    for name, tensor in whole.weights().items():
        assert torch.equal(parts.weights()[name], tensor), name


def test_a_recipe_validates_tests_and_collects_the_average(tmp_path):
    """By YAML alone; the checkpoints hold the modules' own weights."""
    text = """
        model: !apply:tiny_recipe.tiny_network
        average: !new:speechbrain_merge.training.MovingAverage
            modules: {model: !ref <model>}
            decay: 0.95
            use_average: True
        pool: !new:speechbrain_merge.pool.CheckpointPool
            folder: !ref <folder>/pool
            modules: {model: !ref <model>}
            average: !ref <average>
    """
    hparams = load_hyperpyyaml(f"folder: {tmp_path}\n{dedent(text)}")
    average = hparams["average"]
    data, seen = tiny_ctc_data(24), []

    class Watching(Merging):
        """Notes which weights each stage works with."""

        def compute_forward(self, batch, stage):
            weight = self.modules.model.ctc_lin.weight.detach().clone()
            seen.append((stage.name, weight))
            return super().compute_forward(batch, stage)

        def on_stage_end(self, stage, stage_loss, epoch=None):
            weight = self.modules.model.ctc_lin.weight.detach().clone()
            seen.append((f"end {stage.name}", weight))
            super().on_stage_end(stage, stage_loss, epoch)

    brain = tiny_ctc_brain(
        tmp_path,
        hparams["model"],
        Watching,
        epochs=3,
        recoverables={"average": average, "pool": hparams["pool"]},
    )
    brain.fit(brain.hparams.epoch_counter, data, data)
    known = dict(seen)  # the last of each
    mean = average.weights()["model.ctc_lin.weight"]
    assert torch.equal(known["VALID"], mean)
    own = hparams["model"].ctc_lin.weight.detach()
    assert torch.equal(known["end VALID"], own)
    assert not torch.equal(own, mean)
    saved = brain.checkpointer.find_checkpoint(max_key="epoch")
    kept = torch.load(saved.paramfiles["model"], weights_only=True)
    assert torch.equal(kept["ctc_lin.weight"], own)
    collected = load_file(hparams["pool"].candidates()[-1].path)
    assert torch.equal(collected["model.ctc_lin.weight"], mean)
    # the error rate that the checkpoint has is that of the average
    brain.evaluate(data, max_key="epoch")
    known = dict(seen)
    assert torch.equal(known["TEST"], mean)
    assert torch.equal(known["end TEST"], mean)
    assert brain.stats[-1][3] == pytest.approx(saved.meta["WER"])
    assert torch.equal(hparams["model"].ctc_lin.weight, own)


def test_a_merge_is_evaluated_itself(tmp_path):
    """What ``use_weights`` promises goes before an average."""
    model = tiny_network()
    average = MovingAverage({"model": model}, decay=0.9, use_average=True)
    pool = CheckpointPool(tmp_path / "pool", {"model": model})
    brain = tiny_ctc_brain(
        tmp_path,
        model,
        Merging,
        recoverables={"average": average, "pool": pool},
    )
    data = tiny_ctc_data(12)
    brain.fit(brain.hparams.epoch_counter, data, data)
    seen = []
    forward = model.forward
    model.forward = lambda *args: (
        seen.append(model.ctc_lin.weight.detach().clone()),
        forward(*args),
    )[1]
    first = pool.candidates()[0]
    brain.use_weights(first.path)
    brain.evaluate(data)
    expected = load_file(first.path)["model.ctc_lin.weight"]
    assert torch.equal(seen[0], expected)


def test_the_files_of_another_checkpoint_are_refused(tmp_path):
    """Put there by a copy into the wrong folder."""
    model, optimizer = one_weight()
    recoverables = {
        "average": MovingAverage({"m": model}),
        "schedule": SlantedTriangularScheduler(20),
    }
    saver = Checkpointer(tmp_path, recoverables)
    saved = []
    for step in range(2):
        recoverables["schedule"](optimizer)
        walk(model.weight, optimizer, [float(step)])
        saved.append(saver.save_checkpoint(name=f"{step}").path)
    saver.recover_if_possible()
    for name in recoverables:
        path = saved[1] / f"{name}.ckpt"
        whole = path.read_bytes()
        path.write_bytes((saved[0] / path.name).read_bytes())
        with pytest.raises(RecordError, match=f"{name}.ckpt was saved with an"):
            saver.recover_if_possible()
        path.write_bytes(whole)
    assert saver.recover_if_possible().path == saved[1]


def test_a_damaged_or_other_file_is_named(tmp_path):
    model, optimizer = one_weight()
    average = MovingAverage({"m": model}, window=2)
    walk(model.weight, optimizer, [1.0])
    path = tmp_path / "average.ckpt"
    average.save(path)
    with pytest.raises(RecordError, match="snapshots.*window=None"):
        MovingAverage({"m": model}).load(path, True)
    whole = path.read_bytes()
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    for damaged in (whole[:-3], changed, whole.replace(b"updates", b"Updates")):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match="average.ckpt does not hold"):
            average.load(path, True)
    # as earlier versions wrote it
    path.write_bytes(whole)
    save_file(load_file(path), path)
    average.load(path, True)
    assert average.ready


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"modules": torch.nn.Linear(1, 1)}, "`modules`"),
        ({"decay": 1}, "`decay` must be a number at least 0 and below 1"),
        ({"window": 0}, "`window` must be a whole number"),
        ({"every": 0.5}, "`every` must be a whole number"),
    ],
)
def test_wrong_arguments(arguments, message):
    given = {"modules": {"m": torch.nn.Linear(1, 1)}, **arguments}
    with pytest.raises(ValueError, match=message):
        MovingAverage(**given)


def test_a_pool_of_other_modules_is_refused(tmp_path):
    one, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="no average of 'other'"):
        CheckpointPool(
            tmp_path, {"other": other}, average=MovingAverage({"one": one})
        )
