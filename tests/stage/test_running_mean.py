"""The mean of a growing set of models, from their running sum."""

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from speechbrain_merge.methods import Average
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.stage import running_mean
from speechbrain_merge.stage.running_mean import RunningMean
from speechbrain_merge.weights import write_weights


def model(seed, dtype=torch.float32):
    """Weights with a tie, a statistic and a counter."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(7, 5, generator=generator).to(dtype)
    return {
        "table": table,
        "output": table,
        "norm.running_var": torch.rand(5, generator=generator).to(dtype),
        "steps": torch.tensor(seed),
    }


@pytest.fixture
def opened(monkeypatch):
    """What is opened, as it is opened."""
    seen = []

    def noted(source):
        seen.append(source)
        return open_on_record(source)

    monkeypatch.setattr(running_mean, "open_on_record", noted)
    return seen


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_a_greedy_search_reads_the_new_model_alone_and_gets_the_same_bits(
    tmp_path, opened, dtype
):
    files = [
        write_weights(tmp_path / f"{seed}.safetensors", model(seed, dtype))
        for seed in range(6)
    ]
    running, reads = RunningMean(), []
    # 0 is first; 1 and 3 are accepted, 2 and 4 rejected
    for chosen in ([0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [0, 1, 3, 5]):
        members = [files[number] for number in chosen]
        opened.clear()
        found = running.of(Average(), members)
        reads.append([int(path.stem) for path in opened])
        expected = Average()(members)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        # changing what was given out changes no later mean
        found["table"].zero_()
    assert reads == [[0, 1], [1, 2], [3], [3, 4], [5]]


def test_an_unrelated_set_begins_anew():
    models = [model(seed) for seed in range(4)]
    running = RunningMean()
    for chosen in ([0, 1, 2], [3, 1], [1, 0, 2], [1, 2]):
        members = [models[number] for number in chosen]
        found, expected = running.of(Average(), members), Average()(members)
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_not_plainly_added_up_is_left_to_the_method(monkeypatch):
    one, two = model(1), model(2)
    assert RunningMean().of(Average(), [one]) is None
    assert RunningMean().of(Average([1, 3]), [one, two]) is None
    assert RunningMean().of(Average(), [one, model(2, torch.float16)]) is None
    renamed = {name.upper(): tensor for name, tensor in two.items()}
    assert RunningMean().of(Average(), [one, renamed]) is None
    untied = {name: tensor.clone() for name, tensor in two.items()}
    assert RunningMean().of(Average(), [one, untied]) is None
    broken = dict(two, table=two["table"] / 0, output=two["table"] / 0)
    assert RunningMean().of(Average(), [one, broken]) is None
    normed = weight_norm(torch.nn.Linear(3, 3)).state_dict()
    assert RunningMean().of(Average(), [normed, normed]) is None
    assert RunningMean().of(Average(), [one, two]) is not None
    monkeypatch.setattr(running_mean.os, "sysconf", lambda name: 32)
    assert RunningMean().of(Average(), [one, two]) is None
