"""Tensors under two names are found, stored once and given back under both."""

import json

import pytest
import torch
from safetensors import safe_open

from speechbrain_merge.weights import (
    common_ties,
    find_ties,
    open_weights,
    write_weights,
)


def tied_state():
    shared = torch.randn(5, 4)
    return {
        "embedding": shared,
        "other": torch.randn(5, 4),
        "output": shared,
        "transposed": shared.T,
        "row": shared[0],
        "again": shared,
    }


def test_only_the_very_same_tensor_is_a_tie():
    ties = find_ties(tied_state())
    assert ties == {"output": "embedding", "again": "embedding"}


def test_empty_tensors_have_no_address():
    state = {name: torch.empty(0) for name in "abc"}
    assert find_ties(state) == {}


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_keep_ties(tmp_path, zipped):
    state = tied_state()
    path = tmp_path / "model.ckpt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as weights:
        assert weights.tied == {"output": "embedding", "again": "embedding"}
    (tmp_path / "CKPT.yaml").write_text("{}")
    with open_weights(tmp_path) as weights:
        assert weights.tied == {
            "model.output": "model.embedding",
            "model.again": "model.embedding",
        }
    with open_weights(tmp_path, recoverable="model") as weights:
        assert weights.tied == find_ties(state)


def test_safetensors_store_a_tie_once(tmp_path):
    state = tied_state()
    path = write_weights(tmp_path / "model.safetensors", state, {"a": "b"})
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == [
            "embedding",
            "other",
            "row",
            "transposed",
        ]
        assert json.loads(file.metadata()["tied"]) == find_ties(state)
        assert file.metadata()["a"] == "b"
    with open_weights(path) as weights:
        assert set(weights) == set(state)
        assert weights.tied == find_ties(state)
        for name, tensor in state.items():
            assert torch.equal(weights[name], tensor)
        # Writing what was read keeps the ties
        copy = write_weights(tmp_path / "copy.safetensors", weights)
    with open_weights(copy) as weights:
        assert weights.tied == find_ties(state)


def test_a_tied_hugging_face_model(tmp_path):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=12,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=2,
    )
    model = WhisperForConditionalGeneration(config)
    with open_weights(model) as weights:
        tie = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
        assert weights.tied == tie


def test_ties_that_all_models_have():
    tied = open_weights(tied_state())
    apart = tied_state()
    apart["again"] = apart["again"].clone()
    apart = open_weights(apart)
    assert common_ties([tied, tied]) == tied.tied
    assert common_ties([tied, apart]) == {"output": "embedding"}
    assert common_ties([apart, tied]) == {"output": "embedding"}
    # The kept name depends on the order of names, the group does not
    backwards = open_weights(dict(reversed(tied_state().items())))
    assert backwards.tied == {"output": "again", "embedding": "again"}
    assert common_ties([tied, backwards]) == tied.tied
    assert common_ties([]) == {}
