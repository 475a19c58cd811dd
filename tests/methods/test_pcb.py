"""PCB-Merging.

No package has it: the definition is written out again here, with whole vectors
and by sorting.
"""

import math

import pytest
import torch

from speechbrain_merge.methods import PCB

NAMES = {"fc.weight": (30, 20), "fc.bias": (20,), "conv.weight": (4, 5, 3)}


def models(number, dtype=torch.float64, seed=0):
    """A base and experts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    base = {name: normal(shape) for name, shape in NAMES.items()}
    experts = [
        {name: tensor + normal(tensor.shape) for name, tensor in base.items()}
        for _ in range(number)
    ]
    return base, experts


def flat(state_dict):
    """All entries as one list."""
    return torch.cat([one.reshape(-1) for one in state_dict.values()]).tolist()


def normalised(values):
    """To [0, 1]."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def clipped(values, low_share, high_share):
    """Between two entries of the sorted list, as the authors round them."""
    ordered, number = sorted(values), len(values)
    low = ordered[int(number * low_share)]
    high = ordered[int(number * (1 - high_share) - 1)]
    return [min(max(value, low), high) for value in values]


def plain_pcb(base, experts, ratio, scales, variant):
    """The merged task vector, entry by entry."""
    anchor = flat(base)
    vectors = [
        [value - zero for value, zero in zip(flat(expert), anchor)]
        for expert in experts
    ]
    share = 0.01 if variant == "pairs" else 0.0001
    sizes = [clipped([abs(v) for v in one], share, share) for one in vectors]
    shares = [normalised(one) for one in sizes]
    number, entries = len(experts), range(len(anchor))

    def signed(expert, entry):
        return math.copysign(shares[expert][entry], vectors[expert][entry])

    weights = []
    for expert in range(number):
        scores = []
        for entry in entries:
            intra = math.exp(number * shares[expert][entry] ** 2)
            if variant == "pairs":
                inter = sum(
                    math.tanh(signed(expert, entry) * signed(other, entry))
                    for other in range(number)
                )
            else:
                total = sum(vector[entry] for vector in vectors)
                inter = math.tanh(vectors[expert][entry] * total)
            scores.append(intra * inter)
        weights.append(normalised(clipped(scores, 1 - ratio, 0)))
    merged = []
    for entry in entries:
        total = divisor = 0
        for expert in range(number):
            weight = weights[expert][entry]
            size = math.copysign(sizes[expert][entry], vectors[expert][entry])
            total += scales[expert] * weight * size
            divisor += weight
        merged.append(anchor[entry] + total / max(divisor, 1e-12))
    return torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("variant", ["pairs", "sum"])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_it_is_its_definition(number, ratio, variant):
    base, experts = models(number)
    scales = [1.2, 0.8, 1.0, 1.3][:number]
    merged = PCB(ratio, scale=scales, variant=variant)(experts, base)
    expected = plain_pcb(base, experts, ratio, scales, variant)
    found = torch.tensor(flat(merged), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["pairs", "sum"])
def test_in_float32(variant):
    base, experts = models(3, torch.float32)
    merged = PCB(0.2, variant=variant)(experts, base)
    expected = plain_pcb(base, experts, 0.2, [1, 1, 1], variant).float()
    found = torch.tensor(flat(merged))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_many_experts_do_not_overflow():
    """exp(T) has no float32 beyond 88 experts."""
    base, experts = models(100, torch.float32)
    merged = PCB()(experts, base)
    assert all(bool(torch.isfinite(one).all()) for one in merged.values())
    assert any(not torch.equal(merged[name], base[name]) for name in base)


def test_pairs_do_not_depend_on_the_size_of_the_task_vectors():
    base, experts = models(3)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    moved = PCB(0.2)(experts, zero)
    small = [
        {name: tensor * 1e-3 for name, tensor in expert.items()}
        for expert in experts
    ]
    for name, tensor in PCB(0.2)(small, zero).items():
        torch.testing.assert_close(tensor, moved[name] * 1e-3)


@pytest.mark.parametrize("variant", ["pairs", "sum"])
def test_a_task_vector_of_one_magnitude_is_merged_whole(variant):
    base = {"w": torch.zeros(50), "v": torch.zeros(2, 3)}
    expert = {"w": torch.full((50,), 0.5), "v": torch.full((2, 3), 0.5)}
    merged = PCB(variant=variant)([expert], base)
    assert all(torch.equal(merged[name], expert[name]) for name in base)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"ratio": 0}, "`ratio` must be a number above 0 and at most 1"),
        ({"ratio": 10}, "got 10"),
        ({"variant": "both"}, "'pairs', 'sum'; got 'both'"),
        ({"scale": None}, "`scale` must be"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(parameters, message):
    with pytest.raises(ValueError, match=message):
        PCB(**parameters)
