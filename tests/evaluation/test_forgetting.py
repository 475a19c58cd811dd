"""Forgetting and averages against the published tables."""

import csv
import math
from pathlib import Path

import pytest

from speechbrain_merge.evaluation import (
    ErrorCounts,
    backward_transfer,
    forgetting,
    forward_transfer,
    macro_average,
    normalised_gain,
    summarize_domains,
    worst_domain,
)

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "tables"
BASE = {"clean": 1.96, "other": 3.65}

# Plantinga et al., Tables VII and VIII: procedure, LibriSpeech test-clean and
# test-other, forgetting in % as printed
PRINTED = [
    ("fine-tuned VCTK", 4.50, 7.78, "120"),
    ("fine-tuned CORAAL", 2.55, 5.21, "38"),
    ("fine-tuned JL Corpus", 7.26, 12.9, "260"),
    ("fine-tuned Google NE", 3.24, 6.82, "79"),
    ("sequential V C J G", 4.90, 8.64, "140"),
    ("sequential G J C V", 4.76, 8.57, "140"),
    ("AoDE", 1.98, 4.13, "8.9"),
    ("AoDE with original", 1.93, 3.87, "3.4"),
    ("combined datasets", 4.07, 8.19, "120"),
    ("resampled datasets", 3.71, 7.16, "94"),
    ("AoDE 2nd iteration", 2.02, 4.17, "10"),
    ("AoDE 3rd iteration", 2.03, 4.24, "12"),
    ("AoDE 3rd iteration with original", 1.93, 3.98, "5.3"),
    ("AoDE VCTK x4", 2.14, 4.30, "15"),
    ("AoDE CORAAL x4", 1.96, 4.05, "7.1"),
    ("AoDE JL Corpus x4", 2.02, 4.25, "12"),
    ("AoDE Google NE x4", 2.01, 4.11, "9.1"),
    ("AoDE original x4", 1.86, 3.77, "0.4"),
]

# the table prints 6.79 and 7.09 for these rows, and their six numbers give this
NOT_THEIR_MEAN = {"fine-tuned CORAAL": 7.16, "combined datasets": 7.06}


def as_printed(value, printed):
    """Round as the table does: two figures, or one decimal below 10."""
    decimals = len(printed.partition(".")[2])
    if decimals:
        return round(value, decimals)
    figures = len(printed.rstrip("0")) if len(printed) > 2 else len(printed)
    digits = figures - 1 - math.floor(math.log10(abs(value)))
    return round(value, digits)


@pytest.mark.parametrize("procedure, clean, other, printed", PRINTED)
def test_forgetting_gives_the_printed_number(procedure, clean, other, printed):
    found = forgetting(BASE, {"clean": clean, "other": other}, form="sum")
    assert as_printed(found, printed) == float(printed)


def test_the_mean_of_relative_changes_would_not():
    # the reason for the form that was chosen: 8.9 in the table, 7.1 here
    naive = 50 * (1.98 / 1.96 - 1) + 50 * (4.13 / 3.65 - 1)
    assert round(naive, 1) == 7.1


@pytest.mark.parametrize("name", ["aode_table7.csv", "aode_table8.csv"])
def test_published_tables(name):
    if not (TABLES / name).is_file():
        pytest.skip(f"needs {TABLES / name}")
    with open(TABLES / name) as stream:
        rows = list(csv.DictReader(stream))
    sets = ["vctk", "coraal", "jl_corpus", "google_ne", "ls_clean", "ls_other"]
    assert len(rows) >= 6
    for row in rows:
        rates = {name: float(row[name]) for name in sets}
        found = forgetting(
            BASE,
            {"clean": rates["ls_clean"], "other": rates["ls_other"]},
            form="sum",
        )
        if row["forgetting_percent"] == "0":
            assert found == 0
        else:
            printed = row["forgetting_percent"]
            assert as_printed(found, printed) == float(printed)
        # the papers average all six sets, LibriSpeech's two separately
        mean, decimals = macro_average(rates), row["average"]
        half = 0.5 * 10 ** -len(decimals.partition(".")[2])
        # their rates were rounded before we average them
        if row["procedure"] in NOT_THEIR_MEAN:
            assert round(mean, 2) == NOT_THEIR_MEAN[row["procedure"]]
        else:
            assert abs(mean - float(decimals)) <= half + 0.011


