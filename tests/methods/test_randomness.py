"""Random numbers by place."""

import pytest
import torch

from speechbrain_merge.methods.randomness import uniform


def test_numbers_are_uniform():
    numbers = uniform(0, 0, "w", slice(0, 100_000))
    assert numbers.dtype == torch.float32
    assert 0 <= float(numbers.min()) and float(numbers.max()) < 1
    # a tenth of them in each tenth, within 5 standard deviations
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert bool(((counts - 10_000).abs() < 5 * 95).all())
    pairs = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))
    assert abs(float(pairs[0, 1])) < 0.02


@pytest.mark.parametrize(
    "other",
    [
        (1, 0, "w", slice(0, 1000)),
        (0, 1, "w", slice(0, 1000)),
        (0, 0, "v", slice(0, 1000)),
        (0, 0, "w", slice(1000, 2000)),
    ],
)
def test_every_place_has_its_own_numbers(other):
    numbers = uniform(0, 0, "w", slice(0, 1000))
    assert torch.equal(numbers, uniform(0, 0, "w", slice(0, 1000)))
    both = torch.stack([numbers, uniform(*other)])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.15


def test_numbers_stay_the_same_over_versions():
    """A merge can be made again from its seed, also next year."""
    numbers = uniform(7, 2, "encoder.layers.0.weight", slice(32768, 32771))
    expected = [0.8786457777023315, 0.1202898621559143, 0.018943369388580322]
    assert numbers.tolist() == expected
