"""The aligned models that the Conformer recipe's landscapes walk to."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from methods.transport_models import BANDS, HEADS, build

from speechbrain_merge.methods import OptimalTransport
from speechbrain_merge.methods.transport import align, unit_activations
from speechbrain_merge.weights import open_weights, write_weights

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/SpeechDomains/ASR/conformer"
KIND = "conformer-RelPosMHAXL-ctc"


@pytest.fixture
def write_aligned(monkeypatch):
    """The recipe's function, from the recipe's folder."""
    monkeypatch.syspath_prepend(str(RECIPE))
    yield importlib.import_module("landscapes").write_aligned
    sys.modules.pop("landscapes")


@pytest.fixture
def parents(tmp_path):
    """Files of three models from different starts."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2, 3)]
    for seed, path in enumerate(paths, 1):
        write_weights(path, build(KIND, seed).state_dict())
    return paths


def tensors(path):
    """All of a file."""
    with open_weights(path) as weights:
        return {name: weights[name].clone() for name in weights}


def same(first, second):
    """Whether two states are equal to the bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_an_aligned_model_is_that_of_the_fusions_options(
    write_aligned, parents, tmp_path
):
    source, anchor, _ = parents
    path = tmp_path / "aligned.safetensors"
    for options in ({}, {"exact": True, "sweeps": 0, "distance": "euclidean"}):
        settings = OptimalTransport(**options).alignment_options
        write_aligned(source, anchor, settings, None, path)
        assert same(tensors(path), align(source, anchor, **options))
    assert not same(tensors(path), align(source, anchor))


def test_an_aligned_model_is_reused_only_where_it_is_the_very_one(
    write_aligned, parents, tmp_path
):
    source, anchor, other = parents
    path = tmp_path / "aligned.safetensors"
    options = OptimalTransport().alignment_options

    def written(*models, seen=None):
        before = path.stat().st_mtime_ns if path.exists() else None
        write_aligned(*models, options, seen, path)
        return path.stat().st_mtime_ns != before

    assert written(source, anchor)
    assert not written(source, anchor)
    for pair in ((other, anchor), (source, other), (source, anchor)):
        assert written(*pair) and not written(*pair)
        assert same(tensors(path), align(*pair))
    # the same name, other weights
    write_weights(source, build(KIND, 4).state_dict())
    assert written(source, anchor)
    assert same(tensors(path), align(source, anchor))
    # a file that somebody else has put there, or changed
    state, notes = tensors(path), None
    with open_weights(path) as weights:
        notes = dict(weights.metadata)
    name = "ctc_lin.w.bias"
    for metadata in (notes, {}):
        write_weights(path, {**state, name: state[name] + 1}, metadata)
        assert written(source, anchor)
        assert same(tensors(path), state)
    seen = {}
    for which, model in zip(("anchor", "source"), (2, 4)):
        model = build(KIND, model).float()
        for module in model.modules():
            if hasattr(module, "emb_dtype"):
                module.emb_dtype = torch.float32
        seen[which] = tmp_path / f"{which}.safetensors"
        draw = torch.Generator().manual_seed(5)
        speech = torch.randn(2, 30, BANDS, generator=draw)
        write_weights(seen[which], activations(model, speech))
    assert written(source, anchor, seen=seen)
    assert not written(source, anchor, seen=seen)
    write_weights(
        seen["source"],
        {name: one.flip(0) for name, one in tensors(seen["source"]).items()},
    )
    assert written(source, anchor, seen=seen)


def activations(model, speech):
    """What the units of a model do."""

    def forward(one, features):
        one(features)
        return torch.tensor([1.0, 0.7])

    return unit_activations(model, [speech], forward, heads=HEADS)
