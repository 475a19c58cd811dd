"""The same content has the same digest, any other content another."""

import hashlib
from types import SimpleNamespace

import torch

from speechbrain_merge.weights import digest, open_weights, write_weights


def test_a_file_is_hashed_as_sha256sum_does(tmp_path):
    path = write_weights(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest(path) == digest(str(path)) == expected
    assert digest(SimpleNamespace(path=path)) == expected


def test_content_counts_and_containers_do_not(tmp_path):
    state = {"b": torch.randn(3, 2).bfloat16(), "a": torch.tensor(5)}
    torch.save(state, tmp_path / "model.ckpt")
    (tmp_path / "CKPT.yaml").write_text("{}")
    prefixed = {f"model.{name}": tensor for name, tensor in state.items()}
    assert digest(tmp_path) == digest(prefixed)
    backwards = dict(reversed(state.items()))
    assert digest(state) == digest(backwards) == digest(open_weights(state))


def test_any_difference_counts():
    state = {"a": torch.tensor([1, 0], dtype=torch.int32)}
    others = [
        {"b": state["a"]},
        {"a": state["a"].reshape(2, 1)},
        {"a": torch.tensor([1], dtype=torch.int64)},
        {"a": torch.tensor([1, 1], dtype=torch.int32)},
        {"a": state["a"], "b": torch.empty(0)},
    ]
    digests = {digest(each) for each in [state, *others]}
    assert len(digests) == 6
    assert all(len(each) == 64 for each in digests)
