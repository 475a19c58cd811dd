"""Merging on a GPU gives what the CPU gives."""

import logging

import pytest
import torch

from speechbrain_merge import MergeStage, merge
from speechbrain_merge.cli import main
from speechbrain_merge.methods import Average, create
from speechbrain_merge.methods.devices import device_of
from speechbrain_merge.weights import open_weights, write_weights

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

METHODS = {
    "average": {"weights": [1, 2, 3]},
    "task_arithmetic": {"scale": 0.3},
    "ties": {},
    "ties of tensors": {"scope": "tensor"},
    "dare": {},
    "della": {},
    "breadcrumbs": {},
    "breadcrumbs of rows": {"scope": "row"},
    "consensus": {},
    "sce": {"select": 0.5},
    "extreme": {},
    "tsv_m": {},  # computes on the CPU
}


def models():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(300, 301, generator=generator)
    states = []
    for number in range(4):
        weights = start + 0.1 * number * torch.randn(
            300, 301, generator=generator
        )
        states.append(
            {
                "layer.weight": weights[:, :300].clone(),
                "layer.bias": weights[:, 300].clone(),
                "steps": torch.tensor(3),
            }
        )
    return states


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_gpu_gives_what_the_cpu_gives(name, workers):
    base, *experts = models()
    found = [
        merge(
            create(name.partition(" ")[0], **METHODS[name]),
            experts,
            base,
            workers=workers,
            progress=False,
            device=device,
        )
        for device in ("cpu", "cuda")
    ]
    for key, tensor in found[0].items():
        assert found[1][key].device.type == "cpu"
        torch.testing.assert_close(found[1][key], tensor, atol=1e-5, rtol=0)


@needs_gpu
def test_auto_takes_the_gpu():
    assert device_of("auto").type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for no CUDA device")
def test_without_a_gpu(tmp_path, capsys):
    """The automatic choice is the CPU, to the bit; to ask for one is an error."""
    paths = [
        write_weights(tmp_path / f"{number}.safetensors", model)
        for number, model in enumerate(models())
    ]
    outputs = []
    for device in ("cpu", "auto"):
        output = tmp_path / f"{device}.safetensors"
        line = ["merge", "average", *map(str, paths), "-o", str(output)]
        assert main([*line, "--quiet", "--device", device]) == 0
        with open_weights(output) as merged:
            outputs.append(dict(merged))
    for name, tensor in outputs[0].items():
        assert torch.equal(tensor, outputs[1][name])
    capsys.readouterr()
    for ask in (
        lambda: merge("average", models(), device="cuda", progress=False),
        lambda: MergeStage("average", [], device="cuda:1"),
    ):
        with pytest.raises(ValueError, match="torch sees 0 CUDA devices"):
            ask()
    output = tmp_path / "none.safetensors"
    line = ["merge", "average", str(paths[0]), "-o", str(output)]
    assert main([*line, "--device", "cuda"]) == 2
    assert "use device='auto'" in capsys.readouterr().err
    assert not output.exists()


class WithoutRoom(Average):
    """An average on a device that has no memory left."""

    def merge_pieces(self, name, experts, base):
        if experts[0].device == self.device:
            raise torch.OutOfMemoryError("out of memory")
        return super().merge_pieces(name, experts, base)


def test_a_gpu_without_room(caplog):
    """Tensors are merged on the CPU, which is said of each."""
    with caplog.at_level(logging.WARNING):
        method = WithoutRoom().using(torch.device("meta"))
        merged = method(models())
    for name, tensor in Average()(models()).items():
        assert torch.equal(merged[name], tensor)
    assert "no room to merge layer.weight of shape (300, 300)" in caplog.text
