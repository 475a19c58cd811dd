"""Rounding errors of storage are no directions of a task vector."""

import copy

import pytest
import torch

from speechbrain.nnet.adapters import LoRA
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import IsoCTS, create
from speechbrain_merge.methods.rounding import spectral_noise, stored_type
from speechbrain_merge.weights import fold, open_weights, write_weights

SIZE, RANK, EXPERTS = 256, 8, 4
SPECTRAL = ("boosted_tsv_m", "tsv_m", "iso_c", "iso_cts")
HALF = (torch.float16, torch.bfloat16)


def low_rank_updates(shared_inputs=False):
    """A base, and what experts add to it: rank 8, 2 % of its norm."""
    base = 0.05 * torch.randn(SIZE, SIZE, dtype=torch.float64)
    inputs = torch.randn(RANK, SIZE, dtype=torch.float64)
    updates = []
    for _ in range(EXPERTS):
        if not shared_inputs:
            inputs = torch.randn(RANK, SIZE, dtype=torch.float64)
        update = torch.randn(SIZE, RANK, dtype=torch.float64) @ inputs
        updates.append(0.02 * base.norm() / update.norm() * update)
    return base, updates


def stored(base, updates, storage):
    """The weights as a checkpoint of a type has them."""
    base = base.to(storage)
    experts = [(base.double() + update).to(storage) for update in updates]
    return base, experts


def outside(change, updates):
    """Share of the energy of a change outside the directions of updates."""
    rank = torch.linalg.matrix_rank(torch.cat(updates, dim=1))
    left = torch.linalg.svd(torch.cat(updates, dim=1))[0][:, :rank]
    rank = torch.linalg.matrix_rank(torch.cat(updates, dim=0))
    right = torch.linalg.svd(torch.cat(updates, dim=0))[2][:rank].T
    inside = left @ (left.T @ change @ right) @ right.T
    return float((change - inside).norm() ** 2 / change.norm() ** 2)


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("storage", [torch.float32, *HALF])
@pytest.mark.parametrize("shared_inputs", [False, True])
def test_noise_of_storage_is_not_raised(name, storage, shared_inputs):
    """As good as from the exact updates, whatever they were stored in."""
    base, updates = low_rank_updates(shared_inputs)
    if storage == torch.bfloat16 and shared_inputs:
        # the sums of these are hardly above the noise of bfloat16
        updates = [4 * update for update in updates]
    base, experts = stored(base, updates, storage)
    exact = create(name)(
        [{"w": base.double() + update} for update in updates],
        {"w": base.double()},
    )["w"]
    exact = exact - base.double()
    # the same values, in a type that does not round the merge once more
    merged = create(name)(
        [{"w": expert.double()} for expert in experts], {"w": base.double()}
    )["w"]
    change = merged - base.double()
    allowed = {torch.float32: 1e-9, torch.float16: 2e-4, torch.bfloat16: 1e-2}
    assert outside(exact, updates) < 1e-9
    assert outside(change, updates) < allowed[storage]
    assert float(change.norm()) == pytest.approx(float(exact.norm()), rel=0.02)
    # ... and in its own type
    merged = create(name)([{"w": each} for each in experts], {"w": base})["w"]
    change_stored = merged.double() - base.double()
    rounding = spectral_noise(base.double(), torch.finfo(storage)) + 1e-6
    assert merged.dtype == storage
    assert torch.linalg.matrix_norm(change_stored - change, 2) < rounding


@pytest.mark.parametrize("name", SPECTRAL)
def test_norm_and_energy_of_the_finding(name):
    """Four updates in float32: 92 % of the energy was noise, 2.8 x the norm."""
    base, updates = low_rank_updates()
    base, experts = stored(base, updates, torch.float32)
    merged = create(name)([{"w": each} for each in experts], {"w": base})["w"]
    change = merged.double() - base.double()
    assert outside(change, updates) < 1e-4
    assert torch.linalg.matrix_norm(change).item() < 2.5 * max(
        update.norm().item() for update in updates
    )


