"""SpeechBrain's own averaging with our averager: its known defects, mended.

``speechbrain.utils.checkpoints.average_checkpoints`` takes any ``averager``.
Each test here shows one way in which the default one fails, and that ours does
not, through SpeechBrain's own Checkpointer.
"""

import pytest
import torch

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.utils.checkpoints import (
    Checkpointer,
    average_checkpoints,
    average_state_dicts,
)
from speechbrain_merge.methods import Average, create
from speechbrain_merge.weights import IncompatibleWeights, fold


class Tied(torch.nn.Module):
    """Input and output embedding are one tensor."""

    def __init__(self, value):
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 2)
        self.output = torch.nn.Linear(2, 3, bias=False)
        self.output.weight = self.embedding.weight
        torch.nn.init.constant_(self.embedding.weight, value)


def saved(folder, models):
    """Checkpoints of models, as a recipe saves them."""
    checkpointer = Checkpointer(folder, {"model": models[0]})
    for model in models:
        checkpointer.recoverables["model"] = model
        checkpointer.save_checkpoint()
    return checkpointer.find_checkpoints()


def averaged(folder, models, **arguments):
    """The average of checkpoints by SpeechBrain's function."""
    return average_checkpoints(saved(folder, models), "model", **arguments)


def test_tied_tensors_are_averaged_once(tmp_path):
    """Defect 1: values 1, 2, 6 gave 4.0."""
    models = [Tied(value) for value in (1.0, 2.0, 6.0)]
    theirs = averaged(tmp_path / "a", models)
    assert theirs["embedding.weight"][0, 0] == 4.0
    ours = averaged(tmp_path / "b", models, averager=create("average"))
    assert torch.equal(ours["embedding.weight"], torch.full((3, 2), 3.0))
    assert ours["embedding.weight"] is ours["output.weight"]
    models[0].load_state_dict(ours, strict=True)
    assert models[0].output.weight is models[0].embedding.weight


def test_integer_buffers_stay_integers(tmp_path):
    """Defect 2: num_batches_tracked 1, 2, 4 became 2.3333."""
    models = []
    for count in (1, 2, 4):
        models.append(torch.nn.BatchNorm1d(2))
        models[-1].num_batches_tracked.fill_(count)
        models[-1].running_mean.fill_(float(count))
    theirs = averaged(tmp_path / "a", models)
    assert theirs["num_batches_tracked"].is_floating_point()
    ours = averaged(tmp_path / "b", models, averager=create("average"))
    assert ours["num_batches_tracked"].dtype == torch.int64
    assert int(ours["num_batches_tracked"]) in (1, 2, 4)
    assert torch.allclose(ours["running_mean"], torch.full((2,), 7 / 3))


@pytest.mark.parametrize(
    "dtype, values, expected",
    [
        (torch.float16, (30000.0,) * 3, 30000.0),
        (torch.bfloat16, (1.0, 1.0, 1.0, 1.015625), 1.0),
    ],
)
def test_half_precision_is_summed_in_full(dtype, values, expected):
    """Defect 3: three times 30000 in float16 was infinite."""
    states = [{"w": torch.tensor([value], dtype=dtype)} for value in values]
    ours = Average()(states)
    assert ours["w"].dtype == dtype
    exact = torch.tensor(sum(values) / len(values)).to(dtype)
    assert ours["w"].item() == exact.item() == pytest.approx(expected, rel=0.01)
    if dtype == torch.float16:
        theirs = average_state_dicts([{"w": s["w"].clone()} for s in states])
        assert torch.isinf(theirs["w"]).all()


def test_a_missing_key_is_an_error():
    """Defect 4: a key missing later was divided by n all the same."""
    states = [
        {"w": torch.ones(1), "v": torch.full((1,), 4.0)},
        {"w": torch.ones(1)},
    ]
    with pytest.raises(IncompatibleWeights, match="'v'"):
        Average()(states)
    with pytest.raises(IncompatibleWeights, match="'v'"):
        Average()(states[::-1])


def test_shapes_are_not_broadcast():
    """Defect 5: (2, 3) + (3,) was accepted."""
    states = [{"w": torch.ones(2, 3)}, {"w": torch.ones(3)}]
    with pytest.raises(IncompatibleWeights, match=r"\[2, 3\]"):
        Average()(states)


def test_any_file_loads_without_a_special_loader(tmp_path):
    """Defect 6: ``parameter_loader`` is called with an argument too many.

    Our own door takes the checkpoints themselves, whatever their files are.
    """
    from speechbrain_merge.engine import merge

    models = [torch.nn.Linear(2, 2) for _ in range(3)]
    checkpoints = saved(tmp_path, models)
    ours = merge("average", [c.path for c in checkpoints], progress=False)
    hand = torch.stack([model.weight.double() for model in models]).mean(0)
    assert torch.equal(ours["model.weight"], hand.float())


def test_inputs_are_not_changed():
    """Defect 7: the first state dict was summed into."""
    states = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    result = Average()(states)
    assert torch.equal(states[0]["w"], torch.ones(2))
    result["w"].add_(1)
    assert torch.equal(states[0]["w"], torch.ones(2))
    average_state_dicts(states)
    assert not torch.equal(states[0]["w"], torch.ones(2))


def test_lora_is_folded_before_averaging(tmp_path):
    """Defect 13: averaging A and B is not averaging their product."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    start = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = []
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        model.load_state_dict(start)
        model = AdaptedModel(
            model, LoRA, all_linear=True, adapter_kwargs={"rank": 2, "alpha": 4}
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        adapted.append(model)
    inputs = torch.randn(5, 4)
    outputs = torch.stack([model(inputs) for model in adapted]).mean(0)

    folded = [
        dict(fold(model.state_dict(), rank=2, alpha=4)) for model in adapted
    ]
    merged = Average()(folded)
    base.load_state_dict(merged, strict=True)
    # a linear layer: the average of the models is the model of the average
    assert torch.allclose(base(inputs), outputs, atol=1e-5)

    apart = average_state_dicts(
        [
            {k: v.clone() for k, v in model.state_dict().items()}
            for model in adapted
        ]
    )
    adapted[0].load_state_dict(apart)
    error = (adapted[0](inputs) - outputs).norm() / outputs.norm()
    assert error > 0.1
