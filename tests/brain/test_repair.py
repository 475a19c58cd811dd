"""REPAIR with a real Brain: exact where it is linear, closer elsewhere."""

import pytest
import torch
from tiny_models import TinyCTC, tiny_conformer, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import MergeMixin
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.repair import _layers, _moments, repair
from speechbrain_merge.methods.transport import align
from speechbrain_merge.methods.transport.repair import Moments, repaired
from speechbrain_merge.weights import open_weights


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges."""


class Linear(torch.nn.Module):
    """Nothing but linear layers and a convolution over time."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 12)
        self.conv = torch.nn.Conv1d(12, 10, 3, padding=1, groups=2)
        self.last = torch.nn.Linear(10, 7)

    def forward(self, features, lengths):
        """Logits."""
        hidden = self.conv(self.first(features).transpose(1, 2))
        return self.last(hidden.transpose(1, 2))


def made(build, folder):
    """A Brain, two models and their mean."""
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(build(seed))
    brain = tiny_ctc_brain(folder, models[0], MergingCTC)
    brain.modules.normalize.norm_type = "sentence"
    states = [
        {f"model.{n}": t.clone() for n, t in model.state_dict().items()}
        for model in models
    ]
    return brain, states


def mean_of(states, weights=(0.5, 0.5)):
    return {
        name: sum(w * state[name] for w, state in zip(weights, states))
        for name in states[0]
    }


def moments(brain, state, data):
    batches = FixedBatches(brain, data, {"batch_size": 4})
    batches.one_by_one()
    with open_weights(state) as weights:
        layers = _layers(brain, weights)
    return _moments(brain, state, layers, batches, range(len(batches)))


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_linear_layers_have_the_wanted_moments_exactly(tmp_path, weights):
    brain, states = made(lambda seed: Linear(), tmp_path)
    data = tiny_ctc_data(12)
    shares = [w / sum(weights) for w in weights] if weights else [0.5, 0.5]
    merged = mean_of(states, shares)
    fixed = repair(brain, merged, states, data, weights=weights, limit=None)
    wanted = [moments(brain, state, data) for state in states]
    before, after = (moments(brain, state, data) for state in (merged, fixed))
    assert list(after) == ["model.first", "model.conv", "model.last"]
    for name, found in after.items():
        target = Moments.interpolated([each[name] for each in wanted], shares)
        for which in ("mean", "deviation"):
            torch.testing.assert_close(
                getattr(found, which),
                getattr(target, which),
                rtol=1e-4,
                atol=1e-5,
            )
        # which it had not before
        assert (before[name].deviation < 0.9 * target.deviation).any()


def test_a_conformer_varies_as_its_parents_do(tmp_path):
    brain, (anchor, source) = made(tiny_conformer, tmp_path)
    source = align(source, anchor, heads=2)
    data = tiny_ctc_data(12)
    merged = mean_of([anchor, source])
    fixed = repair(brain, merged, [anchor, source], data)
    wanted = [moments(brain, state, data) for state in (anchor, source)]
    found = {
        "merged": moments(brain, merged, data),
        "fixed": moments(brain, fixed, data),
    }
    ratios = {
        which: torch.cat(
            [
                each.deviation
                / Moments.interpolated(
                    [w[name] for w in wanted], [1, 1]
                ).deviation
                for name, each in of_layers.items()
            ]
        )
        for which, of_layers in found.items()
    }
    assert ratios["merged"].median() < 0.9
    torch.testing.assert_close(
        ratios["fixed"], torch.ones_like(ratios["fixed"]), rtol=1e-3, atol=1e-3
    )
    # the output layer, norms and fused attention are as they were merged
    same = {n for n in merged if torch.equal(merged[n], fixed[n])}
    assert "model.ctc_lin.weight" in same
    assert any(name.endswith("in_proj_weight") for name in same)
    assert any(name.endswith("norm.norm.weight") for name in same)


def test_a_unit_that_does_not_vary_is_only_shifted():
    weight, bias = torch.zeros(1, 2), torch.tensor([3.0])
    found = Moments.of(torch.full((4, 1), 3.0))
    wanted = Moments(torch.tensor([1.0]), torch.tensor([2.0]))
    new_weight, new_bias = repaired(weight, bias, found, wanted)
    assert torch.equal(new_weight, weight)
    assert new_bias.item() == pytest.approx(1.0)


def test_wrong_use_is_refused(tmp_path):
    brain, states = made(lambda seed: Linear(), tmp_path)
    data = tiny_ctc_data(4)
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="2 parents: give one for each"):
            repair(brain, mean_of(states), states, data, weights=weights)
    with pytest.raises(ValueError, match="nothing to repair"):
        only = {
            name: tensor
            for name, tensor in mean_of(states).items()
            if name.endswith("weight")
        }
        repair(brain, only, states, data)
