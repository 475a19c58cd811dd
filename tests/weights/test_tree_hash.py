"""The hash of a model is that of its tensors, however they are stored."""

import json
from collections import Counter

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from speechbrain_merge import merge, provenance
from speechbrain_merge.lineage import check_lineage
from speechbrain_merge.weights import (
    ChangedContent,
    Entry,
    Weights,
    digest,
    open_weights,
    tree_hash,
    verify,
    write_weights,
)


def state():
    """Tensors of several types, one in two pieces, one empty, one tied."""
    torch.manual_seed(0)
    tied = torch.randn(300, 250)
    return {
        "output.weight": tied,
        "embedding.weight": tied,
        "steps": torch.tensor([3, 5]),
        "half": torch.randn(7, 3).half(),
        "empty": torch.empty(0, 2),
    }


def test_the_hash_is_as_documented(tmp_path):
    tensors = {"b": torch.ones(2, 3), "a": torch.tensor([1, 2])}
    rows = []
    for name, start in (("a", b"torch.int64\0[2]\0"), ("b", None)):
        start = start or b"torch.float32\0[2, 3]\0"
        content = start + tensors[name].numpy().tobytes()
        rows.append([name, blake3(content).hexdigest()])
    expected = blake3(json.dumps([rows]).encode()).hexdigest()
    assert tree_hash(tensors) == f"blake3:{expected}"


def test_containers_and_their_order_make_no_difference(tmp_path):
    tensors = state()
    torch.save(tensors, tmp_path / "model.ckpt")
    apart = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(dict(reversed(apart.items())), tmp_path / "apart.safetensors")
    write_weights(tmp_path / "tied.safetensors", tensors)
    found = {tree_hash(path) for path in tmp_path.iterdir()}
    assert found == {tree_hash(tensors)}


def test_any_difference_counts():
    tensors = {"a": torch.tensor([1, 0], dtype=torch.int32)}
    others = [
        {"b": tensors["a"]},
        {"a": tensors["a"].reshape(2, 1)},
        {"a": torch.tensor([1], dtype=torch.int64)},
        {"a": torch.tensor([1, 1], dtype=torch.int32)},
        {"a": tensors["a"], "b": torch.empty(0)},
    ]
    assert len({tree_hash(each) for each in [tensors, *others]}) == 6


def test_a_tie_that_a_file_only_claims_hides_nothing(tmp_path):
    hashes = set()
    for value in (0.0, 1.0):
        tensors = {"a": torch.zeros(2), "b": torch.full((2,), value)}
        path = tmp_path / f"{value}.safetensors"
        save_file(tensors, path, {"tied": '{"b": "a"}'})
        hashes.add(tree_hash(path))
    assert len(hashes) == 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("method", ["average", "ties", "tsv_m", "dare"])
def test_a_merge_hashes_what_it_reads(tmp_path, method, workers):
    """To the same hash as one that reads the file alone, whatever it needs."""
    paths = []
    for number in range(3):
        tensors = state()
        tensors["output.weight"].add_(number)
        path = tmp_path / f"{number}.ckpt"
        torch.save(tensors, path)
        paths.append(path)
    merged = merge(
        method,
        paths[1:],
        base=paths[0],
        output=tmp_path / "merged.safetensors",
        workers=workers,
        progress=False,
    )
    record = provenance(merged)
    found = [source["digest"] for source in record["sources"]]
    assert found == [tree_hash(path) for path in paths[1:]]
    assert record["base"]["digest"] == tree_hash(paths[0])


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_a_merge_reads_each_tensor_once(tmp_path, method):
    """For the formula and for the hash together, of experts and base."""
    reads: Counter = Counter()

    def counting(number):
        def read():
            reads[number] += 1
            return torch.full((70001,), float(number))

        entry = Entry((70001,), torch.float32, read)
        return Weights({"bias": entry}, label=f"model {number}")

    models = [counting(number) for number in range(3)]
    merged = merge(
        method,
        models[1:],
        base=models[0],
        output=tmp_path / "merged.safetensors",
        progress=False,
    )
    assert reads == {0: 1, 1: 1, 2: 1}
    assert provenance(merged)["sources"][0]["digest"] == tree_hash(models[1])


def test_open_weights_are_not_watched_after_a_merge():
    with open_weights(state()) as weights:
        merge("average", [weights, weights], progress=False)
        assert weights.hashing is None


def test_records_of_earlier_versions_are_still_compared(tmp_path):
    """They have a SHA-256, of a file's bytes or of the tensors."""
    paths = [
        write_weights(tmp_path / f"{n}.safetensors", {"w": torch.full((2,), n)})
        for n in (1.0, 2.0)
    ]
    known = [digest(paths[0]), digest(open_weights(paths[1]))]
    assert all(len(code) == 64 for code in known)
    for path, code in zip(paths, known):
        with open_weights(path) as weights:
            verify(weights, code, path=path)
            with pytest.raises(ChangedContent, match="0000 is on record"):
                verify(weights, "0" * 64, path=path)
    output = tmp_path / "merged.safetensors"
    merge("average", paths, output=output, hashes=known, progress=False)
    assert [row.state for row in check_lineage(output)][1:] == [
        "as recorded"
    ] * 2
    save_file({"w": torch.full((2,), 3.0)}, paths[0])
    assert [row.state for row in check_lineage(output)][1:] == [
        "changed",
        "as recorded",
    ]
