"""How many heads there are: models and callers have to agree."""

import json

import pytest
import torch
from methods.transport_models import BANDS, HEADS, LABELS, WIDTH, build

from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain_merge.engine import merge
from speechbrain_merge.methods import OptimalTransport
from speechbrain_merge.methods.transport import (
    align,
    find_alignment,
    symmetry,
    unit_activations,
)
from speechbrain_merge.weights import (
    attention_heads,
    fold,
    head_count,
    open_weights,
    write_weights,
)


def encoder(attention, heads, seed=0):
    """A Conformer whose tensors do not tell its heads."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TransformerASR(
            tgt_vocab=LABELS,
            input_size=BANDS,
            d_model=WIDTH,
            nhead=heads,
            num_encoder_layers=1,
            num_decoder_layers=0,
            d_ffn=16,
            kernel_size=3,
            encoder_module="conformer",
            attention_type=attention,
            normalize_before=True,
            causal=False,
        )
    return model.eval()


@pytest.mark.parametrize("attention", ["RoPEMHA", "regularMHA"])
def test_a_number_that_is_not_the_modules_is_refused(attention):
    """Wherever it is given: to the function, the method, or a pass."""
    source, anchor = (encoder(attention, 4, seed) for seed in (1, 2))
    assert symmetry(source, heads=4).blocks["attention.0"].number == 4
    for ask in (
        lambda: symmetry(source, heads=2),
        lambda: align(source, anchor, heads=2),
        lambda: align(source.state_dict(), anchor, heads=2),
        lambda: OptimalTransport(heads=2)([source, anchor]),
        lambda: merge(
            OptimalTransport(heads=2), [source, anchor], progress=False
        ),
        lambda: unit_activations(source, [], lambda *_: None, heads=2),
    ):
        with pytest.raises(ValueError, match="says 2, .* says 4"):
            ask()
    # the right one, or none, moves what was asked to be moved
    for heads in (4, None):
        align(source, anchor, heads=heads)


def test_anchor_and_source_must_have_as_many():
    source, anchor = encoder("RoPEMHA", 4), encoder("RoPEMHA", 2)
    for ask in (
        lambda: align(source, anchor),
        lambda: align(anchor, source),
        lambda: OptimalTransport()([source, anchor]),
    ):
        with pytest.raises(ValueError, match="numbers of attention heads"):
            ask()
    # the anchor alone may tell
    found = find_alignment(source.state_dict(), encoder("RoPEMHA", 4, 2))
    assert found.symmetry.blocks["attention.0"].number == 4


def test_a_number_that_is_not_the_tensors_is_refused():
    """Relative positions have a bias for each head."""
    model = build("conformer-RelPosMHAXL-ctc", 1).state_dict()
    assert symmetry(model, heads=HEADS).blocks["attention.0"].number == HEADS
    with pytest.raises(ValueError, match="3 heads, and 2 were given"):
        align(model, model, heads=2)
    wavlm = build("wavlm", 1).state_dict()
    with pytest.raises(ValueError, match="3 heads, and 4 were given"):
        symmetry(fold(wavlm), heads=4)


def test_a_folder_tells_by_its_configuration(tmp_path):
    """Through every door: the same folder, merged from files."""
    from transformers import WhisperForConditionalGeneration

    paths = []
    for seed in (1, 2):
        model = build("whisper", seed)
        assert isinstance(model, WhisperForConditionalGeneration)
        paths.append(tmp_path / str(seed))
        model.save_pretrained(paths[-1])
    assert attention_heads(paths[0]) == {"encoder": 3, "decoder": 3}
    with open_weights(paths[0]) as weights:
        assert head_count(weights) == HEADS
    found = find_alignment(*paths)
    assert found.symmetry.blocks["encoder.attention.0"].number == HEADS
    merged = merge(
        OptimalTransport(),
        paths,
        output=tmp_path / "merged.safetensors",
        progress=False,
    )
    with pytest.raises(ValueError, match="says 4"):
        merge(OptimalTransport(heads=4), paths, progress=False)
    other = json.loads((paths[1] / "config.json").read_text())
    other["encoder_attention_heads"] = other["decoder_attention_heads"] = 4
    (paths[1] / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="says [34], .* says [34]"):
        align(*paths)
    with pytest.raises(ValueError, match="4 attention heads .* has 3"):
        merge(OptimalTransport(), paths, progress=False)
    with open_weights(merged) as weights:
        assert head_count(weights) == HEADS


def test_a_configuration_that_is_none_says_nothing(tmp_path):
    """Weights open without it, as they always did."""
    write_weights(tmp_path / "model.safetensors", {"w": torch.ones(1)})
    for text in ("", "[1]", '{"num_attention_heads": "four"}', "null"):
        (tmp_path / "config.json").write_text(text)
        assert attention_heads(tmp_path) == {}
        with open_weights(tmp_path) as weights:
            assert head_count(weights) is None


def test_a_module_of_two_numbers_is_refused():
    both = torch.nn.ModuleList([encoder("RoPEMHA", 4), encoder("RoPEMHA", 2)])
    assert sorted(set(attention_heads(both).values())) == [2, 4]
    with pytest.raises(ValueError, match=r"\[2, 4\] heads"):
        head_count(both)
