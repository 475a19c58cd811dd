"""Fast factors equal the full decomposition, and say when they would not."""

import math
import threading

import pytest
import scipy.linalg
import torch

from speechbrain_merge.methods import factorization
from speechbrain_merge.methods.factorization import (
    DOUBLE,
    SINGLE,
    all_stronger,
    decompose,
    orthogonalize,
    polar,
    strongest,
)
from speechbrain_merge.methods.newton_schulz import polynomials_of
from speechbrain_merge.methods.one_thread import single_thread, spread
from speechbrain_merge.methods.tall import Tall


def with_spectrum(rows, columns, values):
    """A random matrix with given singular values."""
    left = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))
    right = torch.linalg.qr(
        torch.randn(columns, len(values), dtype=torch.float64)
    )
    values = torch.tensor(values, dtype=torch.float64)
    return (left[0] * values) @ right[0].T


def count_full(monkeypatch):
    """How often the full decomposition was asked for."""
    calls = []
    full = factorization.decompose
    monkeypatch.setattr(
        factorization,
        "decompose",
        lambda matrix, *more: calls.append(matrix.shape) or full(matrix, *more),
    )
    return calls


@pytest.mark.parametrize(
    "shape", [(40, 25), (25, 40), (30, 30), (1, 7), (7, 1)]
)
def test_strongest_directions_without_full_decomposition(shape, monkeypatch):
    calls = count_full(monkeypatch)
    matrix = torch.randn(shape, dtype=torch.float64)
    count = max(1, min(shape) // 3)
    singular = strongest(matrix, count)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(singular.spectrum, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        (singular.left * singular.values) @ singular.right.T,
        (left[:, :count] * values[:count]) @ right[:count],
        rtol=0,
        atol=1e-12,
    )
    assert not calls


def test_weak_directions_fall_back(monkeypatch):
    """A Gram matrix has lost a direction that is 1e-9 of the strongest."""
    calls = count_full(monkeypatch)
    matrix = with_spectrum(20, 12, [1.0, 0.5, 1e-9])
    singular = strongest(matrix, 3, SINGLE)
    assert calls == [(20, 12)]
    torch.testing.assert_close(
        singular.values,
        torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    gram = singular.left.T @ singular.left
    torch.testing.assert_close(
        gram, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12
    )


def exact_and_single(matrix, count):
    """Strongest part exactly, by our first rung, and by LAPACK in float32."""
    found = []
    for left, values, right in (
        torch.linalg.svd(matrix, full_matrices=False),
        torch.linalg.svd(matrix.float(), full_matrices=False),
    ):
        found.append(
            ((left[:, :count] * values[:count]) @ right[:count]).double()
        )
    singular = strongest(matrix, count, SINGLE)
    assert singular.values.dtype == torch.float32
    ours = (singular.left * singular.values) @ singular.right.T
    return found[0], ours.double(), found[1]


@pytest.mark.parametrize("shape", [(96, 96), (64, 200), (200, 64)])
def test_first_rung_is_no_worse_than_lapack_in_float32(shape, monkeypatch):
    calls = count_full(monkeypatch)
    matrix = torch.randn(shape, dtype=torch.float64)
    exact, ours, lapack = exact_and_single(matrix, min(shape) // 5)
    assert (ours - exact).norm() < 2 * (lapack - exact).norm()
    assert (ours - exact).norm() < 1e-5 * exact.norm()
    assert not calls


def test_first_rung_gives_way_where_it_would_lose():
    """A weak direction among the wanted ones: float64 takes over."""
    matrix = with_spectrum(40, 30, [1.0] * 9 + [1e-3] + [1e-4] * 20)
    singular = strongest(matrix, 10, SINGLE)
    assert singular.values.dtype == torch.float64
    exact = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(
        (singular.left * singular.values) @ singular.right.T,
        (exact[0][:, :10] * exact[1][:10]) @ exact[2][:10],
        rtol=0,
        atol=1e-9,
    )


def test_polar_factor_of_a_slim_matrix_in_single_precision(monkeypatch):
    calls = count_full(monkeypatch)
    matrix = torch.randn(200, 20, dtype=torch.float64)
    factor, _ = polar(matrix, SINGLE)
    assert factor.dtype == torch.float32 and not calls
    torch.testing.assert_close(
        factor.double(), polar(matrix)[0], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(60, 30), (200, 30)])
@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-8])
def test_directions_stronger_than_noise(noise, shape, weighted):
    """Where noise decides, and where rounding errors of float32 do."""
    columns = shape[1]
    for weakest, stronger in ((0.9 * noise, False), (2 * noise, True)):
        values = torch.logspace(0, math.log10(weakest), columns).tolist()
        matrix = with_spectrum(*shape, values)
        weights = None
        if weighted:
            weights = torch.linspace(1, 3, columns, dtype=torch.float64)
            matrix = matrix / weights
        told = all_stronger(Tall(matrix), noise, SINGLE, weights)
        assert told == (stronger and noise > 1e-7)  # float64 cannot tell 1e-16


def test_weak_directions_are_told_from_noise_without_eigenvalues(monkeypatch):
    solved, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda gram: solved.append(gram) or eigh(gram)
    )
    matrix = with_spectrum(60, 30, torch.logspace(0, -3, 30).tolist())
    assert not all_stronger(Tall(matrix), 2e-3)
    assert not solved