def test_average_of_a_row_given_inline():
    third_iteration_with_original = {
        "vctk": 1.60,
        "coraal": 15.8,
        "jl": 1.30,
        "google": 5.59,
        "clean": 1.93,
        "other": 3.98,
    }
    assert round(macro_average(third_iteration_with_original), 2) == 5.03


def test_pooling_weighs_by_words_and_the_sum_does_not():
    before = {"small": (10, 100), "large": (100, 10000)}
    after = {"small": (20, 100), "large": (100, 10000)}
    assert forgetting(before, after) == pytest.approx(100 * (120 / 110 - 1))
    assert forgetting(before, after, form="sum") == pytest.approx(
        100 * (21 / 11 - 1)
    )
    equal = (
        {"a": (10, 1000), "b": (30, 1000)},
        {"a": (15, 1000), "b": (31, 1000)},
    )
    assert forgetting(*equal) == pytest.approx(forgetting(*equal, form="sum"))


def test_counts_in_any_shape():
    shapes = [
        {"a": ErrorCounts(insertions=1, deletions=1, words=10)},
        {"a": {"errors": 2, "words": 10, "insertions": 2}},
        {"a": (2, 10)},
    ]
    for before in shapes:
        assert forgetting(before, {"a": (3, 10)}) == pytest.approx(50)
    assert forgetting({"a": (0, 10)}, {"a": (3, 10)}) is None


def test_forgetting_refuses():
    with pytest.raises(ValueError, match='form="sum"'):
        forgetting({"a": 2.0}, {"a": 3.0})
    with pytest.raises(ValueError, match="same retention sets"):
        forgetting({"a": (1, 2)}, {"b": (1, 2)})
    with pytest.raises(ValueError, match='"pooled" or "sum"'):
        forgetting({"a": (1, 2)}, {"a": (1, 2)}, form="mean")
    with pytest.raises(ValueError, match="no reference words"):
        forgetting({"a": (1, 0)}, {"a": (1, 0)})
    with pytest.raises(ValueError, match='need "errors" and "words"'):
        forgetting({"a": {"errors": 1}}, {"a": {"errors": 1}})


def test_transfer_of_three_domains():
    matrix = [
        [30.0, 40.0, 50.0],  # the base
        [10.0, 36.0, 52.0],  # after the first
        [14.0, 20.0, 44.0],  # after the second
        [19.0, 23.0, 25.0],  # after the third
    ]
    # (10 - 19 + 20 - 23) / 2 and (40 - 36 + 50 - 44) / 2
    assert backward_transfer(matrix) == -6.0
    assert forward_transfer(matrix) == 5.0
    with pytest.raises(ValueError, match="rows"):
        backward_transfer(matrix[1:])


def test_domain_summary():
    base = {"read": 10.0, "phone": (40, 100), "child": 50.0}
    experts = {"read": 11.0, "phone": 20.0}
    merged = {"read": 9.0, "phone": 45.0, "child": (30, 100)}
    found = summarize_domains(merged, base, experts)
    assert found["mean"] == 28.0
    assert (found["worst_domain"], found["worst_rate"]) == ("phone", 45.0)
    assert found["improved"] == 2
    assert found["relative_change"]["child"] == pytest.approx(-40)
    # an expert that gains nothing has no gain to keep; a merge may do harm
    assert found["normalised_gain"] == {"read": None, "phone": -0.25}
    assert normalised_gain(20.0, 10.0, 8.0) == 1.2


def test_a_mean_over_fewer_sets_is_no_mean():
    assert macro_average({"a": 10.0, "silence": (2, 0)}) is None
    assert macro_average({}) is None
    with pytest.raises(KeyError, match="no rates for"):
        macro_average({"a": 10.0}, names=["a", "b"])
    assert worst_domain({"silence": (2, 0)}) is None
