"""Loss and error rate between models: exact shapes, and a recipe's own."""

import json
import math

import pytest
import torch
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data, tiny_network

import speechbrain as sb
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge import Landscape, MergeMixin, barrier
from speechbrain_merge.brain.scorer import Scorer
from speechbrain_merge.brain.weight_plane import WeightPlane, squared_distances
from speechbrain_merge.methods.transport import align
from speechbrain_merge.weights import IncompatibleWeights, write_weights

VALID = {"batch_size": 2}


class Place(torch.nn.Module):
    """A point of a made-up country."""

    def __init__(self):
        super().__init__()
        self.at = torch.nn.Parameter(torch.zeros(2))

    def forward(self):
        """Where it is."""
        return self.at


class Country(MergeMixin, sb.Brain):
    """A Brain whose loss is the height of the place that its weights are."""

    def compute_forward(self, batch, stage):
        """Goes there."""
        assert not self.modules.model.training
        return self.modules.model()

    def compute_objectives(self, predictions, batch, stage):
        """The height; every word is wrong east of the meridian."""
        wrong = predictions[0] > 0
        said = [text.split() for text in batch.wrd]
        heard = [["?"] * len(words) if wrong else words for words in said]
        self.wer_metric.append(batch.id, heard, said)
        return self.height(predictions)

    def on_stage_start(self, stage, epoch=None):
        """A fresh error counter."""
        self.wer_metric = ErrorRateStats()


