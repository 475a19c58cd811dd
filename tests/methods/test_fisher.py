"""Fisher merging: the formula, its limits, and FusionBench's answers."""

from pathlib import Path

import pytest
import torch

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import Fisher
from speechbrain_merge.weights import write_weights

ANSWERS = Path(__file__).parent / "references" / "data_driven.pt"


def one(*values):
    """A model of one tensor."""
    return {"w": torch.tensor(values)}


@pytest.mark.parametrize(
    "dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.5)])
def test_as_fusion_bench(normalize, weights, dtype, limit):
    """fusion_bench.method.fisher_merging, 0.2.33; floor of 1e-6."""
    known = torch.load(ANSWERS)[str(dtype)]
    method = Fisher(known["fishers"], list(weights), 1e-6, normalize)
    merged = method(known["experts"])
    for name, answer in known["fisher"][normalize, weights].items():
        assert merged[name].dtype == dtype
        assert (merged[name] - answer).abs().max() < limit, name


def test_a_ratio_of_three_to_one():
    experts, fishers = [one(0.0), one(1.0)], [one(3.0), one(1.0)]
    assert Fisher(fishers)(experts)["w"] == 0.25
    assert Fisher(fishers[::-1])(experts)["w"] == 0.75
    # a norm of its own for each takes the ratio away
    normalized = Fisher(fishers, normalize=True)(experts)["w"]
    assert normalized == pytest.approx(0.5, abs=1e-6)
    weighted = Fisher(fishers, weights=[1, 3])(experts)["w"]
    assert weighted == 0.5


def test_equal_fishers_give_the_mean_and_zeros_too():
    generator = torch.Generator().manual_seed(0)
    experts = [one(*torch.randn(9, generator=generator)) for _ in range(3)]
    fisher = one(*torch.rand(9, generator=generator))
    average = torch.stack([expert["w"] for expert in experts]).mean(0)
    for same in (fisher, one(*[0.0] * 9)):
        merged = Fisher([same] * 3)(experts)["w"]
        assert torch.allclose(merged, average, rtol=0, atol=1e-6)


def test_the_floor_draws_to_the_mean():
    experts, fishers = [one(0.0), one(1.0)], [one(3e-9), one(1e-9)]
    assert Fisher(fishers)(experts)["w"] == 0.25
    assert Fisher(fishers, floor=1e-6)(experts)["w"] > 0.499


def test_an_entry_that_one_expert_alone_depends_on():
    merged = Fisher([one(0.0, 1e-38), one(5.0, 0.0)])(
        [one(1.0, 2.0), one(3.0, 4.0)]
    )
    assert merged["w"].tolist() == [3.0, 2.0]


def test_tensors_without_a_fisher_are_averaged():
    experts = [{"w": torch.zeros(2), "v": torch.zeros(2)} for _ in range(2)]
    experts[1]["v"] += 2
    assert Fisher([one(3.0, 1.0)] * 2)(experts)["v"].tolist() == [1.0, 1.0]


def test_statistics_under_the_second_name_of_a_tied_tensor_are_refused():
    experts = []
    for value in (1.0, 5.0):
        shared = torch.tensor([value])
        experts.append({"embedding": shared, "output": shared})
    second = [{"output": torch.tensor([each])} for each in (3.0, 1.0)]
    with pytest.raises(ValueError, match="give them under 'embedding'"):
        Fisher(second)(experts)
    both = [dict(each, embedding=each["output"]) for each in second]
    merged = Fisher(both)(experts)
    assert merged["embedding"] == 2.0
    assert merged["output"] is merged["embedding"]


def test_statistics_of_tensors_that_no_expert_has_are_told(caplog):
    more = one(1.0) | {"other.weight": torch.ones(1)}
    assert Fisher([more, more])([one(1.0), one(3.0)])["w"] == 2.0
    assert "that the experts do not have, e.g. ['other.weight']" in caplog.text


def test_files_by_label_and_by_order_are_the_same(tmp_path):
    values = {"a": (0.0, 3.0), "b": (4.0, 1.0)}
    for label, (weight, fisher) in values.items():
        write_weights(tmp_path / f"{label}.safetensors", one(weight))
        write_weights(tmp_path / f"{label}-f.safetensors", one(fisher))
    experts = [tmp_path / "b.safetensors", tmp_path / "a.safetensors"]
    files = {
        label: str(tmp_path / f"{label}-f.safetensors") for label in values
    }
    by_label = merge(
        Fisher(files), experts, labels=["b", "a"], progress=False, workers=4
    )
    in_order = merge(
        Fisher([files["b"], files["a"]]),
        experts,
        output=tmp_path / "m.safetensors",
        progress=False,
    )
    assert by_label["w"] == 1.0
    assert in_order.exists()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Fisher(), "needs statistics of each expert"),
        (lambda: Fisher([one(1.0)]), "1 statistics were given for 2 experts"),
        (lambda: Fisher({"x": one(1.0)}), "no statistics of the experts"),
        (lambda: Fisher([{"v": torch.ones(1)}] * 2), "none of the experts'"),
        (
            lambda: Fisher([one(1.0), one(1.0) | {"v": torch.ones(1)}]),
            "different tensors",
        ),
        (lambda: Fisher([one(1.0), one(-1.0)]), "negative or not finite"),
        (lambda: Fisher([one(1.0), one(float("nan"))]), "not finite"),
        (lambda: Fisher([one(1.0), one(1.0, 2.0)]), "has shape"),
        (lambda: Fisher([one(1.0)] * 2, weights=[1, -1]), "not be negative"),
        (lambda: Fisher(floor=-1), "`floor` must be"),
        (lambda: Fisher(normalize="yes"), "`normalize` must be"),
        (lambda: Fisher(statistics="file"), "must be a list"),
    ],
)
def test_wrong_use(make, message):
    with pytest.raises(ValueError, match=message):
        make()([one(1.0), one(2.0)])
