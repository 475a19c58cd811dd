"""Studies of a recipe whose normaliser gathers its statistics in training."""

import pytest
import torch
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import CheckpointPool, MergeMixin, Run
from speechbrain_merge.study import Study


class ASR(MergeMixin, TinyCTC):
    """The tiny recipe, for merging."""


@pytest.fixture
def study(tmp_path):
    """A study that tests the original on one set."""
    path = tmp_path / "train.yaml"
    path.write_text("seed: 1\noutput_folder: results\n")
    return Study(
        tmp_path / "study",
        {"original": {}},
        {"expert": {"hparams": path}},
        domains=["a"],
    )


def builder(folder, statistics):
    """The `build` of a recipe, with or without statistics."""

    def build(hparams_file, overrides, run_opts):
        model = tiny_network()
        pool = CheckpointPool(folder / "pool", {"model": model})
        brain = tiny_ctc_brain(folder, model, ASR, recoverables={"pool": pool})
        data = tiny_ctc_data(3)
        if statistics:
            features = torch.cat([row["feats"] for row in data])
            brain.modules.normalize(features[None])
        return Run(brain, print, data, {"a": data}, {"a": data})

    return build


def test_a_normaliser_without_statistics_is_named(study, tmp_path):
    with pytest.raises(ValueError, match="'normalize'.*no statistics.*build"):
        study.run(builder(tmp_path, statistics=False))


def test_statistics_that_build_loads_are_used(study, tmp_path):
    results = study.run(builder(tmp_path, statistics=True))
    [row] = results["rows"]
    assert row["sets"]["0"]["usual"]["a"]["words"] > 0
