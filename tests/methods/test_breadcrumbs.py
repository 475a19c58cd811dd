"""Model Breadcrumbs."""

import pytest
import torch
from methods.reference_answers import (
    TOLERANCES,
    largest_difference,
    task_vector_answers,
)

from speechbrain_merge.methods import Breadcrumbs, TaskArithmetic


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_over_tensors_it_is_mergekits(dtype):
    base, experts, answers = task_vector_answers(dtype)
    merged = Breadcrumbs(density=0.5, outliers=0.1, scale=0.4)(experts, base)
    answer = answers["mergekit_breadcrumbs"]
    # of one entry mergekit keeps int(0.5) = 0 as we do
    assert largest_difference(merged, answer) < TOLERANCES[dtype]


def plain_rows(vector, density, outliers):
    """The authors' rule, a row at a time."""
    rows = vector.reshape(-1, vector.shape[-1]).clone()
    for row in rows:
        order = row.abs().argsort(descending=True)
        removed = int(len(row) * outliers)
        kept = order[removed : removed + int(len(row) * density)]
        mask = torch.zeros(len(row))
        mask[kept] = 1
        row *= mask
    return rows.reshape(vector.shape)


@pytest.mark.parametrize("shape", [(9,), (4, 7), (3, 5, 6), (2, 3, 4, 5)])
def test_over_rows_it_is_the_authors(shape):
    base = {"w": torch.randn(shape)}
    experts = [{"w": torch.randn(shape)} for _ in range(3)]
    method = Breadcrumbs(0.5, outliers=0.2, scale=0.3, scope="row")
    expected = base["w"] + 0.3 * sum(
        plain_rows(expert["w"] - base["w"], 0.5, 0.2) for expert in experts
    )
    torch.testing.assert_close(method(experts, base)["w"], expected)


def test_ten_entries_by_hand():
    base, expert = {"w": torch.zeros(10)}, {"w": -torch.arange(1.0, 11)}
    for scope in ("tensor", "row"):
        for outliers, kept in ((0.1, [5, 6, 7, 8, 9]), (0.2, [4, 5, 6, 7, 8])):
            method = Breadcrumbs(0.5, outliers=outliers, scope=scope)
            merged = method([expert], base)["w"]
            assert (-merged[merged != 0]).tolist() == kept


def test_everything_kept_is_task_arithmetic():
    base = {"w": torch.randn(6, 5), "v": torch.randn(3), "s": torch.randn(())}
    experts = [
        {name: torch.randn(one.shape) for name, one in base.items()}
        for _ in range(2)
    ]
    expected = TaskArithmetic(0.5)(experts, base)
    for scope in ("tensor", "row"):
        method = Breadcrumbs(1, outliers=0, scale=0.5, scope=scope)
        merged = method(experts, base)
        for name in base:
            torch.testing.assert_close(merged[name], expected[name])


def test_a_tensor_without_dimensions_is_kept():
    merged = Breadcrumbs()([{"w": torch.tensor(3.0)}], {"w": torch.tensor(1.0)})
    assert merged["w"].item() == 3.0


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"density": 0}, "`density` must be a number above 0"),
        ({"outliers": 1}, "`outliers` must be a number at least 0 and below 1"),
        ({"density": 0.99, "outliers": 0.02}, "shares of the same entries"),
        ({"scope": "model"}, "'tensor', 'row'; got 'model'"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        Breadcrumbs(**parameters)
