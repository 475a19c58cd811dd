"""Draws that take all domains equally often."""

import pytest

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain_merge.training import balanced_sampler


def dataset(column="domain"):
    """Ten utterances of one domain and a hundred of another."""
    return DynamicItemDataset(
        {str(i): {column: "few" if i < 10 else "many"} for i in range(110)}
    )


def test_balanced_draws_take_all_domains_equally():
    data = dataset()
    sampler = balanced_sampler(data, seed=7)
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn.append([data.data[data.data_ids[i]]["domain"] for i in sampler])
    assert all(len(epoch) == 110 for epoch in drawn)
    few = sum(epoch.count("few") for epoch in drawn) / 2200
    assert 0.46 < few < 0.54
    assert drawn[0] != drawn[1]


def test_an_epoch_is_drawn_alike_each_time():
    draws = []
    for _ in range(2):
        sampler = balanced_sampler(dataset("set"), seed=7, column="set")
        sampler.set_epoch(3)
        draws.append(list(sampler))
    assert draws[0] == draws[1]


def test_data_without_domains_are_named():
    with pytest.raises(ValueError, match="'0' has no column 'domain'.*set"):
        balanced_sampler(dataset("set"), seed=7)
