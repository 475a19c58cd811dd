"""Optimal-transport fusion: costs, hard and soft maps, refusals, the method."""

import json

import ot
import pytest
import torch
from methods.transport_models import HEADS, build

from speechbrain_merge.engine import merge
from speechbrain_merge.methods import OptimalTransport, create
from speechbrain_merge.methods.transport import (
    UnsupportedArchitecture,
    align,
    alignment_table,
    architectures,
    find_alignment,
    symmetry,
)
from speechbrain_merge.methods.transport.assignment import (
    Assignment,
    ExactPlan,
    Sinkhorn,
    check_plan,
)
from speechbrain_merge.report import plot_alignment
from speechbrain_merge.weights import (
    IncompatibleWeights,
    open_weights,
    write_weights,
)

MINE = {
    "names": ["mine"],
    "tensors": {
        "fc1.weight": ["hidden", "fixed"],
        "fc1.bias": ["hidden"],
        "fc2.weight": ["fixed", "hidden"],
        "norm.running_var": ["hidden"],
    },
}


def perceptron(width, seed=0):
    """Two layers."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "fc1.weight": torch.randn(width, 5, generator=draw),
        "fc1.bias": torch.randn(width, generator=draw),
        "fc2.weight": torch.randn(3, width, generator=draw),
        "norm.running_var": torch.rand(width, generator=draw),
    }


@pytest.fixture(scope="module")
def conformers():
    """Two from different starts."""
    return [
        build("conformer-RelPosMHAXL-ctc", seed).state_dict() for seed in (1, 2)
    ]


@pytest.mark.parametrize("size", [5, 300])
def test_assignment_is_the_exact_plan(size):
    cost = torch.rand(size, size, dtype=torch.float64)
    order = Assignment()(cost)
    assert torch.equal(order, ExactPlan()(cost))
    plan = torch.from_numpy(ot.emd([], [], cost.numpy()))
    assert torch.equal(plan.argmax(1), order)
    # what has no size at all is an assignment too
    assert sorted(Assignment()(torch.zeros(size, size)).tolist()) == list(
        range(size)
    )


@pytest.mark.parametrize("width", [8, 64])
def test_identical_models_come_closer_to_themselves_with_less_entropy(width):
    """And no map shrinks anything, however wide the layer is."""
    model = perceptron(width)
    far = []
    for reg in (0.3, 0.05, 0.005):
        found = find_alignment(model, model, MINE, hard=False, reg=reg)
        plan = found.transports["hidden"]
        torch.testing.assert_close(plan.sum(0), torch.ones(width))
        torch.testing.assert_close(plan.sum(1), torch.ones(width))
        moved = found.apply(model)
        far.append(float((moved["fc1.weight"] - model["fc1.weight"]).norm()))
        # a constant stays one: the literal equations would divide by width
        constant = {**model, "fc1.bias": torch.full((width,), 2.0)}
        torch.testing.assert_close(
            found.apply(constant)["fc1.bias"], constant["fc1.bias"]
        )
    assert far[0] > far[1] > far[2] and far[2] < 1e-3
    exact = align(model, model, MINE, hard=False, reg=0)
    assert all(torch.equal(exact[name], model[name]) for name in model)


def test_a_soft_map_is_the_plan_of_the_paper_scaled():
    first, second = perceptron(6), perceptron(6, seed=1)
    found = find_alignment(second, first, MINE, hard=False, reg=0.1)

    def rows(model):
        parts = [*list(model.values())[:2], model["fc2.weight"].T]
        parts.append(model["norm.running_var"])
        return torch.cat([one.reshape(6, -1) for one in parts], 1).double()

    cost = torch.cdist(rows(first), rows(second))
    cost = (cost - cost.min()) / (cost - cost.min()).max()
    plan = ot.sinkhorn([], [], cost.numpy(), 0.1, stopThr=1e-12)
    plan = torch.from_numpy(6 * plan).float()
    torch.testing.assert_close(
        found.transports["hidden"], plan, atol=1e-5, rtol=1e-5
    )
    moved = found.apply(second)
    torch.testing.assert_close(
        moved["fc2.weight"], second["fc2.weight"] @ plan.T
    )
    kept = align(second, first, MINE, hard=False, reg=0.1, keep_norms=True)
    lengths = plan @ second["fc1.weight"].norm(dim=1)
    torch.testing.assert_close(kept["fc1.weight"].norm(dim=1), lengths)


def test_a_plan_that_does_not_sum_to_one_is_an_error(monkeypatch):
    for plan in (torch.zeros(3, 3), torch.full((2, 2), float("nan"))):
        with pytest.raises(ValueError, match="larger `reg`"):
            check_plan(plan)
    check_plan(torch.full((4, 4), 0.25))
    empty = lambda a, b, cost, *rest, **more: 0 * cost  # noqa: E731
    monkeypatch.setattr(ot, "sinkhorn", empty)
    with pytest.raises(ValueError, match="did not converge"):
        OptimalTransport(hard=False, architecture=MINE)(
            [perceptron(4), perceptron(4, seed=1)]
        )


def test_a_regularisation_that_breaks_the_plain_form_is_solved_in_logarithms():
    cost = torch.rand(20, 20)
    plan = Sinkhorn(1e-3)(cost)
    check_plan(plan)
    assert float((plan * cost).sum()) < 1.01 * float(
        cost[torch.arange(20), Assignment()(cost)].sum()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"residual": "mean"},
        {"residual": "hard"},
        {"residual": "identity"},
        {"heads_map": "soft"},
        {"keep_norms": True},
        {"sweeps": 1, "distance": "squared"},
    ],
    ids=str,
)
def test_soft_maps_of_a_conformer_are_doubly_stochastic(conformers, options):
    source, anchor = conformers
    found = find_alignment(source, anchor, hard=False, reg=0.1, **options)
    for name, plan in found.transports.items():
        if plan.ndim == 2:
            ones = torch.ones(len(plan))
            torch.testing.assert_close(plan.sum(0), ones, atol=1e-3, rtol=0)
            torch.testing.assert_close(plan.sum(1), ones, atol=1e-3, rtol=0)
            if "value" in name:
                heads = plan.unflatten(0, (HEADS, -1))
                heads = heads.unflatten(2, (HEADS, -1)).sum((1, 3))
                whole = (heads > 1e-6).sum(1)
                mixed = options.get("heads_map") == "soft"
                assert (whole > 1).all() if mixed else (whole == 1).all()
    hard = options.get("residual") == "hard"
    assert (found.transports.get("stream", torch.ones(1)).ndim == 1) == (
        hard or options.get("residual") == "identity"
    )
    assert ("stream" in found.transports) == (
        options.get("residual") != "identity"
    )
    moved = found.apply(source)
    assert all(torch.isfinite(moved[name]).all() for name in moved.names())


def test_iterating_brings_models_nearer_than_the_single_pass():
    source, anchor = build("whisper", 1), build("whisper", 2)
    once = find_alignment(source, anchor, sweeps=0)
    often = find_alignment(source, anchor)
    assert once.sweeps == 0 and often.sweeps > 1

    def total(found, when):
        return sum(group[when] for group in found.groups)

    assert total(often, "after") < total(once, "after")
    assert total(once, "after") < total(once, "before")


def test_a_tied_matrix_counts_once():
    """Whisper's words are its output layer: twice in a module, once in a file."""
    source, anchor = build("whisper", 1), build("whisper", 2)
    once = [dict(model.state_dict()) for model in (source, anchor)]
    for state in once:
        del state["proj_out.weight"]
    copies = [
        {name: one.clone() for name, one in model.state_dict().items()}
        for model in (source, anchor)
    ]
    file = find_alignment(*once, heads=HEADS)
    for pair in ((source, anchor), copies):
        found = find_alignment(*pair, heads=HEADS)
        assert found.transports.keys() == file.transports.keys()
        for name, order in file.transports.items():
            assert torch.equal(found.transports[name], order), name
        for ours, theirs in zip(found.groups, file.groups):
            assert ours == theirs
        aligned = found.apply(pair[0])
        words = aligned["model.decoder.embed_tokens.weight"]
        assert torch.equal(aligned["proj_out.weight"], words)
    # what one of the two has trained apart is a matrix of its own
    copies[0]["proj_out.weight"] = torch.randn_like(words)
    apart = find_alignment(*copies, heads=HEADS)
    ends = {
        group["space"]: group["before"]
        for one in (file, apart)
        for group in one.groups
        if group["space"] == "decoder"
    }
    assert (
        ends["decoder"]
        > {group["space"]: group["before"] for group in file.groups}["decoder"]
    )