def test_directions_of_zero_are_left_out():
    matrix = with_spectrum(9, 6, [2.0, 1.0])
    assert strongest(matrix, 5).values.tolist() == pytest.approx([2.0, 1.0])
    nothing = strongest(torch.zeros(4, 3, dtype=torch.float64), 2)
    assert nothing.left.shape == (4, 0) and nothing.right.shape == (3, 0)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30)])
def test_polar_factor(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    factor, spectrum = polar(matrix)
    expected = torch.from_numpy(
        scipy.linalg.polar(matrix.numpy(), side="right")[0]
    )
    torch.testing.assert_close(factor, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        spectrum, torch.linalg.svdvals(matrix), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("weakest", [1e-3, 1e-6, 1e-9])
def test_polar_factor_of_ill_conditioned_matrix(weakest):
    matrix = with_spectrum(16, 10, [1.0] * 9 + [weakest])
    for ladder, tolerance in ((SINGLE, 1e-8), (DOUBLE, 1e-12)):
        factor = polar(matrix, ladder)[0].double()
        error = (factor.T @ factor - torch.eye(10)).abs().max()
        assert error < tolerance
        # the nearest: what remains is symmetric, and positive
        remains = factor.T @ matrix
        assert (remains - remains.T).abs().max() < tolerance
        assert torch.linalg.eigvalsh(remains).min() > 0


def test_polar_factor_leaves_directions_of_zero():
    matrix = with_spectrum(8, 6, [3.0, 2.0])
    factor, spectrum = polar(matrix)
    assert torch.linalg.svdvals(factor).tolist() == pytest.approx(
        [1, 1, 0, 0, 0, 0], abs=1e-12
    )
    assert spectrum[:2].tolist() == pytest.approx([3.0, 2.0])


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15)])
@pytest.mark.parametrize("name", ["quintic", "muon", "classical"])
def test_newton_schulz_is_what_its_steps_make(shape, name):
    """One decomposition of the Gram matrix equals the steps, done as such."""
    matrix = torch.randn(shape, dtype=torch.float64)
    steps = matrix / (matrix.norm() + 1e-7)
    for a, b, c in polynomials_of(name, 5):
        gram = steps @ steps.T
        steps = a * steps + (b * gram + c * gram @ gram) @ steps
    torch.testing.assert_close(
        orthogonalize(matrix, "newton_schulz", polynomials_of(name, 5)),
        steps,
        rtol=0,
        atol=1e-10,
    )


def test_twenty_classical_steps_are_the_polar_factor():
    matrix = with_spectrum(64, 40, torch.linspace(1, 0.05, 40).tolist())
    factor = orthogonalize(
        matrix, "newton_schulz", polynomials_of("classical", 20)
    )
    torch.testing.assert_close(factor, polar(matrix)[0], rtol=0, atol=1e-7)


def shared_directions(part, size=256, tasks=10):
    """Singular vectors, side by side, of task vectors that share directions."""
    common = torch.randn(size, size, dtype=torch.float64) / size**0.5
    count = int(size * part)
    return torch.cat(
        [
            torch.linalg.svd(
                common
                + 0.5 * torch.randn(size, size, dtype=torch.float64) / size**0.5
            )[0][:, :count]
            for _ in range(tasks)
        ],
        dim=1,
    )


def test_five_newton_schulz_steps_are_no_polar_factor_at_low_rank():
    """papers.md 1.3: near-duplicate directions stay far below 1."""
    matrix = shared_directions(1 / 10)
    weakest = torch.linalg.svdvals(matrix).min()
    assert weakest < 1e-2
    for name, least in (("muon", 0.3), ("quintic", 0.15)):
        factor = orthogonalize(matrix, "newton_schulz", polynomials_of(name, 5))
        assert torch.linalg.svdvals(factor).min() < 1 - least
    exact = torch.linalg.svdvals(orthogonalize(matrix, "svd"))
    torch.testing.assert_close(
        exact, torch.ones_like(exact), rtol=0, atol=1e-11
    )


def test_five_quintic_steps_come_near_at_high_rank():
    """papers.md 1.3: with half of the rank kept, the schedule is within 3 %."""
    factor = orthogonalize(
        shared_directions(1 / 2, size=128, tasks=4),
        "newton_schulz",
        polynomials_of("quintic", 5),
    )
    values = torch.linalg.svdvals(factor)
    assert (values - 1).abs().max() < 0.05


def test_retry_when_divide_and_conquer_fails(monkeypatch):
    def fail(*arguments, **parameters):
        raise torch.linalg.LinAlgError("failed to converge")

    matrix = torch.randn(6, 4, dtype=torch.float64)
    expected = torch.linalg.svdvals(matrix)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    singular = decompose(matrix)
    torch.testing.assert_close(singular.values, expected)
    torch.testing.assert_close(
        (singular.left * singular.values) @ singular.right.T, matrix
    )


def test_one_thread_inside_and_as_before_outside():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []

        def look(item):
            with single_thread():
                seen.append(torch.get_num_threads())
            return item

        assert spread(look, list(range(8)), threads=4) == list(range(8))
        assert seen == [1] * 8
        assert torch.get_num_threads() == 2
        inside_new_thread = []
        thread = threading.Thread(
            target=lambda: inside_new_thread.append(torch.get_num_threads())
        )
        thread.start()
        thread.join()
        assert inside_new_thread == [2]
    finally:
        torch.set_num_threads(before)
