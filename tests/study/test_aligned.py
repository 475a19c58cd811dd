"""Models of a study that are aligned to others."""

import pytest
import torch
from methods.transport_models import build
from other_device import OtherDevice

from speechbrain_merge.methods.transport import align
from speechbrain_merge.study import Study
from speechbrain_merge.study.making import Maker
from speechbrain_merge.weights import open_weights, write_weights

KIND = "conformer-RelPosMHAXL-ctc"
LITERALLY = {"exact": True, "sweeps": 0, "distance": "euclidean"}


@pytest.fixture
def study(tmp_path):
    """Makes a study of three loaded models, one of them aligned."""
    (tmp_path / "train.yaml").write_text("seed: 1\n")
    for seed, name in enumerate("abc", 1):
        write_weights(
            tmp_path / f"{name}.safetensors", build(KIND, seed).state_dict()
        )

    def make(source="a", anchor="b", more=None, **parameters):
        models = {
            name: {"load": str(tmp_path / f"{name}.safetensors")}
            for name in "abc"
        }
        models["aligned"] = {
            "align": source,
            "to": anchor,
            "parameters": parameters,
            **(more or {}),
        }
        planned = Study(
            tmp_path / "study",
            models,
            {"expert": {"hparams": tmp_path / "train.yaml"}},
            tests=["a"],
        )
        nodes = {node.name: node for node in planned.plans[0]}
        return Maker(planned, 0, nodes, None, {}).make("aligned").path

    make.folder = tmp_path
    return make


def tensors(path):
    """All of a file."""
    with open_weights(path) as weights:
        return {name: weights[name].clone() for name in weights}


def same(first, second):
    """Whether two states are equal to the bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_an_aligned_model_is_made_with_the_options_of_the_yaml(study):
    one, other = (study.folder / f"{name}.safetensors" for name in "ab")
    for parameters in ({}, LITERALLY):
        assert same(
            tensors(study(**parameters)), align(one, other, **parameters)
        )
    assert not same(align(one, other), align(one, other, **LITERALLY))


def test_an_aligned_model_is_reused_only_where_it_is_the_very_one(study):
    def written(*models, **parameters):
        path = study.folder / "study/seed-0/aligned/aligned.safetensors"
        before = path.stat().st_mtime_ns if path.exists() else None
        assert study(*models, **parameters) == path
        return path.stat().st_mtime_ns != before

    assert written() and not written()
    for models in (("c", "b"), ("a", "c"), ("a", "b")):
        assert written(*models) and not written(*models)
    assert written(**LITERALLY) and not written(**LITERALLY)
    path = study(**LITERALLY)
    mine = path.read_bytes()
    write_weights(path, tensors(study.folder / "c.safetensors"))
    assert written(**LITERALLY) and not written(**LITERALLY)
    assert path.read_bytes() == mine
    path.unlink()
    study(**LITERALLY)
    assert path.read_bytes() == mine
    # the same name, other weights
    write_weights(study.folder / "a.safetensors", build(KIND, 4).state_dict())
    assert written(**LITERALLY)


def test_distances_are_computed_where_the_yaml_says(study):
    expected = tensors(study())
    study.folder.joinpath("study/seed-0/aligned/aligned.safetensors").unlink()
    with OtherDevice() as other:
        found = tensors(study(more={"device": "cuda"}))
    assert other.computed["addmm"] > 0
    assert same(found, expected)
