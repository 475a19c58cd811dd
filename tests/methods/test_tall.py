"""Tall matrices in blocks of rows are what they are as a whole."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.methods.factorization import SINGLE, polar
from speechbrain_merge.methods.rounding import longest_of
from speechbrain_merge.methods.tall import (
    BLOCK,
    Tall,
    TaskVector,
    TaskVectors,
    row_blocks,
)
from speechbrain_merge.weights import open_weights, write_weights

SHAPE = (45_001, 32)  # two blocks
ROADS = {
    "tsv_m": {},
    "tsv_m, more directions than fit": {"rank_fraction": 1.0},
    "boosted_tsv_m": {},
    "iso_c": {},
    "iso_cts": {},
    "wudi": {"steps": 2},
}


def models(number=3):
    """A base and experts that share a part of what changed."""
    base = 0.02 * torch.randn(SHAPE)
    common = torch.randn(SHAPE)
    return base, [
        base + 1e-3 * (common + torch.randn(SHAPE)) for _ in range(number)
    ]


def test_blocks_cover_all_rows_once():
    blocks = row_blocks(SHAPE)
    assert len(blocks) == 2
    rows = [row for where in blocks for row in range(SHAPE[0])[where]]
    assert rows == list(range(SHAPE[0]))


@pytest.mark.parametrize("size", [1.0, 2.0**70])
def test_gram_and_product_of_a_task_vector(size):
    base, experts = models(1)
    base, expert = base * size, experts[0] * size
    exact = (expert.double() - base.double()) / size
    tall = Tall(TaskVector(expert, base))
    right = torch.randn(SHAPE[1], 3, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        gram, scale = tall.gram(dtype)
        assert gram.dtype == dtype and (scale == 1) == (size == 1)
        gram = gram.double() * (scale / size) ** 2
        error = (gram - exact.T @ exact).norm() / gram.norm()
        assert error < tolerance
        product = tall.times(right.to(dtype), scale) * (scale / size)
        error = (product.double() - exact @ right).norm() / product.norm()
        assert error < tolerance
    assert torch.equal(tall.whole() / size, exact)


def test_sum_of_task_vectors_leaves_the_models_alone():
    base, experts = models()
    for dtype in (torch.float32, torch.float64):
        stored = [model.to(dtype) for model in (base, *experts)]
        before = [model.clone() for model in stored]
        vectors = TaskVectors(stored[1:], stored[0])
        torch.testing.assert_close(
            vectors.total(), sum(vectors), rtol=0, atol=1e-15
        )
        assert all(map(torch.equal, stored, before))


@pytest.mark.parametrize("ratio", [10, 41])
def test_polar_factor_in_single_precision_is_about_as_near_as_lapacks(ratio):
    """Of squared singular values so far apart float32 is still tried."""
    values = torch.linspace(1, ratio**0.5, 60, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(300, 60, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    matrix = ((left * values) @ right.T).float()
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    exact = u @ v
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    factor, _ = polar(matrix, SINGLE)
    assert factor.dtype == torch.float32
    assert (factor - exact).norm() < 2 * (u @ v - exact).norm()
    assert (factor.T @ factor - torch.eye(60)).abs().max() < 1e-5


@pytest.mark.parametrize("which", ROADS)
def test_same_bits_on_every_road(which, tmp_path):
    name, parameters = which.split(",")[0], {"exclude": (), **ROADS[which]}
    base, experts = models()
    paths = [
        write_weights(
            tmp_path / f"{number}.safetensors",
            {"decoder.embed_tokens.weight": model, "fc.bias": torch.ones(2)},
        )
        for number, model in enumerate((base, *experts))
    ]
    method = create(name, **parameters)
    inside = method([open_weights(path) for path in paths[1:]], paths[0])
    for workers in (1, 2):
        output = tmp_path / f"by-{workers}.safetensors"
        merge(
            method,
            paths[1:],
            paths[0],
            output,
            workers=workers,
            progress=False,
        )
        with open_weights(output) as merged:
            for key, tensor in inside.items():
                assert torch.equal(merged[key], tensor)


def resident(path):
    """How many bytes of a mapped file are in this process's memory."""
    kilobytes, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return 1024 * kilobytes


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(),
    reason="the system does not tell what is in memory of a mapped file",
)
def test_mapped_files_do_not_stay_in_memory(tmp_path):
    base, experts = models(1)
    paths = [
        write_weights(tmp_path / f"{number}.safetensors", {"w": model})
        for number, model in enumerate((base, *experts))
    ]
    with open_weights(paths[0]) as first, open_weights(paths[1]) as second:
        anchor, model = first["w"], second["w"]
        float(anchor.sum() + model.sum())
        assert all(resident(path) >= 4 * base.numel() for path in paths)
        for use in (
            lambda: Tall(TaskVector(model, anchor)).gram(torch.float32),
            lambda: TaskVectors([model], anchor).total(),
            lambda: (longest_of(model), longest_of(anchor)),
        ):
            use()
            assert all(resident(path) < 3 * BLOCK for path in paths)
