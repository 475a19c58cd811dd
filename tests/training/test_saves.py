"""What SpeechBrain remembers of earlier saves is forgotten between trainings."""

import inspect

import killed_stages
import pytest

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.study import Study
from speechbrain_merge.training import forget_earlier_saves

SAVE = inspect.signature(Checkpointer.save_and_keep_only)


def remembered():
    """How many saves there were that later ones look at again."""
    default = SAVE.parameters["importance_keys"].default
    if not isinstance(default, list):
        pytest.skip("this SpeechBrain does not remember earlier saves")
    return len(default)


def kept(folder):
    """What is left of two checkpoints by a training that keeps the best."""
    checkpointer = Checkpointer(folder)
    for error in (1, 2):
        checkpointer.save_and_keep_only(
            meta={"WER": error}, keep_recent=False, min_keys=["WER"]
        )
    return [one.meta["WER"] for one in checkpointer.list_checkpoints()]


def test_a_training_keeps_what_it_asks_for(tmp_path):
    Checkpointer(tmp_path / "first").save_and_keep_only()
    assert remembered() == 1
    forget_earlier_saves()
    assert kept(tmp_path / "second") == [1]


def test_a_study_forgets_from_training_to_training(tmp_path, monkeypatch):
    killed_stages.study_yaml(tmp_path)
    monkeypatch.chdir(tmp_path)
    after = []

    def build(*arguments):
        run = killed_stages.build(*arguments)
        fit = run.fit

        def counted():
            begun = remembered()
            fit()
            after.append((begun, remembered()))

        run.fit = counted
        return run

    Study(
        "results",
        {name: {"train": name} for name in ("a", "b")},
        {"expert": {"hparams": "train.yaml", "with": {"number_of_epochs": 2}}},
        domains=["a", "b"],
        tests=["a"],
        checkpoint="last",
    ).run(build, {"noprogressbar": True})
    assert len(after) == 2 and after[0][1] > 0
    assert [begun for begun, _ in after] == [0, 0]
