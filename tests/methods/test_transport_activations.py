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
