"""Tensors in shards that an index does not name are not left out untold.

Authors
 * The speechbrain_merge authors 2026
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_merge.weights import open_weights

NAMES = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    """A model in two shards."""
    wanted = {}
    for number, name in enumerate(NAMES):
        state = {f"layer.{number}": torch.full((2,), float(number))}
        save_file(state, tmp_path / name)
        wanted.update(dict.fromkeys(state, name))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": wanted}))
    return tmp_path


def add(folder, name, tensors):
    """Adds tensors to a shard, or makes one of them."""
    state = {}
    if (folder / name).is_file():
        with open_weights(folder / name) as weights:
            state = {key: weights[key].clone() for key in weights}
    save_file({**state, **tensors}, folder / name)


def test_a_tensor_that_the_index_does_not_name(folder):
    assert len(open_weights(folder)) == 2
    add(folder, NAMES[1], {"layer.2": torch.ones(2)})
    with pytest.raises(ValueError, match=f"'layer.2' in {NAMES[1]}") as raised:
        open_weights(folder)
    assert "model.safetensors.index.json leaves out" in str(raised.value)


def test_a_tensor_that_is_in_two_shards(folder):
    add(folder, NAMES[1], {"layer.0": torch.zeros(2)})
    assert len(open_weights(folder)) == 2  # the same
    add(folder, NAMES[1], {"layer.0": torch.ones(2)})
    with pytest.raises(ValueError, match=f"{NAMES[1]}, which differs from"):
        open_weights(folder)


def test_a_shard_that_the_index_does_not_name(folder):
    # of an earlier model, in more shards: transformers does not read it either
    add(folder, "model-00003-of-00003.safetensors", {"old": torch.ones(2)})
    assert len(open_weights(folder)) == 2
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layer.0": NAMES[0]}}))
    with pytest.raises(ValueError, match=f"leaves out the file {NAMES[1]}"):
        open_weights(folder)
