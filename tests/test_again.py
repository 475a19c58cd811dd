"""A merge made again, to the same bytes, wherever its sources are now."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import inference_yaml
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain_merge import MergeMixin, MergeStage, merge
from speechbrain_merge.cli import main
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.methods import Fisher, TaskArithmetic
from speechbrain_merge.pool import CheckpointPool
from speechbrain_merge.weights import digest, tree_hash, write_weights


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a base and experts, which all have the same file name."""
    project = tmp_path / "project"
    for seed, name in enumerate(("base", "a", "b", "c")):
        torch.manual_seed(seed)
        tensors = {
            f"asr.encoder.layers.{layer}.fc1.weight": torch.randn(6, 5)
            for layer in range(2)
        }
        (project / name).mkdir(parents=True)
        write_weights(project / name / "model.safetensors", tensors)
    (project / "hyperparams.yaml").write_text(inference_yaml(tensors))
    monkeypatch.chdir(tmp_path)
    return project


def weights(project, name):
    """Where the weights of a model are, as an absolute path."""
    return str(project / name / "model.safetensors")


def exported(project):
    """A merge of absolute paths, by coefficients of these, exported."""
    experts = [weights(project, name) for name in "ab"]
    scale = {"experts": dict(zip(experts, (0.2, 0.7)))}
    merged = merge(
        TaskArithmetic(scale=scale),
        experts,
        weights(project, "base"),
        project / "merged.safetensors",
        same_base=False,
        progress=False,
    )
    yaml = project / "hyperparams.yaml"
    return export_pretrained(merged, yaml, project / "exported")


def again(model, *more):
    """The bytes of a merge that is made again."""
    output = Path("copy.safetensors")
    output.unlink(missing_ok=True)
    command = ["again", str(model), "-o", str(output), "--quiet", *more]
    assert main(command) == 0
    return output.read_bytes()


def fault(capsys, *command):
    """The one line of an error."""
    capsys.readouterr()
    assert main([*map(str, command), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_export_says_nothing_of_the_machine(project, tmp_path):
    folder = exported(project)
    for file in folder.rglob("*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    card = (folder / "README.md").read_text()
    assert "| ../a/model.safetensors | `" in card
    assert tree_hash(weights(project, "base")) in card


def test_an_export_and_its_sources_may_move(project, tmp_path, capsys):
    folder = exported(project)
    known = json.loads((folder / "merge.json").read_text())["digest"]
    first = again(folder)
    assert digest("copy.safetensors") == known
    copy, merged = (
        load_file(path)
        for path in ("copy.safetensors", project / "merged.safetensors")
    )
    assert copy.keys() == merged.keys()
    assert all(torch.equal(copy[name], merged[name]) for name in merged)
    moved = project.rename(tmp_path / "moved")
    assert again(moved / "exported") == first
    assert main(["inspect", "--verify", str(moved / "exported")]) == 0
    assert capsys.readouterr().out.count("as recorded") == 3


def test_a_merged_file_and_its_sources_may_move(project, tmp_path):
    exported(project)
    first = (project / "merged.safetensors").read_bytes()
    assert again(project / "merged.safetensors") == first
    moved = project.rename(tmp_path / "moved")
    assert again(moved / "merged.safetensors") == first


def test_what_is_elsewhere_is_given(project, tmp_path, capsys):
    folder = exported(project)
    first = again(folder)
    Path("copy.safetensors").unlink()
    shutil.move(project / "a", tmp_path / "an=other")
    command = ("again", folder, "-o", "copy.safetensors")
    line = fault(capsys, *command)
    assert "--source '../a/model.safetensors=PATH'" in line
    wrong = f"../a/model.safetensors={weights(project, 'c')}"
    assert "is not what was merged" in fault(
        capsys, *command, "--source", wrong
    )
    line = fault(capsys, *command, "--source", f"d={weights(project, 'c')}")
    assert "no source is called 'd'" in line and "base" in line
    line = fault(capsys, *command, "--source", "../a/model.safetensors=gone")
    assert "expected NAME=PATH" in line
    assert not Path("copy.safetensors").exists()
    place = tmp_path / "an=other" / "model.safetensors"
    for name in ("../a/model.safetensors", tree_hash(place)):
        assert again(folder, "--source", f"{name}={place}") == first
    base = f"base={weights(project, 'base')}"
    given = ["--source", f"../a/model.safetensors={place}", "--source", base]
    assert again(folder, *given) == first


def test_a_merge_of_merges_may_move(project, tmp_path, capsys):
    half = merge(
        "average",
        [weights(project, name) for name in "ab"],
        output=str(project / "half.safetensors"),
        same_base=False,
        progress=False,
    )
    whole = merge(
        "average",
        [half, weights(project, "c")],
        output=project / "whole.safetensors",
        same_base=False,
        progress=False,
    )
    yaml = project / "hyperparams.yaml"
    folder = export_pretrained(whole, yaml, project / "exported")
    first = again(folder)
    moved = project.rename(tmp_path / "moved")
    assert again(moved / "exported") == first
    assert main(["inspect", "--verify", str(moved / "exported")]) == 0
    assert capsys.readouterr().out.count("as recorded") == 4


def test_statistics_may_move(project, tmp_path):
    experts = [weights(project, name) for name in "ab"]
    statistics = []
    for expert in experts:
        tensors = {name: each**2 for name, each in load_file(expert).items()}
        statistics.append(Path(expert).with_name("fisher.safetensors"))
        write_weights(statistics[-1], tensors)
    merged = merge(
        Fisher(list(map(str, statistics))),
        experts,
        output=project / "merged.safetensors",
        same_base=False,
        progress=False,
    )
    yaml = project / "hyperparams.yaml"
    folder = export_pretrained(merged, yaml, project / "exported")
    first = again(folder)
    moved = project.rename(tmp_path / "moved")
    assert again(moved / "exported") == first
    assert again(moved / "merged.safetensors") == (
        (moved / "merged.safetensors").read_bytes()
    )


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges."""


@pytest.mark.parametrize("method", ["average", "ties"])
def test_what_a_stage_merged_is_made_again(tmp_path, monkeypatch, method):
    """Its candidates are on record by their tensors."""
    monkeypatch.chdir(tmp_path)
    model, data = tiny_network(), tiny_ctc_data(8)
    pool = CheckpointPool("results/pool", {"model": model})
    brain = tiny_ctc_brain(
        "results", model, MergingCTC, recoverables={"pool": pool}
    )
    brain.fit(brain.hparams.epoch_counter, data, data)
    found = brain.merge(MergeStage(method, [pool], folder="results/merge"))
    assert again(str(found.path)) == found.path.read_bytes()
    # another candidate in its place is found all the same
    first = pool.candidates()[0].path
    tensors = {name: each + 1 for name, each in load_file(first).items()}
    write_weights(first, tensors)
    command = ["again", str(found.path), "-o", "copy.safetensors", "--quiet"]
    assert main(command) == 2
