"""What does not fit together is named in full, before anything is merged."""

import pytest
import torch

from speechbrain_merge.weights import (
    IncompatibleWeights,
    check_compatible,
    open_weights,
    write_weights,
)


def weights(**changes):
    state = {
        "weight": torch.ones(2, 3),
        "bias": torch.zeros(3),
        "steps": torch.tensor(3),
    }
    state.update(changes)
    return open_weights(
        {name: tensor for name, tensor in state.items() if tensor is not None}
    )


def faults(*experts, **settings):
    with pytest.raises(IncompatibleWeights) as caught:
        check_compatible(list(experts), **settings)
    return str(caught.value).splitlines()


def test_models_that_fit():
    check_compatible([weights(), weights()], base=weights())
    check_compatible([weights()])
    # Integers may differ, and are never NaN
    check_compatible([weights(), weights(steps=torch.tensor(9))])


def test_all_faults_in_one_error(tmp_path):
    """Each with its file and tensor; the majority says what is expected."""
    path = write_weights(
        tmp_path / "odd.safetensors",
        {"weight": torch.ones(2, 4), "steps": torch.tensor(3)},
    )
    broken = weights(bias=torch.tensor([0.0, float("nan"), float("-inf")]))
    extra = weights(head=torch.ones(1), steps=torch.tensor(3.0))
    lines = faults(open_weights(path), broken, extra, base=weights())
    odd = f"  expert 0 ({path}): "
    assert lines == [
        "these models cannot be merged (5 faults):",
        odd + "'weight' has shape [2, 4], expected [2, 3]",
        "  expert 2 (a state dict): 'steps' has dtype torch.float32, expected "
        "torch.int64",
        odd + "'bias' is missing",
        "  expert 2 (a state dict): has 'head', which the others do not have",
        "  expert 1 (a state dict): 'bias' has 2 of 3 values that are NaN or "
        "infinite",
    ]


def test_the_base_is_checked_too():
    lines = faults(weights(), weights(), base=weights(bias=None))
    assert lines[1:] == ["  base (a state dict): 'bias' is missing"]


def test_float_dtypes():
    half = weights(weight=torch.ones(2, 3).half())
    check_compatible([weights(), half])
    lines = faults(weights(), weights(), half, same_dtype=True)
    assert len(lines) == 2
    assert "expert 2" in lines[1]
    assert "torch.float16, expected torch.float32" in lines[1]
    assert "same_dtype=False" in lines[1]
    integers = weights(weight=torch.ones(2, 3).long())
    assert len(faults(weights(), weights(), integers)) == 2


def test_finiteness_is_an_option_and_reads_nothing_without():
    broken = weights(bias=torch.full((3,), float("nan")))
    check_compatible([weights(), broken], finite=False)
    closed = weights()
    closed.close()
    check_compatible([closed, weights()], finite=False)
    with pytest.raises(ValueError, match="closed"):
        check_compatible([closed, weights()])


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2],
)
def test_finiteness_in_every_float_dtype(dtype):
    good = torch.ones(3).to(dtype)
    bad = torch.tensor([1.0, float("nan"), 1.0]).to(dtype)
    check_compatible([weights(bias=good)])
    assert "1 of 3 values" in faults(weights(bias=bad))[1]


def test_complex_is_refused():
    one = weights(bias=torch.ones(3, dtype=torch.complex64))
    assert "'bias' is complex" in faults(one, one)[1]


def test_long_lists_are_cut():
    many = {f"t{number}": torch.ones(1) for number in range(50)}
    other = {f"t{number}": torch.ones(2) for number in range(50)}
    lines = faults(*map(open_weights, (many, many, other)))
    assert lines[0].endswith("(50 faults):")
    assert lines[-1] == "  … and 30 more"
    assert len(lines) == 22


def test_unfolded_models_get_a_hint():
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2))
    lines = faults(open_weights(normed), open_weights(torch.nn.Linear(2, 2)))
    assert "unfolded weight norm" in lines[-1]
    assert "fold(weights)" in lines[-1]


def test_no_experts():
    with pytest.raises(IncompatibleWeights, match="no experts"):
        check_compatible([])
    assert issubclass(IncompatibleWeights, ValueError)
