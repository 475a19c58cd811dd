"""What every method must do, over all registered methods.

``method_table.py`` says which of these each method's mathematics has.
"""

import pytest
import torch
from methods.method_table import ROWS

import speechbrain_merge.methods as methods
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import MergeMethod, create
from speechbrain_merge.weights import open_weights, write_weights

SHAPES = {
    "encoder.conv.weight": (3, 2, 4),
    "encoder.layers.0.self_attn.q_proj.weight": (8, 6),
    "encoder.layers.0.self_attn.q_proj.bias": (8,),
    "encoder.layers.1.fc1.weight": (6, 8),
    # longer than a piece, so that one tensor is read in three
    "encoder.layers.1.fc1.bias": (70_001,),
    "encoder.norm.running_mean": (6,),
    "encoder.norm.running_var": (6,),
    "decoder.embed_tokens.weight": (20, 6),
    "decoder.layers.0.row.weight": (1, 9),
    "decoder.layers.0.column.weight": (9, 1),
    "decoder.layers.0.conv2d.weight": (2, 3, 2, 2),
    "decoder.layers.0.empty.weight": (0, 3),
    "decoder.scale": (),
}
TIED = {"decoder.output.weight": "decoder.embed_tokens.weight"}

by_row = pytest.mark.parametrize("row", ROWS, ids=str)