def test_identical_models_fuse_to_themselves_to_the_bit(conformers):
    model = conformers[0]
    fused = OptimalTransport()([model, model])
    assert all(torch.equal(fused[name], model[name]) for name in model)
    found = find_alignment(model, model)
    assert all(group["stays"] == 1 for group in found.groups)


@pytest.mark.parametrize(
    "options", [{}, {"hard": False, "reg": 0.1}], ids=["hard", "soft"]
)
def test_memory_and_files_agree_to_the_bit(tmp_path, conformers, options):
    third = build("conformer-RelPosMHAXL-ctc", 3).state_dict()
    experts = [*conformers, third]
    in_memory = OptimalTransport(weight=0.5, **options)(experts)
    paths = []
    for index, expert in enumerate(experts):
        paths.append(tmp_path / f"{index}.safetensors")
        write_weights(paths[-1], expert)
    output = merge(
        create("optimal_transport", weight=0.5, **options),
        paths,
        output=tmp_path / "fused.safetensors",
        workers=2,
        progress=False,
    )
    with open_weights(output) as streamed:
        for name, tensor in in_memory.items():
            assert torch.equal(streamed[name], tensor), name
        record = json.loads(streamed.metadata["merge"])
        assert record["method"] == "optimal_transport"
    aligned = [align(one, experts[0], **options) for one in experts[1:]]
    for name, tensor in in_memory.items():
        expected = 0.5 * experts[0][name] + 0.25 * (
            aligned[0][name] + aligned[1][name]
        )
        torch.testing.assert_close(tensor, expected)


