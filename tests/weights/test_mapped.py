"""Mapped files: the same values, however often their memory is let go of."""

import gc

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechbrain_merge.weights import (
    WeightWriter,
    mapped,
    open_weights,
    release,
)


def resident():
    """Memory of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssFile"):
                return int(line.split()[1]) * 1024


def test_every_dtype_reads_as_safetensors_reads_it(tmp_path):
    state = {
        str(dtype): torch.arange(7).to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.int64,
            torch.uint8,
            torch.bool,
        )
    }
    state |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}
    save_file(state, tmp_path / "m.safetensors")
    expected = load_file(tmp_path / "m.safetensors")
    with open_weights(tmp_path / "m.safetensors") as weights:
        for name, tensor in expected.items():
            found = weights[name]
            assert found.shape == tensor.shape and found.dtype == tensor.dtype
            assert torch.equal(found.double(), tensor.double()), name


def test_a_tensor_that_begins_anywhere(tmp_path):
    """Old writers of safetensors did not align."""
    (tmp_path / "f").write_bytes(b"abc" + bytes(torch.ones(5).numpy().data))
    file = mapped.MappedFile(tmp_path / "f")
    assert torch.equal(file.tensor(3, (5,), torch.float32), torch.ones(5))


def test_released_memory_is_given_back_and_reads_again(tmp_path):
    path = tmp_path / "m.safetensors"
    values = torch.randn(8_000_000)
    save_file({"w": values}, path)
    with open_weights(path) as weights:
        tensor = weights["w"]
        before = resident()
        assert torch.equal(tensor, values)
        assert resident() - before > 20e6
        release(tensor)
        assert resident() - before < 5e6
        assert torch.equal(tensor, values)
        # a part takes no more with it than its pages
        release(tensor[1000:2000])
        assert torch.equal(tensor, values)


def test_memory_that_is_not_mapped_is_left_alone():
    tensor = torch.arange(100_000)
    release(tensor)
    release(tensor[::2])
    release(torch.zeros(0))
    assert torch.equal(tensor, torch.arange(100_000))


def test_a_tensor_outlives_its_file_and_then_nothing_stays(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.arange(5.0)}, path)
    gc.collect()
    before = len(mapped._MAPPED)
    with open_weights(path) as weights:
        tensor = weights["w"]
    del weights
    gc.collect()
    path.unlink()
    assert tensor.tolist() == [0, 1, 2, 3, 4]
    assert len(mapped._MAPPED) == before + 1
    del tensor
    gc.collect()
    assert len(mapped._MAPPED) == before


def test_metadata_may_come_last_if_their_length_is_known(tmp_path):
    path = tmp_path / "m.safetensors"
    specification = {"w": (torch.float32, (2,))}
    with WeightWriter(path, specification, {"hash": "0000"}) as writer:
        writer.write("w", torch.ones(2))
        writer.describe({"hash": "abcd"})
        with pytest.raises(ValueError, match="were set aside"):
            writer.describe({"hash": "0" * 100})
    with open_weights(path) as weights:
        assert weights.metadata == {"hash": "abcd"}
        assert torch.equal(weights["w"], torch.ones(2))
