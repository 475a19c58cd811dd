"""One streamed merge: the same bits as in memory, whole or not at all."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from speechbrain_merge.engine import merge, provenance
from speechbrain_merge.methods import Average, Extreme, Slerp, create
from speechbrain_merge.methods.pieces import BLOCK
from speechbrain_merge.weights import (
    IncompatibleWeights,
    open_weights,
    tree_hash,
)

THREADS = torch.get_num_threads()


def experts(number, dtype=torch.float32, seed=0):
    """State dicts with the kinds of tensors that models have."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return [
        {
            "encoder.layers.0.linear.weight": tensor(5, 7),
            "encoder.layers.0.linear.bias": tensor(5),
            "conv.weight": tensor(3, 2, 4),
            "scalar": tensor(),
            "empty": tensor(0, 3),
            "norm.running_mean": tensor(5),
            "norm.num_batches_tracked": torch.tensor(index),
            "mask": torch.tensor([True, False]),
        }
        for index in range(number)
    ]


def on_disk(folder, states):
    """Files of state dicts."""
    paths = []
    for index, state in enumerate(states):
        paths.append(folder / f"expert-{index}.safetensors")
        save_file(state, paths[-1])
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", ["average", "ties"])
def test_long_tensors_agree_to_the_bit(tmp_path, method, dtype):
    """Several pieces, the last one short, on any number of threads."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            name: torch.randn(size, generator=generator).to(dtype)
            for name, size in (("long", 2 * BLOCK + 7), ("longer", 3 * BLOCK))
        }
        for _ in range(4)
    ]
    base, *tuned = on_disk(tmp_path, states)
    expected = create(method)(states[1:], base=states[0])
    if method == "average":
        sums = sum(state["long"].double() for state in states[1:])
        assert torch.equal(expected["long"], (sums / 3).to(dtype))
    for workers in (1, 3):
        merged = merge(
            method,
            tuned,
            base,
            tmp_path / "merged.safetensors",
            workers=workers,
            progress=False,
        )
        with open_weights(merged) as weights:
            for name, tensor in expected.items():
                assert torch.equal(weights[name], tensor)
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64]
)
@pytest.mark.parametrize(
    "method", [Average(), Average([1, 3]), Extreme(), Slerp(0.3)]
)
def test_files_and_memory_agree_to_the_bit(tmp_path, method, dtype, workers):
    states = experts(2, dtype)
    in_memory = method(states)
    output = merge(
        method,
        on_disk(tmp_path, states),
        output=tmp_path / "merged.safetensors",
        workers=workers,
        progress=False,
    )
    with safe_open(output, framework="pt") as merged:
        assert set(merged.keys()) == set(states[0])
        for name, tensor in in_memory.items():
            stored = merged.get_tensor(name)
            assert stored.dtype == states[0][name].dtype
            assert torch.equal(stored, tensor), name


def test_average_by_hand():
    merged = merge("average", experts(3), progress=False)
    for name, tensor in experts(3)[0].items():
        stack = torch.stack([state[name] for state in experts(3)])
        if tensor.is_floating_point():
            assert torch.equal(merged[name], stack.double().mean(0).float())
        else:
            assert torch.equal(merged[name], tensor)


def test_provenance_says_what_was_merged(tmp_path):
    paths = on_disk(tmp_path, experts(2))
    output = merge(
        Average([1, 3]),
        paths,
        output=tmp_path / "m.safetensors",
        progress=False,
    )
    record = provenance(output)
    assert record["method"] == "average"
    assert record["parameters"] == {"weights": [1, 3]}
    assert [source["digest"] for source in record["sources"]] == [
        tree_hash(path) for path in paths
    ]
    assert record["versions"]["torch"] == torch.__version__
    assert record["base"] is None
    with pytest.raises(ValueError, match="not written by speechbrain_merge"):
        provenance(paths[0])


def test_tied_tensors_are_written_once(tmp_path):
    shared = [torch.full((2, 2), float(value)) for value in (1, 2, 6)]
    states = [{"embedding": w, "output": w} for w in shared]
    output = merge(
        "average", states, output=tmp_path / "m.safetensors", progress=False
    )
    with safe_open(output, framework="pt") as file:
        assert list(file.keys()) == ["embedding"]
        assert json.loads(file.metadata()["tied"]) == {"output": "embedding"}
    with open_weights(output) as weights:
        assert torch.equal(weights["output"], torch.full((2, 2), 3.0))
    # one expert trained them apart: two tensors from then on
    states[0]["output"] = states[0]["output"].clone() + 3
    merged = merge("average", states, progress=False)
    assert merged["output"][0, 0] == 4.0
    assert merged["embedding"][0, 0] == 3.0


def test_a_nan_names_file_and_tensor_and_leaves_nothing(tmp_path):
    states = experts(2)
    states[1]["conv.weight"][0, 0, 0] = float("nan")
    paths = on_disk(tmp_path, states)
    output = tmp_path / "out" / "m.safetensors"
    with pytest.raises(IncompatibleWeights) as error:
        merge("average", paths, output=output, progress=False)
    assert "expert-1.safetensors" in str(error.value)
    assert "conv.weight" in str(error.value)
    assert list(output.parent.iterdir()) == []


def test_overflow_in_the_stored_type_is_an_error():
    states = [{"w": torch.tensor([60000.0], dtype=torch.float16)}] * 2
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        Extreme(reference="base", scale=3)(
            states, base={"w": torch.tensor([-10000.0], dtype=torch.float16)}
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: create("avarage"), "Did you mean 'average'"),
        (lambda: create("average", weight=[1]), "it takes: weights"),
        (lambda: Average([1, "x"]), "not a number"),
        (lambda: Average([1, 2])(experts(3)), "2 coefficients .* 3 experts"),
        (lambda: Average([1, -1])(experts(2)), "sum to zero"),
        (lambda: Slerp()(experts(3)), "at most 2 experts, got 3"),
        (lambda: Average()([]), "at least 1"),
        (lambda: Extreme(reference="base")(experts(2)), "give `base`"),
        (lambda: Extreme(keep="best"), "'most' or 'least'"),
        (lambda: merge("average", experts(2), workers=0), "workers"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_coefficients_by_part_and_depth():
    states = [
        {f"encoder.layers.{i}.fc1.weight": torch.zeros(1) for i in range(3)}
        | {"decoder.layers.0.fc1.weight": torch.zeros(1)},
        {f"encoder.layers.{i}.fc1.weight": torch.ones(1) for i in range(3)}
        | {"decoder.layers.0.fc1.weight": torch.ones(1)},
    ]
    t = {"parts": {"encoder": {"depth": [0.0, 1.0]}}, "default": 0.25}
    merged = Slerp(t)(states)
    assert [float(value) for value in merged.values()] == [0, 0.5, 1, 0.25]


def test_another_package_adds_a_method(tmp_path):
    """Through the entry point, with nobody importing it."""
    package = tmp_path / "their_merges"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from speechbrain_merge.methods import MergeMethod, register\n"
        "@register('theirs')\n"
        "class Theirs(MergeMethod):\n"
        "    def merge_tensor(self, name, experts, base):\n"
        "        return experts[-1]\n"
    )
    info = tmp_path / "their_merges-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: their-merges\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[speechbrain_merge.methods]\ntheirs = their_merges\n"
    )
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from speechbrain_merge.methods import available, create;"
        "print('theirs' in available(), create('theirs'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "True Theirs()"
