"""Weights that are elsewhere than their record says, and their short names.

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_merge.cli import main
from speechbrain_merge.weights import digest, write_weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two experts and a base of a study, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("base", "a", "b")):
        path = Path("results", "pool", f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, {"encoder.w": torch.full((2, 2), float(number))})
    return tmp_path


def merged(*experts, **parameters):
    """The exit code of a merge into the working folder's study."""
    return main(
        [
            *("merge", "task_arithmetic", *experts),
            *("--base", "results/pool/base.safetensors", "--different-bases"),
            *("--parameters", str(parameters), "--quiet"),
            *("-o", "results/merged.safetensors"),
        ]
    )


def test_a_folder_that_was_moved_whole(folder, capsys):
    """Its merges could not be made again: paths on record were relative."""
    experts = [f"results/pool/{name}.safetensors" for name in "ab"]
    assert merged(*experts, scale=0.5) == 0
    Path("results").rename("moved")
    line = ["again", "moved/merged.safetensors", "-o", "copy.safetensors"]
    assert main([*line, "--quiet"]) == 0
    assert digest("copy.safetensors") == digest("moved/merged.safetensors")
    assert main(["inspect", "--verify", "moved/merged.safetensors"]) == 0
    # another file of that name is not taken for it
    write_weights("moved/pool/b.safetensors", {"encoder.w": torch.ones(2, 2)})
    line[-1] = "other.safetensors"
    assert main([*line, "--quiet"]) == 2
    assert "b.safetensors was merged" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["", ".safetensors"])
@pytest.mark.parametrize("above", ["", "pool/"])
def test_coefficients_by_the_names_of_files(folder, monkeypatch, above, ending):
    """As they are given, in the folder that they lie in or elsewhere."""
    names = [f"{above}{name}{ending}" for name in "ab"]
    scale = {"experts": dict(zip(names, (0.5, 0.25)))}
    experts = [f"results/pool/{name}.safetensors" for name in "ab"]
    assert merged(*experts, scale=scale) == 0
    found = load_file("results/merged.safetensors")["encoder.w"]
    assert torch.equal(found, torch.ones(2, 2))


def test_a_name_that_two_experts_have(folder, capsys):
    for run in "12":
        path = Path(f"results/run{run}/a.safetensors")
        path.parent.mkdir()
        write_weights(path, {"encoder.w": torch.ones(2, 2)})
    experts = ["results/run1/a.safetensors", "results/run2/a.safetensors"]
    assert merged(*experts, scale={"experts": {"a": 0.5}}) == 2
    told = capsys.readouterr().err
    assert "must name each expert once: ['a']" in told and "run1/a" in told
