"""A decomposition that fails is tried in another way, or named."""

import pytest
import scipy.linalg
import torch

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import create

SPECTRAL = (
    ("tsv_m", {}),
    ("tsv_m", {"orthogonalizer": "eigh"}),
    ("tsv_m", {"orthogonalizer": "newton_schulz"}),
    ("boosted_tsv_m", {}),
    ("boosted_tsv_m", {"boost_stage": "merged"}),
    ("iso_c", {}),
    ("iso_cts", {}),
    ("iso_cts", {"orthogonalizer": "newton_schulz"}),
)
every_method = pytest.mark.parametrize("name, parameters", SPECTRAL)


def models(shape=(48, 20), size=1.0, dtype=torch.float32):
    """Three experts and a base of zeros."""
    experts = [
        {"encoder.fc.weight": (size * torch.randn(shape)).to(dtype)}
        for _ in range(3)
    ]
    return experts, {"encoder.fc.weight": torch.zeros(shape, dtype=dtype)}


def failing(solver, times, error=torch.linalg.LinAlgError):
    """A solver that does not converge the first times."""
    calls = []

    def solve(*arguments, **parameters):
        calls.append(True)
        if len(calls) <= times:
            raise error("the algorithm failed to converge")
        return solver(*arguments, **parameters)

    return solve


@every_method
@pytest.mark.parametrize("shape", [(48, 20), (30, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [1, 2, 1000])
def test_next_rung_where_a_solver_fails(
    name, parameters, shape, dtype, times, monkeypatch
):
    experts, base = models(shape, dtype=dtype)
    expected = create(name, **parameters)(experts, base)
    eigh = failing(torch.linalg.eigh, times)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    merged = create(name, **parameters)(experts, base)
    # "eigh" adds a small number to each root of an eigenvalue
    fine = 1e-7 if parameters.get("orthogonalizer") == "eigh" else 1e-10
    tolerance = 1e-4 if dtype == torch.float32 else fine
    torch.testing.assert_close(merged, expected, rtol=0, atol=tolerance)


@every_method
@pytest.mark.parametrize("shape", [(48, 20), (30, 30)])
@pytest.mark.parametrize("size", [3e19, 1e-30])
def test_task_vectors_whose_squares_leave_float32(
    name, parameters, shape, size
):
    """3e19 squared is more than float32 holds, 1e-30 squared is less."""
    experts, base = models(shape)
    far = [{key: w * size for key, w in expert.items()} for expert in experts]
    expected = create(name, **parameters)(experts, base)
    merged = create(name, **parameters)(far, base)
    for key, tensor in merged.items():
        torch.testing.assert_close(
            tensor.double() / size, expected[key].double(), rtol=0, atol=1e-4
        )


@every_method
def test_task_vectors_whose_squares_leave_float64(name, parameters):
    experts, base = models(dtype=torch.float64)
    far = [{key: w * 1e200 for key, w in expert.items()} for expert in experts]
    expected = create(name, **parameters)(experts, base)
    merged = create(name, **parameters)(far, base)
    for key, tensor in merged.items():
        torch.testing.assert_close(
            tensor / 1e200, expected[key], rtol=0, atol=1e-9
        )


@every_method
def test_error_names_the_tensor(name, parameters, monkeypatch, tmp_path):
    experts, base = models()
    never = failing(None, 10**9)
    monkeypatch.setattr(torch.linalg, "eigh", never)
    monkeypatch.setattr(torch.linalg, "svd", never)
    monkeypatch.setattr(
        scipy.linalg, "svd", failing(None, 10**9, scipy.linalg.LinAlgError)
    )
    with pytest.raises(ValueError, match="encoder.fc.weight.*`exclude`"):
        create(name, **parameters)(experts, base)
    output = tmp_path / "merged.safetensors"
    with pytest.raises(ValueError, match="encoder.fc.weight.*`exclude`"):
        merge(name, experts, base, output, progress=False, same_base=False)
    assert not output.exists()


def gram_of_few_inputs(width=6):
    """Of rank 3: the equations have no Cholesky factor."""
    inputs = torch.randn(3, width)
    return inputs.T @ inputs


def test_regmean_where_a_solver_fails(monkeypatch):
    experts = [{"proj.weight": torch.randn(4, 6)} for _ in range(2)]
    gram = gram_of_few_inputs()
    statistics = [{"proj.weight": gram}, {"proj.weight": 2 * gram}]
    method = create("regmean", statistics=statistics, off_diagonal=1)
    expected = method(experts)["proj.weight"]
    monkeypatch.setattr(torch.linalg, "eigh", failing(None, 10**9))
    merged = method(experts)["proj.weight"]
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(torch.linalg, "svd", failing(None, 10**9))
    monkeypatch.setattr(
        scipy.linalg, "svd", failing(None, 10**9, scipy.linalg.LinAlgError)
    )
    with pytest.raises(ValueError, match="equations for proj.weight"):
        method(experts)