def country(height, **hparams):
    """A Brain in a country of this shape."""
    brain = Country(
        modules={"model": Place()},
        hparams={"valid_loader_kwargs": VALID, **hparams},
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    brain.height = height
    return brain


def place(*at):
    """Weights."""
    return {"model.at": torch.tensor(at, dtype=torch.float32)}


def double_well(at):
    """Two valleys, at -1 and 1, and a pass of height 1 between them."""
    return (at[0] ** 2 - 1) ** 2


@pytest.mark.parametrize(
    ("height", "ends", "expected"),
    [
        # a bowl lies below its chords
        (lambda at: at[0] ** 2, (-1.0, 1.0), 0.0),
        (double_well, (-1.0, 1.0), 1.0),
        # L(t) = -(4t - 1)², above its chord -1 - 8t by 16 t (1 - t)
        (lambda at: -(at[0] ** 2), (-1.0, 3.0), 4.0),
        (lambda at: 7 + 0 * at[0], (-1.0, 3.0), 0.0),
    ],
)
def test_barriers_of_known_heights(height, ends, expected):
    landscape = Landscape(country(height), tiny_ctc_data(3))
    first, last = ends
    line = landscape.line({"A": place(first, 2), "B": place(last, 2)}, points=9)
    assert line["barrier"]["loss"] == expected
    assert line["distance"] == last - first
    assert [point["t"] for point in line["points"]] == [i / 8 for i in range(9)]
    for point in line["points"]:
        t = point["t"]
        at = torch.tensor([(1 - t) * first + t * last, 2.0])
        assert point["loss"] == float(height(at))
        assert point["wer"] == (100.0 if at[0] > 0 else 0.0)
        assert point["errors"] == point["words"] * (at[0] > 0)
    json.dumps(line, allow_nan=False)


def test_a_barrier_of_the_error_rate_and_points_beyond_the_models():
    landscape = Landscape(country(double_well), tiny_ctc_data(3))
    models = {"A": place(-1, 0), "B": place(1, 0)}
    points = [1.5, 0, 0.25, 0.625, 1, -0.5]
    line = landscape.line(models, points)
    walked = {point["t"]: point for point in line["points"]}
    assert list(walked) == sorted(points)
    assert walked[1.5]["weights"] == [-0.5, 1.5]
    assert walked[1.5]["loss"] == walked[-0.5]["loss"] == 9.0
    # 9 is higher, but not between the two: at 0.625 it is (1/16 - 1)²
    assert line["barrier"]["loss"] == 0.87890625
    # chord 62.5 % at t = 0.625, where all is wrong
    assert line["barrier"]["wer"] == 37.5
    for parts in ([0.25, 0.5], [0, 1], [0, 0, 0.5]):
        partly = landscape.line(models, parts)
        assert partly["barrier"] == {"loss": None, "wer": None}


def test_a_loss_that_is_no_number_is_no_barrier_but_a_wall(tmp_path):
    brain = country(lambda at: 1 / at[0].abs())
    landscape = Landscape(brain, tiny_ctc_data(3), folder=tmp_path)
    models = {"A": place(-1, 0), "B": place(1, 0)}
    line = landscape.line(models, 3, name="wall")
    assert [point["loss"] for point in line["points"]] == [1, None, 1]
    assert line["barrier"] == {"loss": None, "wer": 0.0}
    assert barrier(line["points"]) == math.inf
    assert json.loads((tmp_path / "wall.json").read_text()) == line
    again = Landscape(brain, tiny_ctc_data(3), folder=tmp_path)
    assert again.line(models, 3) == line
    with pytest.raises(ValueError, match="at t=0 and t=1"):
        barrier(line["points"][1:])
    with pytest.raises(ValueError, match="between"):
        barrier(line["points"][::2])
    bad = landscape.line({"A": place(0, 0), "B": place(1, 0)}, 3)
    assert bad["points"][0]["loss"] is bad["barrier"]["loss"] is None


def test_the_plane_keeps_distances_and_shapes():
    brain = country(lambda at: (at[0] - 1) ** 2 + (at[1] - 2) ** 2)
    landscape = Landscape(brain, tiny_ctc_data(2))
    models = {"A": place(0, 0), "B": place(3, 0), "C": place(3, 4)}
    plane = landscape.plane(models, points=4, margin=0.5)
    marks = {m["name"]: (m["x"], m["y"]) for m in plane["models"]}
    assert marks == {"A": (0, 0), "B": (3, 0), "C": (3, 4)}
    assert [m["loss"] for m in plane["models"]] == [5, 8, 8]
    assert [m["weights"] for m in plane["models"]] == torch.eye(3).tolist()
    assert plane["x"] == [-1.5, 0.5, 2.5, 4.5]
    assert plane["y"][::3] == [-2, 6] and len(plane["points"]) == 16
    for number, point in enumerate(plane["points"]):
        x, y = plane["x"][number % 4], plane["y"][number // 4]
        assert (point["x"], point["y"]) == (x, y)
        # x and y are the weights' own directions here
        assert point["loss"] == pytest.approx((x - 1) ** 2 + (y - 2) ** 2)
        assert sum(point["weights"]) == pytest.approx(1)
    json.dumps(plane, allow_nan=False)


def test_coordinates_of_any_three_models():
    generator = torch.Generator().manual_seed(3)
    models = [
        {
            "w": torch.randn(40, generator=generator),
            "b": torch.randn(3, 2, generator=generator, dtype=torch.float64),
            "steps": torch.tensor(1000 * i),
        }
        for i in range(3)
    ]
    squares = squared_distances(models)
    plane = WeightPlane(squares)
    for i, here in enumerate(plane.positions):
        assert plane.weights_at(*here) == pytest.approx(
            [float(i == j) for j in range(3)]
        )
        for j, there in enumerate(plane.positions):
            both = zip(models[i].values(), models[j].values())
            apart = [(a - b).double().norm() ** 2 for a, b in list(both)[:2]]
            assert squares[i][j] == pytest.approx(float(sum(apart)))
            assert math.dist(here, there) == pytest.approx(squares[i][j] ** 0.5)


def test_what_is_no_line_and_no_plane_is_refused():
    landscape = Landscape(country(double_well), tiny_ctc_data(2))
    three = {"A": place(0, 0), "B": place(1, 1), "C": place(3, 3)}
    with pytest.raises(ValueError, match="lie on one line"):
        landscape.plane(three)
    with pytest.raises(ValueError, match="lie on one line"):
        landscape.plane({**three, "B": place(0, 0)})
    with pytest.raises(ValueError, match="2 models are needed.*'C'"):
        landscape.line(three)
    odd = {"model.at": torch.zeros(3)}
    with pytest.raises(IncompatibleWeights, match="model.at"):
        landscape.line({"A": place(0, 0), "odd": odd})
    with pytest.raises(ValueError, match="at least 2"):
        landscape.line({"A": place(0, 0), "B": place(1, 0)}, points=1)
    with pytest.raises(ValueError, match="`folder`"):
        landscape.line({"A": place(0, 0), "B": place(1, 0)}, 2, name="x")


def test_a_stopped_landscape_goes_on_and_shares_its_points(
    tmp_path, monkeypatch
):
    data = tiny_ctc_data(2)
    models = {
        name: write_weights(tmp_path / f"{name}.safetensors", place(*at))
        for name, at in (("A", (-1, 0)), ("B", (1, 0)), ("C", (0, 2)))
    }
    line = {name: models[name] for name in "AB"}

    score, visited = Scorer.score, []

    def visit(scorer, **arguments):
        visited.append(scorer)
        if len(visited) == interrupted_at[0]:
            raise KeyboardInterrupt
        return score(scorer, **arguments)

    interrupted_at = [None]
    monkeypatch.setattr(Scorer, "score", visit)

    def visits(work, last=None, **context):
        landscape = Landscape(
            country(double_well),
            data,
            folder=tmp_path / "points",
            context=context,
        )
        visited.clear()
        interrupted_at[0] = last
        return work(landscape), len(visited)

    with pytest.raises(KeyboardInterrupt):
        visits(lambda landscape: landscape.line(line, 5), last=4)
    with open(tmp_path / "points" / "points.jsonl", "a") as file:
        file.write('{"key": "torn')
    whole, count = visits(lambda landscape: landscape.line(line, 5))
    assert count == 2
    again, count = visits(lambda landscape: landscape.line(line, 5))
    assert (again, count) == (whole, 0)
    fresh = Landscape(country(double_well), data).line(line, 5)
    assert fresh == whole
    # back the same way, and a plane through both: models are known already
    back, count = visits(
        lambda landscape: landscape.line(dict(list(line.items())[::-1]), 5)
    )
    assert count == 0
    losses = [point["loss"] for point in whole["points"]]
    assert [point["loss"] for point in back["points"]] == losses[::-1]
    _, count = visits(lambda landscape: landscape.plane(models, 2))
    assert count == 1 + 4
    # heard otherwise, nothing is known
    _, count = visits(lambda landscape: landscape.line(line, 5), mode="other")
    assert count == 5


class MergingCTC(MergeMixin, TinyCTC):
    """The tiny recipe, with merging."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Brain that has learned, with the weights of its start and its end."""
    torch.manual_seed(0)
    model = tiny_network(0)
    brain = tiny_ctc_brain(
        tmp_path_factory.mktemp("run"),
        model,
        MergingCTC,
        epochs=12,
        valid_loader_kwargs=VALID,
    )
    start = weights_of(model)
    brain.fit(
        brain.hparams.epoch_counter,
        tiny_ctc_data(24, seed=1),
        train_loader_kwargs={"batch_size": 4},
    )
    return brain, start, weights_of(model)


def weights_of(model):
    """A copy of its weights, named as candidates are."""
    return {
        f"model.{name}": tensor.clone()
        for name, tensor in model.state_dict().items()
    }


UNITS = {
    "names": ["tiny"],
    "tensors": {
        "model.hidden.weight": ["units", "fixed"],
        "model.hidden.bias": ["units"],
        "model.norm.weight": ["units"],
        "model.norm.bias": ["units"],
        "model.norm.running_mean": ["units"],
        "model.norm.running_var": ["units"],
        "model.ctc_lin.weight": ["fixed", "units"],
    },
    "fixed": ["model.ctc_lin.bias", "model.norm.num_batches_tracked"],
}


def permuted(weights, order):
    """The same function with its hidden units in another order."""
    rows = ("hidden.", "norm.")
    result = {}
    for name, tensor in weights.items():
        short = name.removeprefix("model.")
        if short.startswith(rows) and tensor.ndim:
            tensor = tensor[order]
        elif short == "ctc_lin.weight":
            tensor = tensor[:, order]
        result[name] = tensor.clone()
    return result


def test_the_ends_of_a_line_are_the_models(trained):
    brain, start, end = trained
    test = tiny_ctc_data(6, seed=60)
    landscape = Landscape(brain, test)
    # the Brain's own module, as it is now, is no moving target
    brain.load_weights(start)
    live = {
        f"model.{name}": tensor
        for name, tensor in brain.modules.model.state_dict().items()
    }
    line = landscape.line({"start": live, "end": end}, 5)
    # what the points borrowed is given back
    for name, tensor in brain.modules.model.state_dict().items():
        assert torch.equal(start[f"model.{name}"], tensor), name
    for point, weights in (
        (line["points"][0], start),
        (line["points"][-1], end),
    ):
        tally = brain.score_weights(weights, test)
        assert point["errors"] == tally.errors and point["words"] == tally.words
        brain.use_weights(weights)
        loss = brain.evaluate(test, min_key="WER", test_loader_kwargs=VALID)
        assert point["loss"] == pytest.approx(loss, rel=1e-5)
    brain.use_weights(None)
    assert line["points"][0]["wer"] > 80 and line["points"][-1]["wer"] < 50
    losses = [point["loss"] for point in line["points"]]
    assert losses == sorted(losses, reverse=True)


def test_another_order_of_units_is_a_barrier_until_it_is_undone(trained):
    brain, _, end = trained
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    other = permuted(end, order)
    landscape = Landscape(brain, tiny_ctc_data(6, seed=60))
    apart = landscape.line({"A": end, "B": other}, 5)
    first, *_, last = apart["points"]
    assert first["errors"] == last["errors"]
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert apart["barrier"]["loss"] > 0.5 and apart["barrier"]["wer"] > 20
    # as a symmetry map says it, undone by alignment
    for undone in (
        permuted(other, order.argsort()),
        align(other, end, architecture=UNITS, progress=False),
    ):
        close = landscape.line({"A": end, "B": undone}, 5)
        assert close["distance"] == 0
        assert close["barrier"]["loss"] < 1e-6 and close["barrier"]["wer"] == 0