def model(seed, dtype=torch.float32, small=False):
    """A model with all kinds of tensors."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in SHAPES.items():
        if small and name == "encoder.layers.1.fc1.bias":
            shape = (6,)
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] = draw.to(dtype)
    for alias, kept in TIED.items():
        made[alias] = made[kept]
    made["encoder.norm.num_batches_tracked"] = torch.tensor(seed)
    made["mask"] = torch.tensor([True, False])
    return made


def models(row, dtype=torch.float32, small=False):
    """A base and as many experts as a row is tried on."""
    base = model(100, dtype, small)
    experts = [model(seed, dtype, small) for seed in range(row.experts)]
    return base, experts


def floats(state_dict):
    """The entries that a formula merges."""
    return {
        name: tensor
        for name, tensor in state_dict.items()
        if tensor.is_floating_point() and "running" not in name
    }


def assert_close(merged, expected, tolerance):
    """All floating-point entries agree."""
    for name, tensor in floats(expected).items():
        torch.testing.assert_close(
            merged[name], tensor, rtol=tolerance, atol=tolerance, msg=name
        )


def test_every_method_is_in_the_table():
    exported = {
        entry.name
        for entry in vars(methods).values()
        if isinstance(entry, type)
        and issubclass(entry, MergeMethod)
        and entry is not MergeMethod
    }
    # attention merging and transport need models of known architecture, and
    # are tested where those are built
    assert exported - {row.name for row in ROWS} <= {
        "adamerging",
        "attention_merge",
        "learnable_attention_merge",
        "optimal_transport",
    }


@by_row
@pytest.mark.parametrize(
    "dtype, workers", [(torch.float32, 4), (torch.float16, 1)]
)
def test_memory_and_files_agree_to_the_bit(tmp_path, row, dtype, workers):
    base, experts = models(row, dtype)
    method = row.make(experts)
    in_memory = method(experts, base)
    paths = []
    for index, state_dict in enumerate([base, *experts]):
        paths.append(tmp_path / f"{index}.safetensors")
        write_weights(paths[-1], state_dict)
    output = merge(
        row.make(experts),
        paths[1:],
        base=paths[0],
        output=tmp_path / "merged.safetensors",
        workers=workers,
        progress=False,
        same_base=False,  # tensors drawn apart, as no experts would be
    )
    with open_weights(output) as streamed:
        assert set(streamed.names()) == set(in_memory)
        assert streamed.tied == TIED
        for name, tensor in in_memory.items():
            assert streamed[name].dtype == tensor.dtype, name
            assert torch.equal(streamed[name], tensor), name


@by_row
def test_twice_is_the_same(row):
    """A method keeps nothing of a merge that would change the next."""
    base, experts = models(row, small=True)
    method = row.make(experts)
    first = method(experts, base)
    others = [model(seed, small=True) for seed in range(50, 50 + row.experts)]
    method(others, model(101, small=True))
    second = method(experts, base)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


@by_row
def test_inputs_are_left_alone(row):
    base, experts = models(row, small=True)
    inputs = [base, *experts]
    before = [
        {name: (one.clone(), one._version) for name, one in state_dict.items()}
        for state_dict in inputs
    ]
    merged = row.make(experts)(experts, base)
    for state_dict, known in zip(inputs, before):
        for name, (values, version) in known.items():
            assert torch.equal(state_dict[name], values), name
            assert state_dict[name]._version == version, name
    places = {
        tensor.untyped_storage().data_ptr()
        for state_dict in inputs
        for tensor in state_dict.values()
        if tensor.numel() > 0
    }
    for name, tensor in merged.items():
        if tensor.numel() > 0:
            assert tensor.untyped_storage().data_ptr() not in places, name


@by_row
def test_names_types_ties_and_counters_are_kept(row):
    for dtype in (torch.bfloat16, torch.float64):
        base, experts = models(row, dtype, small=True)
        merged = row.make(experts)(experts, base)
        assert list(merged) == list(experts[0])
        for name, tensor in experts[0].items():
            assert merged[name].dtype == tensor.dtype, name
            assert merged[name].shape == tensor.shape, name
            if tensor.is_floating_point():
                assert bool(torch.isfinite(merged[name]).all()), name
        for alias, kept in TIED.items():
            assert merged[alias].data_ptr() == merged[kept].data_ptr()
        counter = "encoder.norm.num_batches_tracked"
        assert torch.equal(merged[counter], experts[0][counter])
        assert torch.equal(merged["mask"], experts[0]["mask"])
        statistics = torch.stack(
            [expert["encoder.norm.running_mean"] for expert in experts]
        )
        torch.testing.assert_close(
            merged["encoder.norm.running_mean"],
            statistics.double().mean(dim=0).to(dtype),
        )


@by_row
def test_layout_in_memory_does_not_matter(row):
    base, experts = models(row, small=True)
    method = row.make(experts)
    plain = method(experts, base)

    def transposed(state_dict):
        made = {}
        for name, tensor in state_dict.items():
            if name not in TIED:
                dims = tuple(reversed(range(tensor.dim())))
                turned = tensor.permute(dims).contiguous()
                made[name] = turned.permute(dims)
        for alias, kept in TIED.items():
            made[alias] = made[kept]
        return made

    def spread(state_dict):
        made = {}
        for name, tensor in state_dict.items():
            if name not in TIED:
                made[name] = torch.stack([tensor, tensor], dim=-1)[..., 0]
        for alias, kept in TIED.items():
            made[alias] = made[kept]
        return made

    for change in (transposed, spread):
        moved = method([change(one) for one in experts], change(base))
        for name, tensor in plain.items():
            assert torch.equal(moved[name], tensor), name


@by_row
def test_expanded_and_subnormal_tensors(row):
    name = "encoder.layers.0.self_attn.q_proj.weight"
    base = {name: torch.zeros(1).expand(4, 5)}
    experts = [
        {name: torch.full((1,), 1e-40).expand(4, 5)} for _ in range(row.experts)
    ]
    merged = row.make(experts)(experts, base)[name]
    assert merged.shape == (4, 5)
    assert bool(torch.isfinite(merged).all())
    assert float(merged.abs().max()) < 1e-20


@by_row
def test_copies_of_one_model_give_it_back(row):
    if not row.identical:
        pytest.skip("not an invariant of this method")
    expert = model(1, small=True)
    copies = [
        {name: tensor.clone() for name, tensor in expert.items()}
        for _ in range(row.experts)
    ]
    merged = row.make(copies)(copies, model(100, small=True))
    assert_close(merged, expert, row.tolerance)


@by_row
def test_one_model_is_given_back(row):
    if not row.single:
        pytest.skip("not an invariant of this method")
    expert = model(1, small=True)
    if "weights" in row.parameters:
        method = create(row.name, weights=[2.0])
    else:
        method = row.make([expert])
    merged = method([expert], model(100, small=True))
    assert_close(merged, expert, row.tolerance)


@by_row
def test_copies_of_the_base_give_the_base(row):
    if not row.unmoved:
        pytest.skip("not an invariant of this method")
    base = model(100, small=True)
    copies = [dict(base) for _ in range(row.experts)]
    merged = row.make(copies)(copies, base)
    assert_close(merged, base, 1e-6)


@by_row
def test_models_of_zeros_give_zeros(row):
    """No division by a norm, a range or a sum of nothing."""
    zero = {
        name: torch.zeros_like(tensor)
        for name, tensor in model(0, small=True).items()
    }
    copies = [dict(zero) for _ in range(row.experts)]
    merged = row.make(copies)(copies, zero)
    assert_close(merged, zero, 0)


@by_row
def test_one_idle_expert_makes_no_nan(row):
    base, experts = models(row, small=True)
    experts[0] = dict(base)
    merged = row.make(experts)(experts, base)
    assert all(
        bool(torch.isfinite(tensor).all()) for tensor in floats(merged).values()
    )


@by_row
def test_the_order_of_experts_does_not_matter(row):
    if not row.permutable:
        pytest.skip("not an invariant of this method")
    base, experts = models(row, small=True)
    merged = row.make(experts)(experts, base)
    turned = row.make(experts[::-1])(experts[::-1], base)
    assert_close(turned, merged, row.tolerance)


@by_row
def test_half_the_task_vectors_give_half_the_merge(row):
    if not row.homogeneous:
        pytest.skip("not an invariant of this method")
    _, experts = models(row, torch.float64, small=True)
    experts = [floats(expert) for expert in experts]
    base = {name: torch.zeros_like(one) for name, one in experts[0].items()}
    base.update({name: base[TIED[name]] for name in TIED})
    half = []
    for expert in experts:
        half.append({name: expert[name] / 2 for name in floats(expert)})
        half[-1].update({name: half[-1][TIED[name]] for name in TIED})
    method = row.make(experts)
    merged = method(experts, base)
    expected = {name: one / 2 for name, one in floats(merged).items()}
    assert_close(method(half, base), expected, row.tolerance)


@by_row
def test_a_scale_of_zero_gives_the_base(row):
    base, experts = models(row, small=True)
    method = row.make(experts)
    if "scale" not in method.configuration() or not method.needs_base:
        pytest.skip("has no scale")
    nothing = create(row.name, **{**row.parameters, "scale": 0})
    merged = nothing(experts, base)
    for name, tensor in floats(base).items():
        assert torch.equal(merged[name], tensor), name


@by_row
def test_a_method_says_how_to_make_it_again(row):
    if row.statistics is not None:
        pytest.skip("made from statistics")
    base, experts = models(row, small=True)
    method = row.make(experts)
    again = create(row.name, **method.configuration())
    merged, expected = again(experts, base), method(experts, base)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


@by_row
def test_a_nan_is_one_clear_error(row):
    base, experts = models(row, small=True)
    method = row.make(experts)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    experts[-1][name][2, 3] = float("nan")
    with pytest.raises(ValueError, match=name):
        method(experts, base)


@by_row
def test_a_missing_base_is_one_clear_error(row):
    base, experts = models(row, small=True)
    method = row.make(experts)
    if not method.needs_base:
        pytest.skip("needs no base")
    with pytest.raises(ValueError, match="give `base`"):
        method(experts)


@by_row
def test_no_experts_is_one_clear_error(row):
    method = row.make([model(0, small=True)] * row.experts)
    with pytest.raises(ValueError, match="needs at least"):
        method([], model(100, small=True))
