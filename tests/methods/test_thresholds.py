"""Exact order statistics of models that are never held."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from speechbrain_merge.methods import thresholds
from speechbrain_merge.methods.thresholds import at_least, order_statistics


def find(rows, ranks, dtype=torch.float32, signed=True, piece=1000):
    """Order statistics of rows that are read in pieces, by two threads."""
    passes = []

    def read(see, sample):
        passes.append(sample)
        jobs = [
            (
                row,
                values[
                    start : start + (max(50, piece // 64) if sample else piece)
                ],
            )
            for row, values in enumerate(rows)
            for start in range(0, len(values), piece)
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: see(*job), jobs))

    wanted = [(row, rank) for row in range(len(rows)) for rank in ranks]
    found = order_statistics(read, wanted, len(rows[0]), dtype, signed)
    return found, passes


def expected(rows, ranks):
    """The same by sorting."""
    ordered = [np.sort(values.numpy())[::-1] for values in rows]
    return [float(values[rank - 1]) for values in ordered for rank in ranks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampled", [False, True])
def test_values_are_exact(dtype, sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(thresholds, "WORTH_SAMPLING", 1)
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(20_000, generator=generator, dtype=dtype) * 10.0**power
        for power in (-6, 0, 4)
    ]
    ranks = [1, 2, 4001, 10_000, 19_999, 20_000]
    found, passes = find(rows, ranks, dtype)
    assert found == expected(rows, ranks)
    assert passes[0] is sampled
    sizes = [values.abs() for values in rows]
    found, _ = find(sizes, ranks, dtype, signed=False)
    assert found == expected(sizes, ranks)


def test_a_sample_saves_passes():
    number = thresholds.WORTH_SAMPLING
    rows = [torch.rand(number, generator=torch.Generator().manual_seed(1))]
    found, passes = find(rows, [number // 5], signed=False, piece=1 << 15)
    assert found == expected(rows, [number // 5])
    assert passes == [True, False]


def test_a_misleading_sample_costs_passes_and_no_exactness(monkeypatch):
    monkeypatch.setattr(thresholds, "WORTH_SAMPLING", 1)
    values = torch.arange(20_000.0) + 1
    # the sample sees the first 50 of each 1000: make those the smallest
    order = torch.cat(
        [torch.arange(20) * 1000 + offset for offset in range(1000)]
    )
    shuffled = torch.empty(20_000)
    shuffled[order] = values
    for rank in (1, 5000, 15_000, 20_000):
        found, _ = find([shuffled], [rank])
        assert found == [float(20_001 - rank)]


@pytest.mark.parametrize("sampled", [False, True])
def test_many_equal_values_zeros_and_extremes(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(thresholds, "WORTH_SAMPLING", 1)
    values = torch.zeros(3000)
    values[:700] = -1.5
    values[700:800] = torch.tensor([-0.0])
    values[-3:] = torch.tensor([1e-45, 3.4e38, -3.4e38])
    ranks = [1, 2, 3, 1000, 2298, 2299, 2300, 2999, 3000]
    found, _ = find([values], ranks, piece=100)
    assert found == expected([values], ranks)


def test_a_rank_that_does_not_exist_is_refused():
    for rank in (0, 4):
        with pytest.raises(ValueError, match=f"no rank {rank} among 3"):
            find([torch.zeros(3)], [rank])


def test_counting_is_safe_over_threads():
    """Every value is counted once, whoever counts it."""
    values = torch.arange(64.0).repeat(500)
    barrier = threading.Barrier(8)

    def read(see, sample):
        def run(part):
            barrier.wait()
            for piece in part.split(100):
                see(0, piece)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(run, values.chunk(8)))

    ranks = [1, 500, 501, 16_000, 32_000]
    found = order_statistics(
        read, [(0, rank) for rank in ranks], 32_000, torch.float32
    )
    assert found == [63.0, 63.0, 62.0, 32.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_least_keeps_the_threshold_itself(dtype):
    step = torch.finfo(dtype).eps
    vector = torch.tensor([1 - step, 1, 1 + step, -1, 0.5, 0], dtype=dtype)
    kept = at_least(vector, 1.0)
    assert kept.tolist() == [0, 1, 1 + step, -1, 0, 0]
    assert torch.equal(at_least(vector, 0.0), vector)


def test_at_least_with_a_threshold_between_two_float32_numbers():
    low, high = 1.0, float(np.nextafter(np.float32(1), np.float32(2)))
    vector = torch.tensor([low, high])
    assert at_least(vector, (low + high) / 2).tolist() == [0.0, high]