def test_running_statistics_move_with_their_units():
    first, order = perceptron(6), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {
        name: one[:, order] if name == "fc2.weight" else one[order]
        for name, one in first.items()
    }
    fused = OptimalTransport(architecture=MINE)([first, moved])
    assert all(torch.equal(fused[name], first[name]) for name in first)


def test_any_method_merges_what_was_aligned():
    base, first = perceptron(6), perceptron(6)
    first["fc1.bias"] = first["fc1.bias"] + 0.01
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {
        name: one[:, order] if name == "fc2.weight" else one[order]
        for name, one in first.items()
    }
    arithmetic = {"method": "task_arithmetic", "scale": 0.5}
    method = OptimalTransport(method=arithmetic, architecture=MINE)
    assert method.needs_base
    fused = method([first, moved], base)
    torch.testing.assert_close(fused, first)
    with pytest.raises(ValueError, match='anchor="base"'):
        OptimalTransport(method="ties", anchor="first")
    with pytest.raises(ValueError, match="average's"):
        OptimalTransport(method="slerp", weight=0.3)


def test_what_does_not_fit_is_refused_by_name(conformers):
    source, anchor = conformers
    narrow = dict(source)
    name = "Transformer.encoder.layers.1.ffn_module1.1.ffn.0.weight"
    narrow[name] = narrow[name][:-1]
    with pytest.raises(IncompatibleWeights, match=name):
        align(narrow, anchor)
    fewer = dict(source)
    for name in ("ctc_lin.w.weight", "ctc_lin.w.bias"):
        fewer[name] = fewer[name][:-1]
    with pytest.raises(IncompatibleWeights, match="ctc_lin.*6.*7.*vocabular"):
        align(fewer, anchor)


def test_models_with_the_blank_elsewhere_are_refused(tmp_path, conformers):
    for blank in (0, 6):
        meta = {"hyperparameters": json.dumps({"blank_index": blank})}
        write_weights(tmp_path / f"{blank}.safetensors", conformers[0], meta)
    paths = [tmp_path / "0.safetensors", tmp_path / "6.safetensors"]
    with pytest.raises(IncompatibleWeights, match="blank_index=0.*6"):
        align(*paths)


def test_unknown_architectures_hear_what_is_known_and_how_to_add():
    for ask in ("detect", "squeezeformer"):
        with pytest.raises(UnsupportedArchitecture) as caught:
            align(perceptron(4), perceptron(4), ask)
        for name in architectures():
            assert name in str(caught.value)
        assert "write a map" in str(caught.value)
    more = {**perceptron(4), "fc3.weight": torch.ones(2, 2)}
    with pytest.raises(UnsupportedArchitecture, match="fc3.weight"):
        align(more, more, MINE)


def test_heads_are_asked_for_where_nothing_tells():
    model = build("conformer-RoPEMHA-ctc", 1)
    with pytest.raises(ValueError, match="give `heads`"):
        symmetry(model.state_dict())
    assert symmetry(model).blocks["attention.0"].number == HEADS


def test_the_modules_of_recipes_go_by_their_numbers(conformers):
    numbers = {"CNN": "0", "Transformer": "1", "ctc_lin": "2"}
    renamed = [
        {
            ".".join([numbers[name.split(".")[0]], *name.split(".")[1:]]): one
            for name, one in model.items()
        }
        for model in conformers
    ]
    plain, listed = align(*conformers), align(*renamed)
    for name, other in zip(plain, listed):
        assert torch.equal(plain[name], listed[other]), name


def test_a_map_of_your_own_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(MINE))
    first, second = perceptron(4), perceptron(4, seed=1)
    assert torch.equal(
        align(first, second, path)["fc1.bias"],
        align(first, second, MINE)["fc1.bias"],
    )
    path.write_text("tensor: {}")
    with pytest.raises(ValueError, match="unknown key 'tensor'"):
        align(first, second, path)


def test_the_diagnostic_is_a_table_and_a_picture(tmp_path, conformers):
    found = find_alignment(*conformers)
    table = alignment_table(found.groups)
    assert table.count("\n") == len(found.symmetry.spaces) + 1
    assert "| stream | 24 |" in table
    picture = plot_alignment(found.groups, tmp_path / "alignment.png")
    assert picture.stat().st_size > 10_000
    with pytest.raises(ValueError, match="cannot be drawn"):
        plot_alignment([], picture)
