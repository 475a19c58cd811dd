"""Permutations learned by the loss: symmetries, and lower than what matches."""

import pytest
import torch
from methods.test_transport_symmetry import loaded, softmax_in_float64
from methods.transport_models import build, outputs

from speechbrain_merge.methods import create
from speechbrain_merge.methods.transport import find_alignment
from speechbrain_merge.methods.transport.learned_map import read_learned_map
from speechbrain_merge.methods.transport.learning import (
    LEARNERS,
    check_learning,
)
from speechbrain_merge.methods.transport.moves import moved_weights
from speechbrain_merge.methods.transport.sinkhorn import SinkhornRebasin
from speechbrain_merge.methods.transport.straight_through import StraightThrough

__all__ = ["softmax_in_float64"]

WIDTH, CLASSES = 24, 6
MINE = {
    "names": ["mine"],
    "tensors": {
        "0.weight": ["first", "fixed"],
        "0.bias": ["first"],
        "2.weight": ["second", "first"],
        "2.bias": ["second"],
        "4.weight": ["fixed", "second"],
    },
    "fixed": ["4.bias"],
}


def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(8, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, CLASSES),
    )


def material(number, seed):
    """Labels that a fixed random network gives, of inputs with noise."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 8, generator=draw)
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(8, 40, generator=draw)
    second = torch.randn(40, CLASSES, generator=draw)
    return inputs, (torch.tanh(inputs @ first) @ second).argmax(-1)


def loss_of(state, inputs, labels):
    outputs = torch.func.functional_call(network(0), state, (inputs,))
    return torch.nn.functional.cross_entropy(outputs, labels)


@pytest.fixture(scope="module")
def pair():
    """Two networks of one task, trained from different starts."""
    found = []
    inputs, labels = material(2000, 1)
    for seed in (1, 2):
        model = network(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(400):
            batch = slice(step * 100 % 2000, step * 100 % 2000 + 100)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(inputs[batch]), labels[batch]
            )
            loss.backward()
            optimizer.step()
        found.append(
            {name: one.detach() for name, one in model.state_dict().items()}
        )
    return found


def learn(learner, steps, seed=1):
    """Drives a learner on the training data."""
    inputs, labels = material(2000, seed)
    for step in range(steps):
        batch = slice(step * 100 % 2000, step * 100 % 2000 + 100)
        state = {
            name: one.detach().clone().requires_grad_()
            for name, one in learner.midpoint().items()
        }
        loss_of(state, inputs[batch], labels[batch]).backward()
        learner.update({name: one.grad for name, one in state.items()})
    return learner


def midpoint_loss(learner, maps):
    return float(loss_of(learner.mean_of(maps), *material(1000, 9)))


@pytest.mark.parametrize(
    "kind, rate, left",
    [("straight_through", 0.003, 0.67), ("sinkhorn", 0.1, 0.85)],
)
def test_learned_permutations_have_a_lower_loss_in_the_middle(
    pair, kind, rate, left
):
    anchor, source = pair
    by_weights = find_alignment(source, anchor, MINE).transports
    chosen_on = material(500, 5)
    seen = chosen_on[0]
    activations = {}
    for which, state in (("anchor", anchor), ("source", source)):
        first = seen @ state["0.weight"].T + state["0.bias"]
        second = torch.tanh(first) @ state["2.weight"].T + state["2.bias"]
        activations[which] = {"first": first.T, "second": second.T}
    by_activations = find_alignment(
        source, anchor, MINE, cost=activations
    ).transports
    learner = LEARNERS[kind](
        source,
        anchor,
        architecture=MINE,
        start=by_activations,
        learning_rate=rate,
    )
    losses = {
        name: midpoint_loss(learner, maps)
        for name, maps in (
            ("direct", {}),
            ("weights", by_weights),
            ("activations", by_activations),
        )
    }
    looks = []
    for _ in range(8):
        learn(learner, 40)
        maps = learner.transports()
        looks.append((float(loss_of(learner.mean_of(maps), *chosen_on)), maps))
    maps = min(looks, key=lambda one: one[0])[1]
    ends = [float(loss_of(state, *material(1000, 9))) for state in pair]
    # a part of the barrier that the best other map has is gone
    barriers = {
        name: loss - sum(ends) / 2
        for name, loss in {
            **losses,
            "learned": midpoint_loss(learner, maps),
        }.items()
    }
    learned = barriers.pop("learned")
    assert learned < left * min(barriers.values()), (learned, barriers)
    # which is no other model: the moved source has the loss of the source
    moved = moved_weights(learner.source, learner.symmetry, maps)
    moved = {name: moved[name] for name in moved}
    test = material(1000, 9)
    assert float(loss_of(moved, *test)) == pytest.approx(
        float(loss_of(source, *test)), abs=1e-5
    )


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize(
    "name", ["conformer-RelPosMHAXL-ctc", "conformer-RoPEMHA-ctc", "whisper"]
)
def test_whatever_is_learned_is_a_symmetry(name, kind):
    source, anchor = build(name, seed=1), build(name, seed=2)
    learner = LEARNERS[kind](source, anchor, learning_rate=0.3)
    torch.manual_seed(0)
    for _ in range(2):
        middle = learner.midpoint()
        learner.update(
            {name: torch.randn_like(middle[name]) for name in learner.names}
        )
    maps = learner.transports()
    assert any((m != torch.arange(len(m))).any() for m in maps.values())
    moved = moved_weights(learner.source, learner.symmetry, maps)
    after = outputs(name, loaded(name, moved))
    assert (after - outputs(name, source)).abs().max() < 1e-9


@pytest.mark.parametrize("kind", LEARNERS)
def test_learning_goes_on_where_it_was(pair, kind):
    anchor, source = pair

    def made():
        return LEARNERS[kind](
            source, anchor, architecture=MINE, learning_rate=0.05
        )

    whole = learn(made(), 6)
    first = learn(made(), 3)
    second = made()
    second.load_state_dict(first.state_dict())
    inputs, labels = material(2000, 1)
    for step in range(3, 6):
        batch = slice(step * 100, step * 100 + 100)
        state = {
            name: one.detach().clone().requires_grad_()
            for name, one in second.midpoint().items()
        }
        loss_of(state, inputs[batch], labels[batch]).backward()
        second.update({name: one.grad for name, one in state.items()})
    for name, tensor in whole.learned.items():
        assert torch.equal(second.learned[name], tensor)
    for name, order in whole.transports().items():
        assert torch.equal(second.transports()[name], order)
    other = StraightThrough if kind == "sinkhorn" else SinkhornRebasin
    with pytest.raises(ValueError, match="another learner"):
        other(source, anchor, architecture=MINE).load_state_dict(
            first.state_dict()
        )


def test_the_soft_maps_of_sinkhorn_are_maps():
    name = "conformer-RelPosMHAXL-ctc"
    learner = SinkhornRebasin(build(name, 1), build(name, 2))
    for scores in learner.learned.values():
        scores.data.normal_(generator=torch.Generator().manual_seed(1))
    for soft in learner._maps().values():
        for axis in (0, 1):
            torch.testing.assert_close(
                soft.sum(axis), torch.ones(len(soft)), rtol=0, atol=0.02
            )


def test_a_map_of_another_model_is_refused(pair, tmp_path):
    anchor, source = pair
    maps = find_alignment(source, anchor, MINE).transports
    stored = {name: order.clone() for name, order in maps.items()}
    assert (
        read_learned_map(source, stored, MINE).transports.keys() == maps.keys()
    )
    with pytest.raises(ValueError, match="'first' is no order of 24 units"):
        read_learned_map(source, {**stored, "first": stored["first"][:5]}, MINE)
    with pytest.raises(ValueError, match="'third', which .* does not have"):
        read_learned_map(source, {"third": stored["first"]}, MINE)


HEADS = {
    **MINE,
    "blocks": {
        "heads": {"spaces": ["first", "second"]},
    },
}


@pytest.mark.parametrize(
    "first, second, message",
    [
        ([1, 0, 2, 3], [1, 0, 2, 3], None),
        ([1, 0, 2, 3], [0, 1, 2, 3], "blocks of 'second' move otherwise"),
        ([1, 0, 2, 3], None, "blocks of 'second' move otherwise"),
        ("mixed", [0, 1, 2, 3], "'first' mixes the units of 4 blocks"),
    ],
)
def test_a_map_that_is_no_symmetry_is_refused(pair, first, second, message):
    def order(blocks):
        grid = torch.arange(WIDTH).unflatten(0, (4, -1))
        if blocks == "mixed":
            return grid.T.flatten()
        return grid[blocks].flatten()

    _, source = pair
    orders = {"first": order(first)}
    if second is not None:
        orders["second"] = order(second)
    if message is None:
        assert read_learned_map(source, orders, HEADS, heads=4)
    else:
        with pytest.raises(ValueError, match=message):
            read_learned_map(source, orders, HEADS, heads=4)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"cost": "learned", "hard": False}, "Learned maps are permutations"),
        ({"learning": {"steps": 3}}, "goes with `cost: learned`"),
        ({"cost": "learned", "learning": {"step": 3}}, "`learning` has step;"),
        ({"cost": "learned", "method": "ties"}, "`cost: learned` needs data"),
    ],
)
def test_wrong_options_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        create("optimal_transport", **parameters)


def test_a_merge_without_its_map_says_where_it_comes_from(pair):
    method = create("optimal_transport", cost="learned", architecture=MINE)
    with pytest.raises(ValueError, match="collect_statistics"):
        method(pair)
    maps = find_alignment(pair[1], pair[0], MINE).transports
    method.statistics = [None, maps]
    merged = method(pair)
    plain = create("optimal_transport", architecture=MINE)(pair)
    for name in plain:
        assert torch.equal(merged[name], plain[name])
    assert method.configuration()["cost"] == "learned"


def test_options_of_learning_have_defaults():
    assert check_learning(None) == check_learning({})
    with pytest.raises(ValueError, match="learner"):
        check_learning({"learner": "gumbel"})
