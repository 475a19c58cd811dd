"""Files that are broken or dangerous end in one clear error, run no code."""

import os

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_merge.weights import open_weights


class Malice:
    """Unpickling this creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("forced", [True, False])
def test_pickles_with_code_are_refused(tmp_path, monkeypatch, zipped, forced):
    if forced:
        # torch's own escape hatch must not open this door
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target = tmp_path / "created_by_malice"
    path = tmp_path / "evil.ckpt"
    content = {"weight": torch.ones(1), "x": Malice(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="evil.ckpt was not opened") as caught:
        open_weights(path)
    assert "mkdir" in str(caught.value)
    assert not target.exists()
    # In a checkpoint folder as well
    (tmp_path / "CKPT.yaml").write_text("{}")
    with pytest.raises(ValueError, match="evil.ckpt"):
        open_weights(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    state = {"a": torch.arange(50.0), "b": torch.ones(3, 3)}
    suffix = "safetensors" if kind == "safetensors" else "pt"
    whole = tmp_path / f"whole.{suffix}"
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for size in {*range(0, len(content), 7), len(content) - 1}:
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
            open_weights(cut)


def test_files_that_are_something_else(tmp_path):
    text = tmp_path / "counter.ckpt"
    text.write_text("3")
    with pytest.raises(ValueError, match="not written by torch.save"):
        open_weights(text)
    for name in ("notes.txt", "model.safetensors.123.partial"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(ValueError, match="read from files that end in"):
            open_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        open_weights(tmp_path / "list.pt")
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt"):
        open_weights(tmp_path / "empty.pt")


def test_ties_in_metadata_are_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    for text in ("no json", '{"b": "gone"}', '["b"]', '{"b": "c", "c": "a"}'):
        save_file({"a": torch.ones(1)}, path, metadata={"tied": text})
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            open_weights(path)
