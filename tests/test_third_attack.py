"""What a third attack found, each as a test.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from sandbox import run_in_sandbox

from speechbrain_merge.adapters import merge_adapters
from speechbrain_merge.cli import main
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.patterns import find
from speechbrain_merge.training.moving_average import MovingAverage
from speechbrain_merge.weights import fold, write_weights

SCORE = {
    "id": "one",
    "counts": {},
    "reference": ["private"],
    "hypothesis": ["private"],
    "operations": "=",
}


def results(scores="scores/a.jsonl"):
    """Of a study with one model, tested on one set."""
    counts = {"errors": 1, "words": 9, "utterances": 1, "scores": scores}
    row = {
        "name": "a",
        "title": "a",
        "group": "expert",
        "kind": "train",
        "domains": [],
        "parents": [],
        "trainings": [],
        "sets": {"1": {"usual": {"set": counts}}},
        "about": {"1": {}},
    }
    return {
        "schema": 2,
        "metric": "WER",
        "domains": [],
        "tests": ["set"],
        "modes": ["usual"],
        "seeds": [1],
        "rows": [row],
        "models": {},
        "comparisons": {"pairs": [], "best": {}},
    }


@pytest.fixture
def study(tmp_path):
    """The folder of a study, beside a file that is not part of it."""
    folder = tmp_path / "study"
    (folder / "scores").mkdir(parents=True)
    (tmp_path / "foreign.jsonl").write_text(json.dumps(SCORE) + "\n")
    (folder / "results.json").write_text(json.dumps(results()))
    return folder


@pytest.mark.parametrize("way", ["absolute", "climbing", "link", "number"])
def test_results_do_not_lead_out_of_their_study(study, way):
    foreign = study.parent / "foreign.jsonl"
    name = {
        "absolute": str(foreign),
        "climbing": "../foreign.jsonl",
        "link": "scores/a.jsonl",
        "number": 7,
    }[way]
    (study / "scores/a.jsonl").symlink_to(foreign)
    (study / "results.json").write_text(json.dumps(results(name)))
    code = (
        "import sys; from speechbrain_merge.cli import main;"
        "print(main(['study', sys.argv[1] + '/study', '--page']))"
    )
    assert run_in_sandbox(code, study.parent).strip() == "2"
    assert not (study / "report.html").exists()


def test_a_picture_that_is_a_pipe_or_a_folder_is_passed_over(study):
    os.mkfifo(study / "a.png")
    (study / "b.png").mkdir()
    assert main(["study", str(study), "--page"]) == 0
    assert "image/png" not in (study / "report.html").read_text()


def test_a_picture_without_end_is_refused(study, capsys):
    with open(study / "a.png", "wb") as file:
        file.truncate(1 << 30)
    assert main(["study", str(study), "--page"]) == 2
    assert "a.png has more than" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value",
    [("selected", 7), ("value", "x"), ("chosen", 7), ("trials", 7)],
)
def test_what_is_said_about_a_model_is_checked(study, capsys, key, value):
    found = results()
    found["rows"][0]["about"]["1"][key] = value
    (study / "results.json").write_text(json.dumps(found))
    assert main(["study", str(study), "--page"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"key '{key}'" in line and "results.json" in line


def test_a_comment_hides_no_pattern():
    with pytest.raises(RecordError, match="may take for ever"):
        find("(?#[)(a+)+b(?#])", "a" * 60, "adapter_config.json")


def adapter(**changed):
    """The factors of one layer."""
    return {
        "adapted_model.fc.adapter_down_proj.weight": torch.ones(2, 3),
        "adapted_model.fc.adapter_up_proj.weight": torch.ones(4, 2),
        **changed,
    }


def scaled(number, dtype=torch.float32):
    """Those factors once more, or in another dtype."""
    return {
        name: (tensor * number).to(dtype) for name, tensor in adapter().items()
    }


TWICE = {
    name.removeprefix("adapted_model."): tensor
    for name, tensor in scaled(9).items()
}


def test_two_tensors_that_are_one_factor_are_refused(tmp_path):
    sources = [adapter(**TWICE), adapter()]
    with pytest.raises(ValueError, match="are one factor of one layer"):
        merge_adapters("average", sources, tmp_path / "m.safetensors", alpha=1)
    path = write_weights(tmp_path / "a.safetensors", adapter(**TWICE))
    base = {"fc.weight": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match="are one factor of one layer"):
        fold(path, base=base, alpha=1)


@pytest.mark.parametrize(
    "hostile, message",
    [
        (scaled(1, torch.complex64), "dtype torch.complex64"),
        (scaled(1, torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
        (scaled(1, torch.int64), "dtype torch.int64"),
        (
            {
                name: torch.zeros(shape)
                for name, shape in zip(adapter(), [(0, 3), (4, 0)])
            },
            "do not make a product",
        ),
        (
            {
                name: torch.zeros(shape)
                for name, shape in zip(adapter(), [(), (4, 2)])
            },
            "do not make a product",
        ),
    ],
)
def test_factors_that_make_no_product_are_refused(tmp_path, hostile, message):
    output = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=message):
        merge_adapters("average", [hostile, adapter()], output, alpha=1)
    assert not output.exists()
    with pytest.raises(ValueError):
        fold(hostile, base={"fc.weight": torch.zeros(4, 3)}, alpha=1)


def stepped(**settings):
    """A moving average after a step, and its module."""
    module = torch.nn.Linear(3, 2)
    average = MovingAverage({"m": module}, **settings)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return average


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"decay": 0.9}, "average/m.weight"),
        ({"window": 2}, "snapshot/0/m.weight"),
        ({"window": 2}, "updates/m.weight"),
        ({"window": 2}, "other/m.weight"),
    ],
)
def test_an_average_of_another_shape_is_not_spread(tmp_path, settings, key):
    average = stepped(**settings)
    path = tmp_path / "average.ckpt"
    average.save(path)
    average.load(path, True)
    before = average.weights()
    save_file({**load_file(path), key: torch.ones(1)}, path)
    with pytest.raises(RecordError, match=key):
        average.load(path, True)
    for name, tensor in average.weights().items():
        assert torch.equal(tensor, before[name])


def test_an_average_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "average.ckpt")
    with pytest.raises(RecordError, match="not a regular file"):
        stepped(decay=0.9).load(tmp_path / "average.ckpt", True)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_complex_statistics_are_refused(method):
    experts = [{"fc.weight": torch.rand(3, 3)} for _ in range(2)]
    statistics = [{"fc.weight": torch.eye(3) * 1j} for _ in range(2)]
    with pytest.raises(ValueError, match="is complex"):
        merge(create(method, statistics=statistics), experts)
