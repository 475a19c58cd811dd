"""Weights that a Brain borrows for a while are given back.

Authors
 * The speechbrain_merge authors 2026
"""

import copy

import pytest
import torch
from averaging_recipe import TEST_SET, Averaging, trained
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import MergeMixin, MergeStage
from speechbrain_merge.brain.statistics import collect_fisher
from speechbrain_merge.weights import has_adapters, open_weights


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


def held(brain):
    """What all modules hold, kept apart from them."""
    return copy.deepcopy(dict(brain.modules.state_dict()))


def assert_held(brain, before):
    now = brain.modules.state_dict()
    assert set(now) == set(before)
    for name, tensor in before.items():
        assert torch.equal(now[name], tensor), name


def adapted(folder):
    """A Brain of a model with LoRA, and plain weights for that."""
    model = AdaptedModel(
        tiny_network(0), LoRA, all_linear=True, adapter_kwargs={"rank": 2}
    )
    for name, parameter in model.named_parameters():
        if "adapter_up" in name:
            torch.nn.init.ones_(parameter)  # else they do nothing
    brain = tiny_ctc_brain(folder, model, MergingCTC)
    plain = tiny_network(7).state_dict()
    return brain, {f"model.{name}": x for name, x in plain.items()}


def test_plain_weights_come_back(tmp_path):
    brain = trained(tmp_path, Averaging)
    candidate, before = brain.pool.candidates()[0], held(brain)
    with open_weights(candidate) as weights:
        wanted = {name: weights[name].clone() for name in weights.names()}
    with brain.borrowed_weights(candidate):
        for name, tensor in wanted.items():
            module, _, parameter = name.partition(".")
            own = brain.module_named(module).state_dict()[parameter]
            assert torch.equal(own, tensor), name
        assert any(
            not torch.equal(tensor, before[name])
            for name, tensor in brain.modules.state_dict().items()
        )
    assert_held(brain, before)


def test_they_come_back_whatever_happens(tmp_path):
    brain = trained(tmp_path, Averaging)
    first, second, _ = brain.pool.candidates()
    before = held(brain)
    with pytest.raises(KeyError, match="midst"):
        with brain.borrowed_weights(first):
            during = held(brain)
            with brain.borrowed_weights(second):
                pass
            assert_held(brain, during)
            raise KeyError("in the midst")
    assert_held(brain, before)
    # also where the weights do not fit
    with open_weights(first) as weights:
        part = {name: weights[name] for name in weights.names()[1:]}
    with pytest.raises(ValueError, match="Missing key"):
        with brain.borrowed_weights(part):
            raise AssertionError("they do not fit")
    assert_held(brain, before)


def test_a_module_with_adapters_has_its_own_back(tmp_path):
    brain, plain = adapted(tmp_path)
    assert has_adapters(brain.modules.model)
    data, before = tiny_ctc_data(4, seed=3), held(brain)
    features = torch.stack([data[0]["feats"]])
    plain_model = tiny_network(7).eval()
    brain.modules.eval()
    with torch.no_grad():
        expected = plain_model(features, torch.ones(1))
        with brain.borrowed_weights(plain):
            found = brain.modules.model(features, torch.ones(1))
        own = brain.modules.model(features, torch.ones(1))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(own, expected)
    assert_held(brain, before)
    # within a longer loan they go back to that, and then to their own
    brain.load_weights(plain)
    during = held(brain)
    other = {name: tensor + 1 for name, tensor in plain.items()}
    with brain.borrowed_weights(other):
        pass
    assert_held(brain, during)
    brain.on_fit_start()
    assert_held(brain, before)


def test_scoring_and_statistics_leave_the_weights(tmp_path):
    brain = trained(tmp_path, Averaging)
    merged = brain.merge(MergeStage("average", [brain.pool])).path
    brain.load_weights(merged)
    before, candidate = held(brain), brain.pool.candidates()[0]
    tally = brain.score_weights(candidate, TEST_SET)
    assert tally.value == pytest.approx(candidate.score)
    assert tally.loss > 0
    assert_held(brain, before)
    collect_fisher(brain, candidate, TEST_SET, output=tmp_path / "fisher")
    assert_held(brain, before)
