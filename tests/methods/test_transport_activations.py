"""Alignment by activations: where units are seen, and what that is worth."""

from functools import partial

import pytest
import torch
from methods.transport_models import BANDS, HEADS, LABELS, WIDTH, build

from speechbrain_merge.methods.transport import (
    align,
    find_alignment,
    symmetry,
    unit_activations,
)
from speechbrain_merge.methods.transport.moves import moved_weights
from speechbrain_merge.methods.transport.views import views_of
from speechbrain_merge.weights import fold, load_plain


def test_units_are_found_by_what_they_do_on_speech():
    """A permuted copy comes back by activations alone, weights aside."""
    model = build("wav2vec2", 1)
    state = fold(model)
    found = symmetry(state, heads=HEADS)
    order = torch.randperm(32)
    moved = moved_weights(state, found, {"feed_forward.0": order})
    copy = build("wav2vec2", 2)
    load_plain(copy, {name: moved[name] for name in moved.names()})
    speech = [torch.randn(2, 2500, dtype=torch.float64) for _ in range(2)]
    whole, masked = (
        [
            unit_activations(
                one, speech, partial(pass_over, lengths), frames=40
            )
            for one in (model, copy)
        ]
        for lengths in (None, torch.tensor([1.0, 0.5]))
    )
    for seen in (whole, masked):
        cost = {"anchor": seen[0], "source": seen[1]}
        aligned = align(copy, model, cost=cost)
        # weight norm was folded, unfolded and folded again
        for name in state.names():
            torch.testing.assert_close(aligned[name], state[name])
    # of the second utterance of each batch, only the first half of 7 frames
    name = "feed_forward.0"
    assert whole[0][name].shape == (32, 2 * 2 * 7)
    assert masked[0][name].shape == (32, 2 * (7 + 4))


def test_units_of_a_conformer_are_found_by_batches_of_speech():
    """Its positions are projected once for all utterances of a batch."""
    models = [build("conformer-RelPosMHAXL-ctc", seed) for seed in (1, 2)]
    for model in models:
        for module in model.float().modules():
            if hasattr(module, "emb_dtype"):
                module.emb_dtype = torch.float32
    speech = [torch.randn(2, 30, BANDS)]

    def forward(model, features):
        model(features)
        return torch.tensor([1.0, 0.7])  # which `encode` is told as well

    anchor, source = (
        unit_activations(one, speech, forward, heads=HEADS, frames=500)
        for one in models
    )
    # 8 frames of 40 ms, 6 of the second utterance; 15 positions
    assert anchor["feed_forward.0.1"].shape == (32, 8 + 6)
    assert anchor["query_key.0"].shape == (24, 2 * (8 + 6) + 15)
    # values, and what the heads give out
    assert anchor["value.0"].shape == (24, 2 * (8 + 6))
    with torch.no_grad():
        before = models[1](speech[0])
        cost = {"anchor": anchor, "source": source}
        aligned = align(models[1], models[0], cost=cost, heads=HEADS)
        moved = (aligned[k] != v for k, v in models[1].state_dict().items())
        assert any(one.any() for one in moved)
        load_plain(models[1], aligned)
        torch.testing.assert_close(models[1](speech[0]), before)


def pass_over(lengths, model, batch):
    """Runs a model and says how long the utterances are."""
    model(batch)
    return lengths


def recogniser(seed, attention="RelPosMHAXL"):
    """A small Conformer in float32."""
    model = build(f"conformer-{attention}-ctc", seed).float()
    for module in model.modules():
        if hasattr(module, "emb_dtype"):
            module.emb_dtype = torch.float32
    return model


def encode(model, features):
    """Runs one model over utterances of full length."""
    model.Transformer.encode(model.CNN(features), torch.ones(len(features)))
    return torch.ones(len(features))


@pytest.mark.parametrize(
    "name, places",
    [
        ("conformer-RelPosMHAXL-ctc", ("query", "key", "value")),
        ("conformer-regularMHA-ctc", ("query", "key", "value")),
        ("wavlm", ("query", "key", "value")),
        ("wav2vec2", ("q_proj", "k_proj", "v_proj", "out_proj.input")),
    ],
)
def test_queries_keys_and_values_are_seen_on_speech(name, places):
    """Whether layers give them out, or attention computes them inside."""
    model = build(name, 1).float()
    inputs, forward = torch.randn(3, 2500), partial(pass_over, None)
    if "former" in name:
        model = recogniser(1, name.split("-")[1])
        inputs, forward = torch.randn(3, 29, BANDS), encode
    found = symmetry(fold(model), heads=HEADS)
    draws = {"frames": 1000, "heads": HEADS}
    seen = unit_activations(model, [inputs], forward, **draws)
    spaces = {view.place: view.space for view in views_of(model, found)}
    for layer in (0, 1):
        for place in places:
            path = next(
                path
                for path in spaces
                if f"layers.{layer}." in path and path.endswith(place)
            )
            kind = "value" if place[0] in "vo" else "query_key"
            assert spaces[path] == f"{kind}.{layer}"
        # three utterances, and more than the positions of one
        for kind in ("query_key", "value"):
            samples = seen[f"{kind}.{layer}"].shape[1]
            assert samples >= 3 * 7, (kind, samples)


