"""Models of different floating-point types: promoted through every door.

Authors
 * The speechbrain_merge authors 2026
"""

import pytest
import torch
from stage.test_members import MergingCTC, fill
from tiny_models import tiny_conformer, tiny_ctc_brain, tiny_network
from torch.nn.utils import parametrizations

from speechbrain_merge import MergeStage, merge
from speechbrain_merge.cli import main
from speechbrain_merge.engine import provenance
from speechbrain_merge.methods import available, create
from speechbrain_merge.weights import fold, open_weights, write_weights

PARTS = ("encoder.layers.0.linear.weight", "ctc_lin.bias", "norm.running_var")

# Those of the package: doctests in the same process register more
METHODS = available()


def state(seed, dtype=torch.float32, around=None):
    """Weights of a tiny model, near others where they are given."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in PARTS:
        tensor = torch.rand(4, 5, generator=generator)
        if around is not None:
            tensor = around[name].float() + 0.01 * tensor
        made[name] = tensor.to(dtype)
    return made


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties", "tsv_m", "slerp"]
)
def test_a_base_in_half_precision(method):
    """What comes out is what the same values in float32 give, to the bit."""
    base = state(0, torch.float16)
    experts = [state(seed, around=base) for seed in (1, 2)]
    wide = {name: tensor.float() for name, tensor in base.items()}
    merged = merge(method, experts, base, progress=False)
    expected = create(method)(experts, wide)
    assert all(tensor.dtype == torch.float32 for tensor in merged.values())
    assert all(torch.equal(merged[name], expected[name]) for name in PARTS)
    in_memory = create(method)(experts, base)
    assert all(torch.equal(in_memory[name], expected[name]) for name in PARTS)


def test_experts_of_three_types():
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    experts = [state(0, kind) for kind in kinds]
    merged = merge("average", experts, progress=False)
    for name, tensor in merged.items():
        each = [expert[name].double() for expert in experts]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.stack(each).mean(0).float())
    # neither holds the values of the other
    merged = merge("average", experts[:2], progress=False)
    assert merged[PARTS[0]].dtype == torch.float32
    eighth = [state(0, torch.float8_e4m3fn), state(0, torch.float16)]
    assert merge("average", eighth, progress=False)[PARTS[0]].dtype == (
        torch.float16
    )
    integers = [state(0), {**state(0), PARTS[0]: torch.ones(4, 5).long()}]
    with pytest.raises(ValueError, match="has dtype torch.int64, expected"):
        merge("average", integers, progress=False)


def test_the_type_of_the_result(tmp_path):
    experts = [state(seed, torch.float16) for seed in (1, 2)]
    exact = {
        name: (experts[0][name].double() + experts[1][name].double()) / 2
        for name in PARTS
    }
    for word in ("float32", "float16", "bfloat16", "float64"):
        dtype = getattr(torch, word)
        for given in (word, dtype):
            merged = merge("average", experts, progress=False, dtype=given)
            for name in PARTS:
                # the exact mean, rounded once
                assert torch.equal(merged[name], exact[name].to(dtype)), name
    output = merge(
        "average",
        experts,
        output=tmp_path / "m.safetensors",
        progress=False,
        dtype="bfloat16",
    )
    assert provenance(output)["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="`dtype` is 'int8': expected one of"):
        merge("average", experts, progress=False, dtype="int8")
    large = [{"w": torch.full((3,), 1e6)}] * 2
    with pytest.raises(ValueError, match="'w' has values up to 1e.06, more"):
        merge("average", large, progress=False, dtype="float16")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = state(0, torch.float16)
    torch.save(base, "base.pt")
    for seed, name in ((1, "a.pt"), (2, "b.pt")):
        torch.save(state(seed, around=base), name)
    command = ["merge", "ties", "a.pt", "b.pt", "--base", "base.pt"]
    assert main([*command, "-o", "m.safetensors", "--quiet"]) == 0
    with open_weights("m.safetensors") as merged:
        assert {merged.dtype(name) for name in PARTS} == {torch.float32}
    narrow = [*command, "--dtype", "float16", "-o", "m.safetensors", "--quiet"]
    assert main(narrow) == 0  # not up to date: another type is asked for
    with open_weights("m.safetensors") as merged:
        assert {merged.dtype(name) for name in PARTS} == {torch.float16}
    plan = tmp_path / "plan.yaml"
    text = (
        "stages:\n    m:\n        method: ties\n        experts: [a.pt, b.pt]\n"
        "        base: base.pt\n        output: p.safetensors\n"
        "        dtype: {}\n"
    )
    plan.write_text(text.format("bfloat16"))
    assert main(["merge", str(plan), "--quiet"]) == 0
    with open_weights("p.safetensors") as merged:
        assert {merged.dtype(name) for name in PARTS} == {torch.bfloat16}
    plan.write_text(text.format("half"))
    capsys.readouterr()
    assert main(["merge", str(plan), "--quiet"]) == 2
    assert "stage 'm': `dtype` is 'half': expected" in capsys.readouterr().err


def test_a_stage(tmp_path):
    start = tiny_network(0).state_dict()
    fill(tmp_path, start, epochs=1)
    torch.save(
        {
            f"model.{name}": tensor.half()
            if tensor.is_floating_point()
            else tensor
            for name, tensor in start.items()
        },
        tmp_path / "base.pt",
    )
    brain = tiny_ctc_brain(
        tmp_path / "brain",
        tiny_network(9),
        MergingCTC,
        output_folder=str(tmp_path),
    )
    settings = dict(
        candidates=[tmp_path / "pool"], base=str(tmp_path / "base.pt")
    )
    result = brain.merge(MergeStage("task_arithmetic", **settings))
    with open_weights(result.path) as merged:
        assert merged.dtype("model.hidden.weight") == torch.float32
    result = brain.merge(
        MergeStage("task_arithmetic", dtype="float16", **settings)
    )
    assert not result.reused
    with open_weights(result.path) as merged:
        assert merged.dtype("model.hidden.weight") == torch.float16
        assert merged.dtype("model.norm.num_batches_tracked") == torch.int64
    with pytest.raises(ValueError, match="`dtype` is 'int4'"):
        MergeStage("average", dtype="int4", **settings)


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties"])
@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], []])
def test_as_many_labels_as_experts(method, labels):
    """Else an expert would be left out of the merge and its provenance."""
    base = {"w": torch.zeros(3)}
    experts = [{"w": torch.ones(3)}, {"w": torch.full((3,), 10.0)}]
    told = f"{len(labels)} `labels` were given for 2 experts"
    if method == "average":
        given, settings = create(method), {}
    else:
        scale = {"experts": {"a": 1.0}, "default": 1.0}
        given, settings = create(method, scale=scale), {"base": base}
    with pytest.raises(ValueError, match=told):
        merge(given, experts, labels=labels, progress=False, **settings)
    with pytest.raises(ValueError, match="1 `hashes` were given for 2 experts"):
        merge(given, experts, hashes=["0"], progress=False, **settings)
    with pytest.raises(ValueError, match="labels were given for 2 experts"):
        opened = [open_weights(expert) for expert in experts]
        anchor = open_weights(base)
        given.merged(opened, anchor, labels)


def test_the_smallest_type_is_merged_in_a_wide_one(tmp_path):
    """PyTorch computes next to nothing in float8."""
    methods = [
        name
        for name in METHODS
        if name not in ("fisher", "regmean")
        and create_or_none(name) is not None
    ]
    assert {"ties", "dare", "task_arithmetic", "slerp", "iso_c"} <= {*methods}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        base = state(0, dtype)
        models = [base, *(state(seed, dtype, base) for seed in (1, 2))]
        paths = [
            write_weights(tmp_path / f"{number}.safetensors", model)
            for number, model in enumerate(models)
        ]
        wide = [
            {name: tensor.float() for name, tensor in model.items()}
            for model in models
        ]
        for name in methods:
            method = create(name)
            settings = {"progress": False, "same_base": False}
            bases = [
                each[0] if method.needs_base else None
                for each in (models, paths, wide)
            ]
            merged = merge(method, models[1:], bases[0], **settings)
            in_memory = create(name)(models[1:], bases[0])
            output = tmp_path / "m.safetensors"
            merge(method, paths[1:], bases[1], output, **settings)
            expected = merge(method, wide[1:], bases[2], **settings)
            with open_weights(output) as streamed:
                for part in PARTS:
                    assert merged[part].dtype == dtype, name
                    for other in (in_memory, streamed, expected):
                        assert torch.equal(
                            merged[part].float(),
                            other[part].to(dtype).float(),
                        ), (name, part)


def create_or_none(name):
    """A method that merges two experts by its defaults alone."""
    try:
        method = create(name)
        method.check_experts(2)
    except ValueError:
        return None
    return method if method.needs_same_base else None


def test_what_float8_cannot_hold_is_told():
    """A type without infinity has its largest value in the place, or NaN."""
    dtype = torch.float8_e4m3fn
    far = {"w": torch.full((3,), 400.0).to(dtype)}
    near = {"w": torch.full((3,), -400.0).to(dtype)}
    method = create("task_arithmetic", scale=1.5)
    settings = {"progress": False, "same_base": False}
    with pytest.raises(ValueError, match="'w' has values up to 768, more than"):
        merge(method, [far], near, **settings)
    assert merge(method, [far], near, dtype="float16", **settings)["w"][0] == (
        768
    )
    odd = {"w": torch.tensor([1.0, float("nan"), 1.0]).to(dtype)}
    with pytest.raises(ValueError, match="'w' has 1 of 3 values that are NaN"):
        merge("ties", [far, odd], near, **settings)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16])
def test_an_adapter_that_float8_cannot_hold_is_told(dtype):
    """Folded onto it, the largest value (or an infinity) took the place."""
    largest = torch.finfo(dtype).max
    base = {
        "fc.weight": torch.full((4, 3), 0.5 * largest).to(dtype),
        "fc.bias": torch.zeros(4).to(dtype),
    }
    lora = {
        "fc.adapter_down_proj.weight": torch.ones(2, 3),
        "fc.adapter_up_proj.weight": torch.full((4, 2), 0.5 * largest),
    }
    with fold(lora, base=base, alpha=2.0) as folded:
        with pytest.raises(ValueError, match="'fc' has values up to .* wider"):
            folded["fc.weight"]
    with fold(lora, base=base, alpha=1.0) as folded:
        assert folded["fc.weight"][0, 0].float() == largest


def test_float8_elsewhere(tmp_path, capsys):
    dtype = torch.float8_e4m3fn
    layer = parametrizations.weight_norm(torch.nn.Linear(6, 5))
    normed = {
        name: tensor.to(dtype) for name, tensor in layer.state_dict().items()
    }
    merged = merge("average", [normed, normed], progress=False)
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    for name, tensor in normed.items():
        assert torch.allclose(merged[name].float(), tensor.float(), rtol=0.1)
    paths = [
        str(write_weights(tmp_path / f"{number}.safetensors", model))
        for number, model in enumerate((normed, merged, state(1, dtype)))
    ]
    assert main(["compare", *paths[:2]]) == 0
    models = [tiny_conformer(seed).state_dict() for seed in (0, 1)]
    models = [
        {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in model.items()
        }
        for model in models
    ]
    moved = merge("optimal_transport", models, progress=False)
    assert moved["ctc_lin.weight"].dtype == dtype
    # what safetensors cannot hold is told by its name
    scales = {"w": torch.ones(3).to(torch.float8_e8m0fnu)}
    with pytest.raises(ValueError, match="'w' has dtype torch.float8_e8m0fnu"):
        merge("average", [scales], output=tmp_path / "m.safetensors")