@pytest.mark.parametrize("name", [*SPECTRAL, "wudi"])
@pytest.mark.parametrize("storage", [torch.float32, *HALF])
def test_files_and_memory_agree_on_what_is_noise(name, storage, tmp_path):
    base, updates = low_rank_updates()
    base, experts = stored(base, updates, storage)
    models = [{"w": each} for each in (*experts, base)]
    paths = []
    for index, model in enumerate(models):
        paths.append(tmp_path / f"{index}.safetensors")
        write_weights(paths[-1], model)
    method = create(name, steps=5) if name == "wudi" else create(name)
    streamed = merge(method, paths[:-1], paths[-1], progress=False)
    in_memory = method(models[:-1], models[-1])
    assert torch.equal(streamed["w"], in_memory["w"])


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("storage", HALF)
def test_half_precision_that_was_converted_is_still_half(name, storage):
    base, updates = low_rank_updates()
    base, experts = stored(base, updates, storage)
    models = [{"w": each} for each in (*experts, base)]
    wide = [{"w": model["w"].float()} for model in models]
    half = create(name)(models[:-1], models[-1])["w"]
    converted = create(name)(wide[:-1], wide[-1])["w"]
    assert torch.equal(converted.to(storage), half)


@pytest.mark.parametrize("name", SPECTRAL)
def test_experts_in_float32_of_a_base_in_half_precision(name):
    """Nothing was rounded to float16 but what all started from."""
    base, updates = low_rank_updates()
    base = base.half().float()
    experts = [{"w": (base.double() + each).float()} for each in updates]
    # weak, but well above the rounding errors of float32
    weak = torch.randn(SIZE, 1) @ torch.randn(1, SIZE)
    weak *= 2e-4 / weak.norm()
    experts[0]["w"] += weak
    merged = create(name)(experts, {"w": base})["w"].double() - base.double()
    assert outside(merged, [*updates, weak.double()]) < 1e-4
    along = float((merged * weak).sum() / weak.norm())
    assert along > 1e-4


