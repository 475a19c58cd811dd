"""One method object serves several merges, one after the other or at once."""

import sys
from threading import Barrier, Thread

import pytest
import torch
from methods.method_table import ROWS, Row

from speechbrain_merge.methods import MergeMethod, available, create
from speechbrain_merge.methods.registry import find
from speechbrain_merge.weights import open_weights

WAIT = 60  # seconds, for a thread that never comes

SHAPES = {
    "encoder.conv.weight": (3, 2, 4),
    "encoder.layers.0.self_attn.q_proj.weight": (8, 6),
    "encoder.layers.0.self_attn.k_proj.weight": (8, 6),
    "encoder.layers.0.self_attn.q_proj.bias": (8,),
    "encoder.layers.1.fc1.weight": (6, 8),
    "encoder.norm.running_var": (6,),
    "decoder.embed_tokens.weight": (20, 6),
}
# another kind of model: other depths, fused projections, other names
OTHER_SHAPES = {
    **SHAPES,
    "encoder.layers.2.fc1.weight": (9, 5),
    "encoder.layers.2.mha_layer.in_proj_weight": (12, 4),
    "encoder.layers.2.mha_layer.pos_bias_u": (2, 2),
}
UNITS = {"fc1.weight": (7, 5), "fc1.bias": (7,), "fc2.weight": (3, 7)}
ARCHITECTURE = {
    "names": ["two layers"],
    "tensors": {
        "fc1.weight": ["hidden", "fixed"],
        "fc1.bias": ["hidden"],
        "fc2.weight": ["fixed", "hidden"],
    },
}


class Transport(Row):
    """Its models have units that it knows, here of two widths."""

    shapes = (UNITS, {**UNITS, "fc1.weight": (7, 6)})


FEW = [
    Row("attention_merge", {"ratio": 0.3}, experts=1),
    Row("attention_merge", {"ratio": {"depth": [0.2, 0.7]}}, experts=1),
    Row(
        "attention_merge",
        {"ratio": 0.3, "noise": "source", "noise_scope": "global"},
        experts=1,
    ),
    Row(
        "attention_merge",
        {"space": "task_vectors", "heads": 0.5, "number_of_heads": 2},
        experts=2,
    ),
    Row("learnable_attention_merge", {"ratio": 0.3}, experts=1),
    Row("layer_scaled", {"method": "task_arithmetic", "first": 0, "last": 1}),
    Row(
        "adamerging",
        {"learned": {"everything": [0.1, 0.2, 0.3]}, "by": "expert"},
    ),
    Transport("optimal_transport", {"architecture": ARCHITECTURE}),
    Transport(
        "optimal_transport",
        {"architecture": ARCHITECTURE, "hard": False, "weight": 0.3},
    ),
    Transport(
        "optimal_transport", {"architecture": ARCHITECTURE, "method": "ties"}
    ),
]
by_row = pytest.mark.parametrize("row", ROWS + FEW, ids=str)


def model(shapes, seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=draw)
        if "running" in name
        else torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
    }


def two_sets(row):
    """Base, experts and their labels, twice, and a method for both."""
    sets, statistics = [], {}
    shapes = getattr(row, "shapes", (SHAPES, OTHER_SHAPES))
    for number, own in enumerate(shapes):
        base = model(own, 50 + number)
        experts = [model(own, 10 * number + i) for i in range(row.experts)]
        labels = [f"{number}-{i}" for i in range(row.experts)]
        sets.append((experts, base, labels))
        if row.statistics is not None:
            statistics |= dict(zip(labels, row.statistics(experts)))
    more = {"statistics": statistics} if statistics else {}
    return sets, lambda: create(row.name, **row.parameters, **more)


def opened(experts, base, labels):
    return [open_weights(each) for each in experts], open_weights(base), labels


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_every_method_is_tried():
    assert {row.name for row in ROWS + FEW} >= {
        name
        for name in available()
        if find(name).__module__.startswith("speechbrain_merge.")
        # and is no example's, which was run before in this process
        and hasattr(sys.modules[find(name).__module__], find(name).__qualname__)
    }


@by_row
def test_two_threads_interleaved(row):
    sets, make = two_sets(row)
    expected = [dict(make().merged(*opened(*one))) for one in sets]
    method = make()
    before = method.configuration()
    turns = max(len(one) for one in expected)
    together = Barrier(2, timeout=WAIT)
    found = [{}, {}]

    def work(index):
        together.wait()
        merged = method.merged(*opened(*sets[index]))
        names = list(merged)
        for turn in range(turns):
            together.wait()  # both have begun, and neither is ahead
            for name in names[turn : turn + 1]:
                found[index][name] = merged[name]

    threads = [Thread(target=work, args=[index]) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(found, expected):
        assert_equal(got, wanted)
    assert method.configuration() == before


@by_row
def test_a_merge_leaves_the_method_as_it_was(row):
    sets, make = two_sets(row)
    method = make()
    before = dict(vars(method))
    modules, parameters = dict(method._modules), dict(method._parameters)
    first = dict(method.merged(*opened(*sets[0])))
    assert vars(method) == before
    assert method._modules == modules and method._parameters == parameters
    begun = method.merged(*opened(*sets[0]))
    dict(method.merged(*opened(*sets[1])))
    assert_equal(dict(begun), first)
    assert vars(method) == before


def test_transport_merges_again_with_the_same_statistics():
    """Its configuration, by which merges are found again, stays."""
    experts = [model(UNITS, seed) for seed in range(3)]
    method = create(
        "optimal_transport",
        architecture=ARCHITECTURE,
        weight=0.3,
        cost="activations",
        statistics=[{"hidden": torch.randn(7, 30)} for _ in experts],
    )
    before = method.configuration()
    first = method(experts)
    assert method.configuration() == before
    assert_equal(method(experts), first)


def test_a_method_may_still_keep_what_it_found_on_itself():
    """``self`` is a copy for one merge, in ``prepare`` as later."""

    class Heaviest(MergeMethod):
        def prepare(self, experts, base):
            sizes = [sum(e[n].norm() for n in e) for e in experts]
            self.chosen = sizes.index(max(sizes))

        def merge_tensor(self, name, experts, base):
            return experts[self.chosen]

    method = Heaviest()
    small, large = ({"w": torch.full((2,), size)} for size in (1.0, 2.0))
    models = [open_weights(small), open_weights(large)]
    first, second = method.merged(models), method.merged(models[::-1])
    assert torch.equal(first["w"], large["w"])
    assert torch.equal(second["w"], large["w"])
    assert not hasattr(method, "chosen")
