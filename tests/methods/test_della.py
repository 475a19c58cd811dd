"""DELLA."""

import pytest
import torch

from speechbrain_merge.methods import DARE, DELLA
from speechbrain_merge.methods.della import BLOCK, keep_probabilities
from speechbrain_merge.methods.randomness import uniform


def test_probabilities_by_hand():
    """Ranks 0 to 4 of a row, from 1 − 0.5 − 0.2 to 1 − 0.5 + 0.2."""
    vector = torch.tensor([[0.1, -0.5, 0.3, 0.0, -0.2], [5.0, 4, 3, 2, 1]])
    torch.testing.assert_close(
        keep_probabilities(vector, 0.5, 0.4),
        torch.tensor([[0.4, 0.7, 0.6, 0.3, 0.5], [0.7, 0.6, 0.5, 0.4, 0.3]]),
    )


def test_the_mean_probability_is_what_was_asked_for():
    vector = torch.randn(4, 501)
    kept = keep_probabilities(vector, 0.3, 0.14)
    torch.testing.assert_close(kept.mean(dim=1), torch.full((4,), 0.7))


@pytest.mark.parametrize(
    "shape, rows",
    [((), 1), ((6,), 1), ((4, 5), 4), ((4, 5, 3), 4), ((3, 1), 3), ((1, 7), 1)],
)
def test_a_row_is_an_output_channel(shape, rows):
    base = torch.zeros(shape)
    expert = torch.randn(shape)
    merged = DELLA(0.4, window=0.6, combine="linear", seed=5)(
        [{"w": expert}], {"w": base}
    )["w"]
    flat = expert.reshape(rows, -1)
    kept = keep_probabilities(flat, 0.4, 0.6)
    draw = uniform(5, 0, "w", slice(0, flat.numel())).reshape(flat.shape)
    expected = torch.zeros_like(flat)
    for row in range(flat.shape[0]):
        for entry in range(flat.shape[1]):
            if draw[row, entry] < kept[row, entry]:
                expected[row, entry] = flat[row, entry] / kept[row, entry]
    torch.testing.assert_close(merged, expected.reshape(shape))


def test_votes_by_hand():
    """With nothing dropped: the mean over those of the elected sign."""
    base = {"w": torch.zeros(3)}
    experts = [
        {"w": torch.tensor([3.0, 1, -1])},
        {"w": torch.tensor([-1.0, 3, -2])},
    ]
    merged = DELLA(drop_rate=0, window=0, scale=2)(experts, base)
    assert merged["w"].tolist() == [6.0, 4.0, -3.0]


def test_the_expectation_is_the_task_vector():
    vector = torch.linspace(-1, 1, 20)
    mean = torch.zeros(20)
    for seed in range(1000):
        method = DELLA(0.5, window=0.6, combine="linear", seed=seed)
        mean += method([{"w": vector}], {"w": torch.zeros(20)})["w"] / 1000
    # the standard deviation of an entry is |τ| √(1/q − 1) / √1000 ≤ 0.05
    torch.testing.assert_close(mean, vector, rtol=0, atol=0.2)


def test_large_entries_are_kept_more_often():
    vector = torch.arange(1, 10_001.0)
    method = DELLA(0.5, window=0.8, combine="linear")
    kept = method([{"w": vector}], {"w": torch.zeros(10_000)})["w"] != 0
    shares = kept.float().reshape(10, 1000).mean(dim=1)
    expected = torch.linspace(0.14, 0.86, 10)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.06)


def test_without_a_window_shares_are_those_of_dare():
    base, expert = {"w": torch.zeros(50_000)}, {"w": torch.ones(50_000)}
    della = DELLA(0.8, window=0, combine="linear")([expert], base)["w"]
    dare = DARE(0.8)([expert], base)["w"]
    torch.testing.assert_close(della.mean(), dare.mean(), rtol=0, atol=0.1)
    assert set(della.unique().tolist()) == set(dare.unique().tolist())


def test_rows_beyond_one_block_are_ranked_alike():
    width = BLOCK // 4
    row = torch.randn(width)
    base = {"w": torch.zeros(10, width)}
    expert = {"w": row.expand(10, width)}
    merged = DELLA(0.5, window=0.9, combine="linear")([expert], base)["w"]
    kept = keep_probabilities(row[None], 0.5, 0.9)[0]
    for found in merged:
        there = found != 0
        torch.testing.assert_close(found[there], (row / kept)[there])
    assert not torch.equal(merged[0] != 0, merged[-1] != 0)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"drop_rate": 0.05}, "must lie between 0 and 1, got -0.02 and 0.12"),
        ({"drop_rate": 0.95, "window": 0.1}, "got 0.9 and 1"),
        ({"window": -0.1}, "`window` must be"),
        ({"combine": "sum"}, "'linear', 'ties'"),
        ({"seed": -1}, "`seed` must be a whole number"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        DELLA(**parameters)