@pytest.mark.parametrize("name", SPECTRAL)
def test_lora_that_was_folded_into_float32(name, tmp_path):
    linear = torch.nn.Linear(192, 128)
    experts = []
    for _ in range(3):
        adapted = LoRA(copy.deepcopy(linear), rank=4, alpha=8)
        torch.nn.init.normal_(adapted.adapter_up_proj.weight, std=0.01)
        experts.append(torch.nn.ModuleDict({"linear": adapted}))
    base = torch.nn.ModuleDict({"linear": linear})
    updates = []
    for expert in experts:
        adapter = expert["linear"]
        product = (
            adapter.adapter_up_proj.weight.detach().double()
            @ adapter.adapter_down_proj.weight.detach().double()
        )
        updates.append(adapter.scaling * product)
    folded = []
    for index, expert in enumerate(experts):
        with open_weights(expert) as weights:
            plain = fold(weights, alpha=8)
            folded.append(tmp_path / f"{index}.safetensors")
            tensors = {name: plain[name] for name in plain.names()}
        write_weights(folded[-1], tensors)
    merged = merge(name, folded, base, progress=False)
    change = merged["linear.weight"] - linear.weight.detach()
    assert outside(change.double(), updates) < 1e-4
    start = linear.weight.detach().double()
    exact = create(name)(
        [{"w": start + update} for update in updates], {"w": start}
    )["w"]
    torch.testing.assert_close(
        change.double(), exact - start, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("name", SPECTRAL)
def test_full_task_vectors_lose_nothing(name, size):
    """float32 is so fine that all directions of fine-tuning are above it."""
    base = torch.randn(96, 64)
    experts = [
        {"w": base + size * torch.randn(base.shape)} for _ in range(EXPERTS)
    ]
    method = create(name)
    merged = method(experts, {"w": base})["w"]
    # in float64, with values that are not of float32, there is no noise
    exact = method(
        [{"w": e["w"].double() * (1 + 2**-40)} for e in experts],
        {"w": base.double() * (1 + 2**-40)},
    )["w"].float()
    torch.testing.assert_close(merged, exact, rtol=0, atol=1e-2 * size)
    assert torch.linalg.matrix_rank(merged - base) == 64


def test_parts_of_a_fused_projection_have_noise_of_their_own():
    """Values a hundred times as large as queries and keys hide no key."""
    base = torch.randn(3 * 32, 32)
    base[64:] *= 1000
    name = "decoder.layers.0.self_attn.att.in_proj_weight"
    update = torch.zeros(3 * 32, 32)
    update[:32] = 1e-4 * torch.randn(32, 1) @ torch.randn(1, 32)
    merged = create("tsv_m", rank_fraction=1)(
        [{name: base + update}], {name: base}
    )[name]
    torch.testing.assert_close(
        (merged - base)[:32], update[:32], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("storage", [torch.float32, *HALF])
@pytest.mark.parametrize("shape", [(64, 64), (200, 20), (5, 90)])
def test_bound_on_rounding_errors(storage, shape):
    """Above all that was seen, and by less than a factor of two."""
    for scale in (torch.ones(1), torch.logspace(-2, 1, shape[1])):
        weights = torch.randn(shape, dtype=torch.float64) * scale
        error = weights.to(storage).double() - weights
        norm = torch.linalg.matrix_norm(error, 2)
        bound = spectral_noise(weights, torch.finfo(storage))
        assert norm < bound < 2.5 * norm


def test_subnormal_numbers_of_float16():
    weights = 1e-6 * torch.randn(64, 64, dtype=torch.float64)
    error = weights.half().double() - weights
    norm = torch.linalg.matrix_norm(error, 2)
    assert norm < spectral_noise(weights, torch.finfo(torch.float16)) < 2 * norm


@pytest.mark.parametrize("storage", [*HALF, torch.float32, torch.float64])
def test_stored_type_is_seen(storage):
    weights = torch.randn(40, 40, dtype=torch.float64).to(storage)
    kind = str(storage).removeprefix("torch.")
    assert stored_type(weights).dtype == kind
    assert stored_type(weights.double()).dtype == kind


def test_one_fine_value_tells_the_type():
    weights = torch.randn(80, 80).half().float()
    weights[79, 79] = 1 / 3
    assert stored_type(weights).dtype == "float32"


def test_common_and_own_directions_without_noise():
    """Iso-CTS fills its share of own directions with none that are not."""
    base, updates = low_rank_updates()
    base, experts = stored(base, updates, torch.float32)
    method = IsoCTS(common_fraction=0.5)
    merged = method([{"w": each} for each in experts], {"w": base})["w"]
    values = torch.linalg.svdvals((merged - base).double())
    assert int((values > 0.5 * values[0]).sum()) == RANK * EXPERTS
    assert values[RANK * EXPERTS] < 1e-3 * values[0]


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_matrix_that_was_only_rounded_is_named(name, caplog):
    """Updates below bfloat16's steps: the base, and not without a word."""
    base = torch.randn(64, 64).bfloat16().float()
    experts = [
        {"fc.weight": (base + 1e-3 * torch.randn(64, 64)).bfloat16().float()}
        for _ in range(2)
    ]
    assert not torch.equal(experts[0]["fc.weight"], base)
    merged = create(name)(experts, {"fc.weight": base})
    assert torch.equal(merged["fc.weight"], base)
    assert "fc.weight stays as in the base" in caplog.text
    assert "bfloat16" in caplog.text
    caplog.clear()
    merged = create(name)([{"fc.weight": base}] * 2, {"fc.weight": base})
    assert torch.equal(merged["fc.weight"], base)
    assert not caplog.text
