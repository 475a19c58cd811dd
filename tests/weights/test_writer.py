"""Files are written a tensor at a time, and whole or not at all."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from speechbrain_merge.weights import WeightWriter, open_weights, write_weights
from speechbrain_merge.weights.dtypes import DTYPE_NAMES


def specification(state):
    return {
        name: (tensor.dtype, tuple(tensor.shape))
        for name, tensor in state.items()
    }


def example(dtype):
    values = torch.tensor([[0, 1, 1], [1, 0, 1]])
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_dtype_comes_back(tmp_path, dtype):
    # A single byte first: what follows would be misaligned in that order
    state = {
        "byte": torch.tensor(3, dtype=torch.uint8),
        "matrix": example(dtype),
        "empty": example(dtype)[:0],
        "scalar": example(dtype)[0, 1],
    }
    path = write_weights(tmp_path / "model.safetensors", state)
    theirs = load_file(path)
    assert list(open_weights(path)) == list(state)
    for name, tensor in state.items():
        assert theirs[name].dtype == tensor.dtype
        assert theirs[name].shape == tensor.shape
        same = theirs[name].contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(same, tensor.reshape(-1).view(torch.uint8))


def test_each_tensor_is_aligned(tmp_path):
    state = {
        "flags": torch.tensor([True, False, True]),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "single": torch.randn(7),
    }
    path = write_weights(tmp_path / "model.safetensors", state)
    with open_weights(path) as weights:
        for name, tensor in state.items():
            assert weights[name].data_ptr() % tensor.dtype.itemsize == 0
            assert torch.equal(weights[name], tensor)


def test_any_order_and_several_threads(tmp_path):
    state = {
        f"layer.{number}": torch.randn(random.Random(number).randint(1, 400))
        for number in range(60)
    }
    names = list(state)
    random.Random(0).shuffle(names)
    path = tmp_path / "model.safetensors"
    with WeightWriter(path, specification(state), {"a": "ä"}) as writer:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: writer.write(name, state[name]), names))
    with open_weights(path) as weights:
        assert weights.names() == list(state)
        assert weights.metadata == {"a": "ä"}
        assert all(torch.equal(weights[name], state[name]) for name in state)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "ä"}


def test_views_and_gradients(tmp_path):
    matrix = torch.randn(4, 6, requires_grad=True)
    state = {"t": matrix.T, "part": matrix[1:3, ::2], "row": matrix[0]}
    path = write_weights(tmp_path / "model.safetensors", state)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, state[name].detach())


def test_an_error_leaves_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    wanted = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(ZeroDivisionError), WeightWriter(path, wanted) as writer:
        writer.write("a", torch.ones(2))
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="1 of 2 tensors are missing, e.g. b"):
        with WeightWriter(path, wanted) as writer:
            writer.write("a", torch.ones(2))
    for name, tensor, message in (
        ("a", torch.ones(3), r"specified as torch.float32 \[2\], but is"),
        ("a", torch.ones(2).half(), "but is torch.float16"),
        ("c", torch.ones(2), "'c' was not specified"),
    ):
        with pytest.raises(ValueError, match=message):
            with WeightWriter(path, wanted) as writer:
                writer.write(name, tensor)
    with pytest.raises(ValueError, match="written twice"):
        with WeightWriter(path, wanted) as writer:
            writer.write("a", torch.ones(2))
            writer.write("a", torch.ones(2))
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="not open for writing"):
        writer.write("b", torch.ones(2))


def test_an_error_keeps_the_file_that_was_there(tmp_path):
    path = write_weights(tmp_path / "m.safetensors", {"a": torch.ones(2)})
    with pytest.raises(ZeroDivisionError):
        with WeightWriter(path, {"a": (torch.float32, (2,))}) as writer:
            writer.write("a", torch.zeros(2))
            raise ZeroDivisionError
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_replacing_a_file_that_is_open(tmp_path):
    """Whoever has the old file mapped keeps reading the old values."""
    path = write_weights(tmp_path / "m.safetensors", {"a": torch.ones(9)})
    with open_weights(path) as old:
        write_weights(path, {"a": torch.zeros(9)})
        assert torch.equal(old["a"], torch.ones(9))
    assert torch.equal(load_file(path)["a"], torch.zeros(9))


def test_what_cannot_be_stored(tmp_path):
    path = tmp_path / "m.safetensors"
    real = (torch.float32, (1,))
    for wanted, metadata, message in (
        ({"a": (torch.complex128, (1,))}, {}, "complex128"),
        ({"__metadata__": real}, {}, "keeps the name"),
        ({"a": real}, {"step": 3}, "'step' is a int"),
        ({"a": real}, {"tied": '{"b": "c"}'}, "'b' is tied to 'c'"),
        ({"a": real, "b": real}, {"tied": '{"b": "a"}'}, "'b' is tied"),
    ):
        with pytest.raises(ValueError, match=message):
            WeightWriter(path, wanted, metadata)
    with pytest.raises(ValueError, match="is a folder"):
        with WeightWriter(tmp_path, {"a": real}):
            pass
    assert os.listdir(tmp_path) == []


def run_writer(folder, body):
    program = "import sys, time, torch\n" + textwrap.dedent(
        """
        from speechbrain_merge.weights import WeightWriter
        size = 300_000
        wanted = {"a": (torch.float32, (size,)), "b": (torch.float32, (size,))}
        """
    )
    return subprocess.Popen(
        [sys.executable, "-c", program + textwrap.dedent(body)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_kill_leaves_no_file(tmp_path):
    process = run_writer(
        tmp_path,
        """
        with WeightWriter("model.safetensors", wanted) as writer:
            writer.write("a", torch.ones(size))
            print("half", flush=True)
            time.sleep(60)
        """,
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".model.safetensors.")
    assert left.endswith(".partial")
    with pytest.raises(ValueError, match="read from files that end in"):
        open_weights(tmp_path / left)
    # What is left is in nobody's way
    write_weights(tmp_path / "model.safetensors", {"a": torch.ones(1)})


def test_kills_at_any_instant_leave_a_whole_file(tmp_path):
    process = run_writer(
        tmp_path,
        """
        for number in range(100_000):
            with WeightWriter("model.safetensors", wanted) as writer:
                for name in wanted:
                    writer.write(name, torch.full((size,), float(number)))
            if number == 0:
                print("go", flush=True)
        """,
    )
    assert process.stdout.readline() == "go\n"
    time.sleep(0.2 + random.random() / 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["a"], state["b"])
    assert state["a"].min() == state["a"].max() > 0