def test_queries_are_what_the_attention_computes():
    """By hand: the rows of a head's queries times the attention's input."""
    model = recogniser(1)
    features = torch.randn(1, 29, BANDS)
    given = []
    attention = model.Transformer.encoder.layers[0].mha_layer
    handle = attention.register_forward_pre_hook(
        lambda module, inputs: given.append(inputs[0][0].detach())
    )
    seen = unit_activations(model, [features], encode, frames=1000)
    handle.remove()
    number = len(given[0])
    weight = attention.in_proj_weight.detach()
    rows = weight.unflatten(0, (HEADS, 3, -1))[:, 0].flatten(0, 1)
    queries = (given[0] @ rows.T).T
    queries = queries - queries.mean(1, keepdim=True)
    # the frames were shuffled; their distances between units were not
    ours = seen["query_key.0"][:, :number]
    assert ours.shape == queries.shape
    torch.testing.assert_close(
        torch.corrcoef(ours), torch.corrcoef(queries), atol=1e-3, rtol=0
    )


def test_costs_of_spaces_are_on_one_scale():
    """However large the inputs of attention are, and however many samples."""
    model = recogniser(1)
    batches = [torch.randn(3, 29, BANDS) for _ in range(4)]
    few = unit_activations(model, batches[:1], encode, frames=5)
    many = unit_activations(model, batches, encode, frames=60)
    for seen in (few, many):
        for name, rows in seen.items():
            size = float(rows.double().square().sum(1).mean())
            assert size == pytest.approx(1, abs=1e-4), name


def test_weights_beside_activations_do_not_drown():
    """Heads are told by both, where one of their spaces is seen nowhere."""
    source, anchor = recogniser(1), recogniser(2)
    batches = [torch.randn(3, 29, BANDS) for _ in range(4)]
    seen = [unit_activations(one, batches, encode) for one in (anchor, source)]

    def found(scale):
        # values go by weights; queries and keys by activations of any unit
        cost = {
            which: {"query_key.0": scale * one["query_key.0"]}
            for which, one in zip(("anchor", "source"), seen)
        }
        return find_alignment(source, anchor, cost=cost).transports

    plain = found(1.0)
    for scale in (1e-3, 1e3):
        scaled = found(scale)
        for name in ("query_key.0", "value.0"):
            assert torch.equal(plain[name], scaled[name]), (name, scale)


def test_heads_are_found_by_speech_where_positions_say_nothing():
    """A copy with other heads first, and positions that are drawn anew."""
    model, copy = recogniser(1), recogniser(2)
    state = fold(model)
    found = symmetry(state)
    moved = moved_weights(state, found, swapped_heads(found))
    load_plain(copy, {name: moved[name] for name in moved.names()})
    with torch.no_grad():
        for layer in copy.Transformer.encoder.layers:
            torch.nn.init.normal_(layer.mha_layer.linear_pos.weight)
            # not in what follows: the streams stay alike
            layer.mha_layer.out_proj.weight.zero_()
        for layer in model.Transformer.encoder.layers:
            layer.mha_layer.out_proj.weight.zero_()
    batches = [torch.randn(3, 29, BANDS) for _ in range(4)]
    seen = [unit_activations(one, batches, encode) for one in (model, copy)]
    cost = {"anchor": seen[0], "source": seen[1]}
    transports = find_alignment(copy, model, cost=cost).transports
    size = WIDTH // HEADS
    for name, swap in swapped_heads(found).items():
        heads = transports[name][::size] // size
        assert torch.equal(heads, torch.argsort(swap)[::size] // size), name


def swapped_heads(found):
    """The first head last, and its units in their order."""
    return {
        space: torch.arange(found.spaces[space].size).roll(WIDTH // HEADS)
        for blocks in found.blocks.values()
        for space in blocks.spaces
    }


def heard(number, seed):
    """Made-up utterances: eight sounds in noise, each to be named later."""
    draw = torch.Generator().manual_seed(seed)
    bands = torch.randn(
        LABELS, BANDS, generator=torch.Generator().manual_seed(99)
    )
    labels = torch.randint(LABELS, (number, 8), generator=draw)
    sound = bands[labels].repeat_interleave(4, 1)[:, :30]
    noise = torch.randn(sound.shape, generator=draw)
    return sound + 0.7 * noise, labels


def loss_of(model, features, labels):
    """Cross-entropy of each frame."""
    lengths = torch.ones(len(features))
    encoded = model.Transformer.encode(model.CNN(features), lengths)
    logits = model.ctc_lin(encoded).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels.flatten())


def trained(seed):
    """A recogniser that has learned, from a start of its own."""
    model = recogniser(seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        loss = loss_of(model, *heard(16, 1000 * seed + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_the_average_of_two_trainings_is_best_aligned_by_activations():
    """Measured on a pair from different starts: loss halfway between them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = trained(1), trained(2)
        tests, batches = heard(64, 7), [heard(12, 500 + n)[0] for n in range(8)]
        seen = [
            unit_activations(one, batches, encode) for one in (first, second)
        ]
        cost = {"anchor": seen[0], "source": seen[1]}
        losses = {"first": first, "second": second}
        before = first.state_dict()
        for name, aligned in {
            "direct": second.state_dict(),
            "weights": align(second, first),
            "activations": align(second, first, cost=cost),
        }.items():
            losses[name] = recogniser(3)
            load_plain(
                losses[name],
                {
                    key: (before[key] + one) / 2
                    if one.is_floating_point()
                    else one
                    for key, one in aligned.items()
                },
            )
        with torch.no_grad():
            losses = {
                name: float(loss_of(model, *tests))
                for name, model in losses.items()
            }
    assert max(losses["first"], losses["second"]) < 0.05, losses
    assert losses["direct"] > 0.3, losses
    assert losses["activations"] < 0.2 * losses["direct"], losses
    assert losses["activations"] < losses["weights"], losses
