"""Which files of a training a study removes when it has finished."""

import pytest
from killed_stages import build, study_yaml

from speechbrain_merge.study import Study


@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_go_and_all_else_stays(tmp_path, monkeypatch, keep):
    study_yaml(tmp_path)
    monkeypatch.chdir(tmp_path)
    saved = [tmp_path / f"study/seed-0/models/{name}/save" for name in "ab"]
    saved[0].mkdir(parents=True)
    note = saved[0] / "notes.txt"
    note.write_text("a person's")
    Study(
        "study",
        {"{domain}": {"train": "{domain}"}},
        {"expert": {"hparams": "train.yaml"}},
        domains=["a", "b"],
        keep_checkpoints=keep,
    ).run(build, {})
    assert note.read_text() == "a person's"
    if keep:
        assert all(list(folder.glob("CKPT+*")) for folder in saved)
    else:
        assert list(saved[0].iterdir()) == [note]
        assert not saved[1].exists()
