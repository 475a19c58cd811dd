"""Searches over the scales of experts, parts and depths, in a merge stage.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from tiny_models import TinyCTC, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage, merge
from speechbrain_merge.methods import (
    Average,
    LayerScaled,
    Restricted,
    TaskArithmetic,
    create,
)
from speechbrain_merge.search import (
    CMAES,
    CoordinateSearch,
    GoldenSection,
    GridSearch,
)
from speechbrain_merge.stage.named_coefficients import with_coefficients
from speechbrain_merge.weights import open_weights

VALID = dict(batch_size=5)


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe with one word more."""


class Deep(torch.nn.Module):
    """Has an encoder of three layers, so that there is depth."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.layers = torch.nn.ModuleList(
            torch.nn.Linear(8, 8) for _ in range(3)
        )
        self.ctc_lin = torch.nn.Linear(8, 7)

    def forward(self, features, lengths):
        del lengths
        for layer in self.encoder.layers:
            features = features + torch.tanh(layer(features))
        return self.ctc_lin(features)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Brain with a pool of two experts of one base, from two domains."""
    folder = tmp_path_factory.mktemp("experts")
    for number, run in enumerate(("run-a", "run-b")):
        torch.manual_seed(0)
        model = Deep()
        pool = CheckpointPool(folder / "pool", {"model": model}, run=run)
        brain = tiny_ctc_brain(
            folder / run,
            model,
            MergingCTC,
            epochs=3,
            learning_rate=0.01,
            recoverables={"pool": pool},
            output_folder=str(folder / run),
        )
        brain.fit(
            brain.hparams.epoch_counter,
            tiny_ctc_data(12, seed=number, shift=0.4 * number),
            tiny_ctc_data(6, seed=50),
            train_loader_kwargs={"batch_size": 4},
            valid_loader_kwargs=dict(VALID),
        )
    brain.pool = pool
    return brain


def run(brain, method, search, name, valid=None):
    """A merge stage over both experts."""
    stage = MergeStage(
        method, [brain.pool], per_run="last", search=search, name=name
    )
    return brain.merge(stage, valid or tiny_ctc_data(10, seed=50), VALID)


def assert_made_of(brain, result, method):
    """The merged file is what the method makes of the experts, to the bit."""
    experts = {each.run: each for each in brain.pool.candidates()}
    by_hand = merge(
        method,
        list(experts.values()),
        experts["run-a"].base,
        progress=False,
    )
    with open_weights(result.path) as merged:
        for name, tensor in by_hand.items():
            assert torch.equal(merged[name], tensor), name


EXPERTS = {"run-a": (0.0, 1.0), "run-b": (0.0, 1.0)}
PARTS = {"encoder": (0.0, 1.0), "output": (0.0, 1.0)}
DEPTHS = {f"depth.{place}": (0.0, 1.0) for place in range(3)}


def expected(names, found):
    """The coefficient that a search has found, in the method's own form."""
    if names is PARTS:
        return {"parts": found, "default": 1.0}
    return {"depth": list(found.values())}


@pytest.mark.parametrize("names", [EXPERTS, PARTS, DEPTHS])
@pytest.mark.parametrize("kind", ["coordinate", "cma"])
def test_scales_of_experts_parts_and_depths(trained, names, kind):
    if kind == "cma":
        search = CMAES(names, evaluations=6, seed=1)
    else:
        search = CoordinateSearch(names, evaluations=6)
    result = run(trained, "task_arithmetic", search, f"{kind}-{len(names)}")
    assert len(result.trials) == 6
    found = result.coefficients
    assert list(found) == list(names)
    if names is EXPERTS:
        labels = list(result.method["scale"]["experts"])
        assert labels == result.candidates
        assert list(result.method["scale"]["experts"].values()) == list(
            found.values()
        )
    else:
        assert result.method["scale"] == expected(names, found)
    assert_made_of(
        trained, result, TaskArithmetic(scale=result.method["scale"])
    )
    # what was reported is what the merged weights give
    valid = tiny_ctc_data(10, seed=50)
    tally = trained.score_weights(result.path, valid, VALID)
    assert tally.value == result.value
    best = min(trial["value"] for trial in result.trials if trial["complete"])
    assert result.value == best


@pytest.mark.parametrize(
    "method, name",
    [
        (lambda: LayerScaled(TaskArithmetic(), 0.5, 1.0), "layered"),
        (
            lambda: Restricted(
                TaskArithmetic(), include="encoder", otherwise="base"
            ),
            "restricted",
        ),
        (
            lambda: Restricted(LayerScaled("ties", 0.5, 1.0), exclude="output"),
            "both",
        ),
    ],
)
def test_wrapped_methods(trained, method, name):
    search = CoordinateSearch(EXPERTS, evaluations=4)
    result = run(trained, method(), search, name)
    inner = result.method["method"]
    while "method" in inner["parameters"]:
        inner = inner["parameters"]["method"]
    scales = inner["parameters"]["scale"]["experts"]
    assert list(scales.values()) == list(result.coefficients.values())
    made = create(
        result.method["name"],
        **{key: value for key, value in result.method.items() if key != "name"},
    )
    assert_made_of(trained, result, made)
    # the wrapper's own parameters, and the inner method's, in one search
    if name == "layered":
        search = CMAES({"last": (0, 1), "scale": (0, 1)}, evaluations=3)
        result = run(trained, method(), search, "both-levels")
        assert result.method["last"] == result.coefficients["last"]
        assert (
            result.method["method"]["parameters"]["scale"]
            == (result.coefficients["scale"])
        )


def test_weights_of_an_average_and_other_searches(trained):
    grid = {"run-a": [0.2, 1.0], "run-b": [1.0]}
    result = run(trained, "average", GridSearch(grid=grid), "weights")
    assert list(result.method["weights"]["experts"].values()) == list(
        result.coefficients.values()
    )
    search = GoldenSection("scale.run-b", 0.0, 1.0, evaluations=3)
    result = run(trained, "task_arithmetic", search, "golden")
    assert result.method["scale"]["default"] == 1.0
    assert len(result.method["scale"]["experts"]) == 1


def test_what_cannot_be_searched(trained):
    told = (
        "coefficient 'run-c', which method 'ties' does not have.*run-a, run-b"
    )
    with pytest.raises(ValueError, match=told):
        run(trained, "ties", GoldenSection("run-c", 0, 1), "unknown")
    search = GridSearch(grid={"run-a": [0.1], "encoder": [0.1]})
    with pytest.raises(ValueError, match="by experts and by parts"):
        run(trained, "ties", search, "mixed")
    search = GridSearch(grid={"depth.0": [0.1], "depth.2": [0.1]})
    with pytest.raises(ValueError, match="without a gap"):
        run(trained, "ties", search, "gap")


def test_what_the_search_does_not_name_stays(trained):
    members = trained.pool.candidates()[-1:]
    name = members[0].name
    method = TaskArithmetic({"parts": {"encoder": 0.1}, "default": 0.2})
    method = with_coefficients(method, {"output": 0.3}, members)
    assert method.scale == {
        "parts": {"encoder": 0.1, "output": 0.3},
        "default": 0.2,
    }
    with pytest.raises(ValueError, match="proposes `scale` by experts"):
        with_coefficients(method, {name: 0.3}, members)
    method = with_coefficients(Average([4.0]), {name: 0.3}, members)
    assert method.weights == {"experts": {name: 0.3}}
