"""Wrong use of any method is one sentence that says what to do."""

import pytest
import torch

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import available, create

MODEL = {"w": torch.zeros(2)}


@pytest.mark.parametrize("scale", [[1, 2], "a", None, float("nan")])
@pytest.mark.parametrize("reference", ["zero", "base"])
def test_scale_of_extreme_is_a_number(scale, reference):
    with pytest.raises(ValueError, match="`scale` must be a finite number"):
        create("extreme", reference=reference, scale=scale)


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("layer_scaled", {}, "needs 'method', 'first', 'last'; it takes"),
        ("layer_scaled", {"method": "ties", "last": 1}, "needs 'first' as"),
        ("restricted", {"include": "encoder"}, "needs 'method' as well"),
        (None, {}, "named by a word.*None"),
        (["ties"], {}, "named by a word"),
        ("extreme", {"keep": "all"}, "'most' or 'least', got 'all'"),
    ],
)
def test_create_says_what_is_missing(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        create(name, **parameters)


@pytest.mark.parametrize(
    "single", [MODEL, "model.ckpt", torch.nn.Linear(2, 2), None, 3]
)
def test_experts_come_in_a_list(single):
    with pytest.raises(ValueError, match="a list of experts.*put it in a"):
        create("average")(single)


def test_experts_may_come_one_by_one():
    merged = create("average")(model for model in (MODEL, MODEL))
    assert torch.equal(merged["w"], MODEL["w"])


@pytest.mark.parametrize(
    "name", [name for name in available() if "attention" not in name]
)
def test_nothing_in_a_state_dict(name):
    """Not an empty model that looks like a merge. (Attention merges say that
    they find no attention.)"""
    needed = {
        "layer_scaled": {"method": "average", "first": 0, "last": 1},
        "restricted": {"method": "average", "include": "encoder"},
        "boosted": {"method": "task_arithmetic"},
        "calibrated": {"method": "task_arithmetic"},
    }
    method = create(name, **needed.get(name, {}))
    empty = [{}] * (method.maximum_experts or 2)
    with pytest.raises(ValueError, match="has no tensors"):
        method(empty, {})
    with pytest.raises(ValueError, match="has no tensors"):
        merge(method, empty, {}, progress=False)
