"""Statistics of normalisation layers stay statistics, whatever the method."""

import pytest
import torch

from speechbrain.nnet.complex_networks.c_normalization import CBatchNorm
from speechbrain.nnet.normalization import PCEN, BatchNorm1d, GroupNorm
from speechbrain.nnet.quaternion_networks.q_normalization import QBatchNorm
from speechbrain.processing.features import GlobalNorm
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.methods.task_vectors import merged_names
from speechbrain_merge.weights import open_weights, write_weights

METHODS = (
    ("task_arithmetic", {}),
    ("ties", {"density": 0.5, "aggregate": "sum"}),
    ("dare", {"drop_rate": 0.5}),
    ("iso_c", {}),
    ("extreme", {"reference": "base"}),
    ("restricted", {"method": "task_arithmetic", "include": "*"}),
)
every_method = pytest.mark.parametrize("name, parameters", METHODS)


def global_norm(size):
    """After it has seen features of a size."""
    module = GlobalNorm()
    module(size * torch.randn(4, 50, 20))
    return module, {"running_mean", "running_std", "weight"}


def complex_batch_norm(size):
    module = CBatchNorm(input_shape=[None, None, 8], momentum=0.9)
    module(size * torch.randn(4, 30, 8))
    known = {f"moving_{what}" for what in ("mean", "Vrr", "Vii", "Vri")}
    return module, known


def quaternion_batch_norm(size):
    module = QBatchNorm(input_size=8, momentum=0.9)
    module(size * torch.randn(4, 30, 8))
    return module, {"running_mean", "running_var"}


def batch_norm(size):
    module = BatchNorm1d(input_size=8, momentum=0.9)
    module(size * torch.randn(4, 30, 8))
    return module, {"norm.running_mean", "norm.running_var"}


MODULES = (global_norm, complex_batch_norm, quaternion_batch_norm, batch_norm)


@every_method
@pytest.mark.parametrize("make", MODULES)
def test_statistics_of_speechbrain_modules_are_averaged(
    make, name, parameters, tmp_path
):
    """A loud base and quiet experts: nothing goes below zero."""
    models = [make(size) for size in (0.5, 0.4, 2.0)]
    known = models[0][1]
    states = [
        {
            f"normalize.{key}": tensor.detach().clone()
            for key, tensor in module.state_dict().items()
        }
        for module, _ in models
    ]
    for state in states:  # something for the formula
        state["linear.weight"] = torch.randn(4, 4)
    *experts, base = states
    method = create(name, **parameters)
    merged = method(experts, base)
    for key in experts[0]:
        mean = (experts[0][key].double() + experts[1][key].double()) / 2
        if key.removeprefix("normalize.") in known:
            torch.testing.assert_close(merged[key].double(), mean)
    assert not torch.allclose(
        merged["linear.weight"],
        (experts[0]["linear.weight"] + experts[1]["linear.weight"]) / 2,
    )
    # the merged module works on quiet features
    module = models[0][0]
    module.load_state_dict(
        {
            key.removeprefix("normalize."): tensor
            for key, tensor in merged.items()
            if key.startswith("normalize.")
        }
    )
    module.eval()
    quiet = 0.4 * torch.randn(4, 30, 8)
    assert torch.isfinite(module(quiet)).all()
    # ... and files give the same
    paths = []
    for index, state in enumerate(states):
        paths.append(tmp_path / f"{index}.safetensors")
        write_weights(paths[-1], state)
    streamed = merge(method, paths[:2], paths[2], progress=False)
    assert all(torch.equal(streamed[key], merged[key]) for key in merged)


@pytest.mark.parametrize("make", MODULES)
def test_formulas_see_the_learned_weights_alone(make):
    module, known = make(1.0)
    with open_weights(module.state_dict()) as weights:
        seen = set(merged_names([weights]))
    learned = {name for name, _ in module.named_parameters()}
    assert seen == learned and not seen & known


@pytest.mark.parametrize(
    "module", [PCEN(8), GroupNorm(input_size=8, num_groups=2)]
)
def test_learned_parameters_of_normalisations_are_merged(module):
    state = module.state_dict()
    with open_weights(state) as weights:
        assert set(merged_names([weights])) == set(state)


def test_scale_of_a_batch_norm_is_learned():
    base = torch.nn.BatchNorm1d(3).state_dict()
    expert = {key: value.clone() for key, value in base.items()}
    expert["weight"] += 1
    merged = create("task_arithmetic", scale=2)([expert], base)
    assert merged["weight"].tolist() == [3.0] * 3


@pytest.mark.parametrize(
    "leaf", ["variance", "std", "obs_count", "emaVar", "pixel_std"]
)
def test_unknown_modules_by_name_and_sign(leaf):
    name = f"codebook.{leaf}"
    base = {name: torch.full((3,), 2.0)}
    experts = [{name: torch.full((3,), value)} for value in (0.5, 0.25)]
    merged = create("task_arithmetic")(experts, base)
    assert merged[name].tolist() == [0.375] * 3
    # what is negative in one expert is a logarithm, or no variance
    experts[1][name][0] = -0.25
    merged = create("task_arithmetic")(experts, base)
    torch.testing.assert_close(
        merged[name], torch.tensor([-1.75, -1.25, -1.25])
    )


@pytest.mark.parametrize(
    "name", ["variance_predictor.weight", "counter.bias", "estimated", "covar"]
)
def test_names_that_only_look_so(name):
    base, expert = {name: torch.ones(3)}, {name: torch.full((3,), 2.0)}
    merged = create("task_arithmetic", scale=3)([expert], base)
    assert merged[name].tolist() == [4.0] * 3
