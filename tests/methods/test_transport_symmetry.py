"""Aligned by hard maps, every architecture computes what it did before."""

import pytest
import torch
import torch.nn.functional as functional
from methods.transport_models import MODELS, build, outputs

from speechbrain_merge.methods import create
from speechbrain_merge.methods.transport import align, find_alignment, symmetry
from speechbrain_merge.methods.transport.head_maps import head_spaces
from speechbrain_merge.methods.transport.moves import moved_weights
from speechbrain_merge.weights import fold, load_plain, open_weights

HEADS = 3


@pytest.fixture(autouse=True)
def softmax_in_float64(monkeypatch):
    """SpeechBrain's attention asks for float32, and so for 1e-7."""
    softmax = functional.softmax

    def precise(scores, dim=None, _stacklevel=3, dtype=None):
        return softmax(scores, dim=dim)

    monkeypatch.setattr(functional, "softmax", precise)


def loaded(name, weights):
    """A model with these weights."""
    model = build(name, seed=5)
    state = {key: weights[key] for key in weights.names()}
    load_plain(model, state)
    return model


def random_transports(found, seed=0):
    """Any symmetry at all: blocks change places, units inside them."""
    draw = torch.Generator().manual_seed(seed)
    chosen, orders = {}, {}
    for name, space in found.spaces.items():
        if space.pinned:
            continue
        blocks = found.blocks.get(space.blocks)
        number = blocks.number if blocks else 1
        outer = torch.arange(number)
        if blocks and not blocks.fixed_order:
            outer = orders.setdefault(
                blocks.name, torch.randperm(number, generator=draw)
            )
        size = space.size // number
        inside = [torch.randperm(size, generator=draw) for _ in outer]
        if blocks and name in blocks.fixed_inside:
            inside = [torch.arange(size) for _ in outer]
        chosen[name] = torch.cat(
            [int(old) * size + one for old, one in zip(outer, inside)]
        )
    return chosen


@pytest.mark.parametrize("name", MODELS)
def test_a_model_aligned_to_another_computes_what_it_did(name):
    source, anchor = build(name, seed=1), build(name, seed=2)
    before = outputs(name, source)
    found = find_alignment(source, anchor)
    after = outputs(name, loaded(name, found.apply(source)))
    assert (after - before).abs().max() < 1e-9
    # it did move, and nearer to the anchor
    assert (outputs(name, anchor) - before).abs().max() > 0.1
    assert sum(group["after"] for group in found.groups) < 0.95 * sum(
        group["before"] for group in found.groups
    )


@pytest.mark.parametrize("inside", ["rotations", "invertible"])
@pytest.mark.parametrize(
    "name",
    [
        "conformer-RelPosMHAXL-ctc",
        "conformer-RoPEMHA-ctc",
        "transformer-regularMHA-decoder",
        "wav2vec2",
        "wavlm",
        "whisper",
    ],
)
def test_heads_that_are_turned_inside_compute_what_they_did(name, inside):
    source, anchor = build(name, seed=1), build(name, seed=2)
    before = outputs(name, source)
    found = find_alignment(source, anchor, heads=HEADS, inside=inside)
    turned = {
        space
        for space, maps in found.head_maps.items()
        if (maps - torch.eye(maps.shape[-1])).abs().amax() > 0.1
    }
    assert turned == set(head_spaces(found.symmetry)) != set()
    rotary = {space for space in turned if "query_key" in space}
    assert bool(rotary) == ("RoPE" not in name)
    after = outputs(name, loaded(name, found.apply(source)))
    assert (after - before).abs().max() < 1e-9

    def distance(alignment):
        with open_weights(source) as one, open_weights(anchor) as other:
            moved, target = alignment.apply(one), fold(other)
            return sum(
                float((moved[key] - target[key]).square().sum())
                for key in alignment.symmetry.pieces
            )

    far = distance(find_alignment(source, anchor, heads=HEADS))
    assert distance(found) < 0.999 * far
    if inside == "invertible":
        rotated = find_alignment(
            source, anchor, heads=HEADS, inside="rotations"
        )
        assert distance(found) < distance(rotated)
        # they are no rotations, and so the other side needs the inverse
        assert any(
            (one @ one.mT - torch.eye(one.shape[-1])).abs().max() > 1e-3
            for one in found.head_maps.values()
        )


def test_a_fusion_turns_heads_as_an_alignment_does():
    name = "conformer-RelPosMHAXL-ctc"
    source, anchor = build(name, seed=1), build(name, seed=2)
    aligned = align(source, anchor, inside="invertible")
    states = [model.state_dict() for model in (anchor, source)]
    fused = create("optimal_transport", inside="invertible")(states)
    for key, tensor in fused.items():
        torch.testing.assert_close(tensor, (states[0][key] + aligned[key]) / 2)
    with pytest.raises(ValueError, match="follows hard maps"):
        align(source, anchor, hard=False, inside="rotations")


@pytest.mark.parametrize("name", MODELS)
def test_any_move_is_a_symmetry_and_is_found_again(name):
    model = build(name, seed=1)
    found = symmetry(fold(model), heads=HEADS)
    transports = random_transports(found)
    moved = moved_weights(fold(model), found, transports)
    after = outputs(name, loaded(name, moved))
    assert (after - outputs(name, model)).abs().max() < 1e-9
    with open_weights(model) as weights:
        plain = fold(weights)
        assert any(
            not torch.equal(moved[key], plain[key]) for key in plain.names()
        )
        back = align(moved, plain, heads=HEADS)
        for key in plain.names():
            assert torch.equal(back[key], plain[key]), key


@pytest.mark.parametrize("name", ["conformer-RelPosMHAXL-ctc", "whisper"])
def test_a_map_that_leaves_out_a_space_is_no_symmetry(name):
    model = build(name, seed=1)
    found = symmetry(fold(model), heads=HEADS)
    before = outputs(name, model)
    transports = random_transports(found)
    for space in transports:
        if space.endswith(".1"):
            continue  # the other layer is as this one
        # its units are moved where they are written, and not where read
        written = found.pieces_of(space)[1][0].name
        broken = dict(found.pieces)
        broken[written] = found.without(space).pieces[written]
        parts = {**found.__dict__, "pieces": broken}
        moved = moved_weights(fold(model), type(found)(**parts), transports)
        after = outputs(name, loaded(name, moved))
        assert (after - before).abs().max() > 1e-3, space


@pytest.mark.parametrize(
    "name, still",
    [
        ("wav2vec2-bare", {"stream", "front_end.6"}),
        ("wav2vec2", set()),
        ("whisper-bare", {"encoder", "decoder"}),
        ("whisper", set()),
        ("conformer-headless", {"stream"}),
        ("conformer-list-ctc-seq", {"stream"}),
        ("conformer-list-ctc", set()),
        ("conformer-RelPosMHAXL-decoder", set()),
    ],
)
def test_what_leaves_the_model_stays_and_is_said_to(name, still, caplog):
    """Without an output layer in the file, nobody would read it moved."""
    model = build(name, seed=1)
    with caplog.at_level("WARNING"):
        found = find_alignment(model, build(name, seed=2))
    said = [one.getMessage() for one in caplog.records]
    said = [one for one in said if "no output layer" in one]
    pinned = {
        space.name
        for space in found.symmetry.spaces.values()
        if "leaves the model" in space.pinned
    }
    assert pinned == still
    assert not pinned & set(found.transports)
    assert len(said) == bool(still)
    assert all(space in said[0] for space in still)
    reasons = {row["space"]: row["pinned"] for row in found.groups}
    assert all(reasons[space] for space in still)
