"""A merge that cannot be made is refused before the training, not after it."""

import re

import pytest
import torch
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import MergeMixin, MergeStage
from speechbrain_merge.methods import (
    Average,
    LayerScaled,
    Restricted,
    TaskArithmetic,
)
from speechbrain_merge.pool import CheckpointPool
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import write_weights


class Merging(MergeMixin, TinyCTC):
    """A recipe's Brain."""


def training(folder, method="average", pool=None, epochs=2, **stage):
    """A Brain with a pool and a merge stage in its hyperparameters."""
    model = tiny_network()
    collected = CheckpointPool(
        folder / "pool", {"model": model}, **(pool or {})
    )
    return tiny_ctc_brain(
        folder,
        model,
        Merging,
        epochs=epochs,
        recoverables={"pool": collected},
        merge_stage=MergeStage(method, [folder / "pool"], **stage),
    )


def fit(brain):
    data = tiny_ctc_data(6)
    brain.fit(brain.hparams.epoch_counter, data, data)


def refused(brain, message):
    """``fit`` says so, and has not begun: nothing is written."""
    with pytest.raises(ValueError, match=message):
        fit(brain)
    assert brain.optimizer_step == 0
    assert not (brain.pools()[0].folder).exists()


NO_DEFAULT = {"parts": {"encoder": 0.5}}


@pytest.mark.parametrize(
    "method",
    [
        TaskArithmetic(NO_DEFAULT),
        Average(NO_DEFAULT),
        LayerScaled(TaskArithmetic(NO_DEFAULT), first=0, last=1),
        TaskArithmetic({"experts": {"a": NO_DEFAULT, "b": 1.0}}),
        TaskArithmetic({"parts": {"re:.": 1.0, "encoder": NO_DEFAULT}}),
    ],
    ids=str,
)
def test_a_part_without_a_coefficient(tmp_path, method):
    if "re:." in str(method):  # the first pattern takes all
        fit(training(tmp_path, method))
        return
    refused(
        training(tmp_path, method),
        r"Merge stage '\w+': `(scale|weights)`: No pattern of \['encoder'\] "
        r"matches model\.\w+\.\w+: add a 'default'",
    )


def test_a_restriction_to_what_is_not_there(tmp_path):
    refused(
        training(tmp_path, Restricted("average", include="decoder")),
        r"no tensor of the model matches include='decoder'",
    )


def test_coefficients_that_cover_the_model_are_no_trouble(tmp_path):
    method = Restricted(
        TaskArithmetic({"parts": {"*hidden*": 0.5, "*ctc*": 1.0}}),
        include=["*hidden*", "*ctc*"],
    )
    fit(training(tmp_path, method))


def test_a_base_that_is_not_there(tmp_path):
    missing = str(tmp_path / "whisper" / "model.safetensors")
    refused(
        training(tmp_path, "task_arithmetic", base=missing),
        f"Merge stage 'task_arithmetic': `base`: .*{re.escape(missing)}",
    )


def test_a_base_of_another_model(tmp_path):
    other = {
        f"model.{name}": torch.zeros(3, 3)
        for name in tiny_network().state_dict()
    }
    write_weights(tmp_path / "other.safetensors", other)
    refused(
        training(tmp_path, "ties", base=str(tmp_path / "other.safetensors")),
        "(?s)Merge stage 'ties': `base`: .*shape",
    )


def test_the_right_base_is_no_trouble(tmp_path):
    state = {
        f"model.{name}": tensor
        for name, tensor in tiny_network().state_dict().items()
    }
    write_weights(tmp_path / "base.safetensors", state)
    fit(training(tmp_path, "ties", base=str(tmp_path / "base.safetensors")))


def test_a_pool_that_keeps_no_base(tmp_path):
    refused(
        training(tmp_path, "ties", pool={"base": False}),
        "'ties' needs the weights that the experts start from.*base: False",
    )


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(10**6, 10**6, 4000)
    )
    refused(
        training(tmp_path, epochs=30),
        r"too small for the pool .*: up to 30 candidates of 1\.\d kB, in all "
        r"4\d\.\d kB; 4\.0 kB are free. Keep fewer",
    )
    fit(training(tmp_path, epochs=30, pool={"keep_last": 1, "base": False}))


def test_a_tracker_that_the_recipe_does_not_have(tmp_path):
    brain = training(
        tmp_path, search=GreedySearch(), tracker="cer_metric", epochs=5
    )
    with pytest.raises(
        ValueError, match="`cer_metric`, and after.*here wer_metric"
    ):
        fit(brain)
    # after the first epoch, whose checkpoint is not lost
    assert brain.stats[-1][:2] == ("VALID", 1)
    assert len(brain.checkpointer.list_checkpoints()) == 1


def test_stages_of_other_trainings_are_not_looked_at(tmp_path):
    brain = training(tmp_path)
    brain.hparams.other = {
        "stages": [
            MergeStage(TaskArithmetic(NO_DEFAULT), [tmp_path / "elsewhere"])
        ]
    }
    fit(brain)
