"""Merge stages of one name in one folder, which several processes may run."""

import pytest
from ranks.stages import fit, make_brain
from tiny_recipe import tiny_ctc_data

from speechbrain_merge import MergeStage
from speechbrain_merge.records.alone import alone


@pytest.fixture
def brain(tmp_path):
    """Trained, with three candidates."""
    brain = make_brain(tmp_path, 3)
    fit(brain)
    return brain


def stage(folder, method="average"):
    """A stage that is always called the same."""
    return MergeStage(method, [folder / "pool"], name="stage")


def test_a_stage_that_another_process_runs_is_refused(brain, tmp_path):
    (tmp_path / "merge/stage").mkdir(parents=True)
    with alone(tmp_path / "merge/stage", "another"):
        with pytest.raises(ValueError, match="'stage': another process.*name"):
            brain.merge(stage(tmp_path))
        assert list((tmp_path / "merge/stage").iterdir()) == []
    done = brain.merge(stage(tmp_path))
    # what is finished is found, also while another process looks at it
    with alone(tmp_path / "merge/stage", "another"):
        assert brain.merge(stage(tmp_path)).reused and not done.reused


def test_weights_that_were_replaced_are_not_evaluated(brain, tmp_path):
    brain.merge(stage(tmp_path))
    other = make_brain(tmp_path, 3)
    other.merge(stage(tmp_path, "multislerp"))
    data = tiny_ctc_data(4)
    with pytest.raises(RuntimeError, match="merged.safetensors was replaced"):
        brain.evaluate(data, min_key="WER")
    other.evaluate(data, min_key="WER")
    brain.merge(stage(tmp_path))
    brain.evaluate(data, min_key="WER")
