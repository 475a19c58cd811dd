"""The metrics of continual learning, against the benchmark's own script."""

import json
from pathlib import Path

import pytest

from speechbrain_merge.evaluation import (
    average_metrics,
    continual_metrics,
    rate_matrix,
)

STORED = json.loads(
    (Path(__file__).parent / "references/cl_masr.json").read_text()
)


def metrics_of(run):
    matrix = rate_matrix(run["rates"], base=len(run["base"]))
    return continual_metrics(
        matrix,
        **{
            key: [references[locale] for locale in run["new"]]
            for key, references in STORED["references"].items()
        },
    )


@pytest.mark.parametrize("name", STORED["runs"])
def test_rows_of_the_benchmark_come_out_to_the_last_digit(name):
    run = STORED["runs"][name]
    metrics = metrics_of(run)
    averages = average_metrics(metrics)
    for metric, answer in run["answers"].items():
        found = [f"{value:.2f}" for value in metrics[metric]]
        # the columns are base, L1, L2, …, avg; some have nothing of the base
        before = [] if metric == "AWER" else ["nan"]
        assert [*before, *found, f"{averages[metric]:.2f}"] == answer, metric


def test_without_references_two_metrics_are_left_out():
    metrics = continual_metrics([[10.0], [20.0, 30.0]])
    assert metrics["IM"] is None and metrics["FWT"] is None
    assert average_metrics(metrics) == {
        "AWER": 17.5,
        "BWT": -10.0,
        "IM": None,
        "FWT": None,
    }


@pytest.mark.parametrize(
    "matrix, references, told",
    [
        ([[10.0]], {}, "at least two rows"),
        ([[10.0], [20.0]], {}, r"rows of \[1, 1\]"),
        ([[10.0], [20.0, 5.0]], {"joint": []}, "each of the 1 new languages"),
        ([[1.0], [2.0, 5.0]], {"single": [1, 2]}, "and got 2"),
    ],
)
def test_what_is_no_sequence_is_refused(matrix, references, told):
    with pytest.raises(ValueError, match=told):
        continual_metrics(matrix, **references)


def test_rates_without_base_languages_are_refused():
    with pytest.raises(ValueError, match="base is 0"):
        rate_matrix([[1.0]], base=0)
