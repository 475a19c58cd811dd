"""What is exported stays as it is while it is exported.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from pathlib import Path

import pytest
import torch
from tiny_models import inference_yaml

from speechbrain_merge import merge
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.records.signing import Signer

WEIGHTS = {"enc.weight": torch.ones(2, 3), "enc.bias": torch.ones(2)}


class Replacing(Signer):
    """Replaces the source when an export asks whether it can be signed.

    Its weights have been read by then, and its record has not.
    """

    def __init__(self, change):
        self.change = change

    def check(self, output=None):
        """Replaces it."""
        self.change()

    def sign(self, output):
        """Signs nothing."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A YAML for inference, and two merged models."""
    monkeypatch.chdir(tmp_path)
    Path("h.yaml").write_text(inference_yaml(WEIGHTS))
    for value in (1.0, 2.0):
        state = {name: value * each for name, each in WEIGHTS.items()}
        merge(
            "average",
            [state],
            output=f"{value}.safetensors",
            progress=False,
        )
    return tmp_path


@pytest.mark.parametrize("how", ["replaced", "written", "removed"])
def test_a_source_that_changes_is_refused(folder, how):
    def change():
        if how == "replaced":
            os.replace("2.0.safetensors", "1.0.safetensors")
        elif how == "removed":
            os.remove("1.0.safetensors")
        else:
            with open("1.0.safetensors", "r+b") as file:
                file.write(Path("2.0.safetensors").read_bytes())

    if how == "removed":
        expected, said = (ValueError, OSError), "1.0.safetensors"
    else:
        expected, said = ValueError, "1.0.safetensors was replaced, written"
    before = export_pretrained("1.0.safetensors", "h.yaml", "exported")
    kept = {path.name: path.read_bytes() for path in before.iterdir()}
    with pytest.raises(expected, match=said):
        export_pretrained(
            "1.0.safetensors", "h.yaml", "exported", sign=Replacing(change)
        )
    assert kept == {path.name: path.read_bytes() for path in before.iterdir()}


def test_a_file_of_a_folder_that_changes_is_refused(folder):
    source = Path("CKPT+1")
    source.mkdir()
    (source / "CKPT.yaml").write_text("WER: 3.0\nunixtime: 1.0\n")
    state = {name.partition(".")[2]: each for name, each in WEIGHTS.items()}
    torch.save(state, source / "enc.ckpt")
    torch.save(state, "other.ckpt")

    def change():
        os.replace("other.ckpt", source / "enc.ckpt")

    with pytest.raises(ValueError, match=r"enc\.ckpt was replaced"):
        export_pretrained(source, "h.yaml", "exported", sign=Replacing(change))
    assert not Path("exported").exists()
    # a file of nobody's that comes in meanwhile is no part of it
    note = source / "note.txt"
    export_pretrained(source, "h.yaml", "out", sign=Replacing(note.touch))
