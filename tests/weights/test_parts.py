"""Every tensor of every known architecture has a part, under any prefix."""

import re

import pytest
import torch
from tiny_models import (
    tiny_bert,
    tiny_hubert,
    tiny_vit,
    tiny_wav2vec2,
    tiny_wavlm,
    tiny_whisper,
)

from speechbrain.lobes.models import beats
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from speechbrain_merge.weights import Part, depth, matches, open_weights, part


def recipe_model(**settings):
    """What LibriSpeech/ASR/transformer saves as model.ckpt: a ModuleList."""
    front_end = ConvolutionFrontEnd(
        input_shape=(8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(8, 4),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    transformer = TransformerASR(
        tgt_vocab=9,
        input_size=80,
        d_model=16,
        nhead=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        d_ffn=32,
        normalize_before=True,
        causal=False,
        **settings,
    )
    heads = [Linear(input_size=16, n_neurons=9) for _ in range(2)]
    return torch.nn.ModuleList([front_end, transformer, *heads])


def beats_model(monkeypatch):
    settings = {
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "embed_dim": 8,
        "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 2,
        "conv_pos": 4,
        "conv_pos_groups": 2,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "finetuned_model": True,
        "predictor_class": 3,
        "num_buckets": 8,
        "deep_norm": True,
    }
    config = beats.BEATsConfig(settings)
    # Its constructor takes a configuration from a checkpoint only
    monkeypatch.setattr(beats, "BEATsConfig", lambda given: config)
    return beats.BEATs()


def hugging_face(name, **settings):
    import transformers

    config = getattr(transformers, f"{name.partition('For')[0]}Config")
    return getattr(transformers, name)(config(**settings))


SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_kernel": (3, 3),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
STABLE = {
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}

MODELS = {
    "SpeechBrain Transformer": lambda: recipe_model(),
    "SpeechBrain Conformer": lambda: recipe_model(
        encoder_module="conformer", attention_type="RelPosMHAXL"
    ),
    "SpeechBrain Conformer, rotary": lambda: recipe_model(
        encoder_module="conformer", attention_type="RoPEMHA"
    ),
    "SpeechBrain HyperConformer": lambda: recipe_model(
        encoder_module="conformer", attention_type="hypermixing"
    ),
    "SpeechBrain Branchformer": lambda: recipe_model(
        encoder_module="branchformer",
        attention_type="RelPosMHAXL",
        csgu_linear_units=32,
        use_linear_after_conv=True,
    ),
    "wav2vec2 for CTC": lambda: hugging_face("Wav2Vec2ForCTC", **SPEECH),
    "wav2vec2 large, adapters of MMS": lambda: hugging_face(
        "Wav2Vec2ForCTC",
        **SPEECH,
        **STABLE,
        adapter_attn_dim=4,
        add_adapter=True,
        output_hidden_size=8,
        num_adapter_layers=1,
    ),
    "wav2vec2 in pretraining": lambda: hugging_face(
        "Wav2Vec2ForPreTraining",
        **SPEECH,
        codevector_dim=8,
        proj_codevector_dim=8,
        num_codevectors_per_group=4,
    ),
    "HuBERT, batch norm": lambda: hugging_face(
        "HubertForCTC", **SPEECH, conv_pos_batch_norm=True
    ),
    "WavLM for CTC": lambda: hugging_face("WavLMForCTC", **SPEECH, **STABLE),
    "BERT with its head": lambda: hugging_face(
        "BertForMaskedLM", **TEXT, vocab_size=10
    ),
    "ViT with its head": lambda: hugging_face(
        "ViTForImageClassification", **TEXT, image_size=8, patch_size=4
    ),
}
FOLDERS = {
    "Whisper": tiny_whisper,
    "wav2vec2": tiny_wav2vec2,
    "HuBERT": tiny_hubert,
    "WavLM": tiny_wavlm,
    "BERT": tiny_bert,
    "ViT": tiny_vit,
}
IN_LAYERS = {
    "attention",
    "cross_attention",
    "feed_forward",
    "convolution",
    "normalization",
    "adapter",
}


def check_coverage(names):
    """No tensor without a role, and none in a layer without a layer."""
    for name in names:
        found = part(name)
        assert found.role != "other", name
        layer = re.search(r"(encoder|decoder)\.layers?\.(\d+)\.", name)
        if layer:
            assert (found.stack, found.layer) == (layer[1], int(layer[2])), name
            assert found.role in IN_LAYERS, name
        if found.role in ("attention", "cross_attention", "convolution"):
            assert found.projection, name
        if re.search(r"bias$|biases$", name):
            assert found.kind == "bias", name
        # The path says what `matches` takes
        assert matches(name, found.path), name
        for prefix in ("whisper.model.", "model.", "module.wav2vec2.model."):
            assert part(prefix + name) == found, prefix + name
    assert depth(names)["encoder"] == 2


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_of_a_module_has_a_role(model):
    check_coverage(list(MODELS[model]().state_dict()))


@pytest.mark.parametrize("model", FOLDERS)
def test_every_tensor_of_a_folder_has_a_role(model, tmp_path):
    """Files may have other names than modules: ViT's do."""
    with open_weights(FOLDERS[model](tmp_path)) as weights:
        check_coverage(weights.names())


def test_every_tensor_of_beats_has_a_role(monkeypatch):
    check_coverage(list(beats_model(monkeypatch).state_dict()))


QUERIES = {
    "wav2vec2.encoder.layers.7.attention.q_proj.weight": "attention",
    "bert.encoder.layer.7.attention.self.query.weight": "attention",
    "vit.encoder.layer.7.attention.attention.query.weight": "attention",
    "vit.layers.7.attention.q_proj.weight": "attention",
    "encoder.layers.7.self_attn.q_proj.weight": "attention",
    "model.decoder.layers.7.self_attn.q_proj.weight": "attention",
    "model.decoder.layers.7.encoder_attn.q_proj.weight": "cross_attention",
}


@pytest.mark.parametrize("name", QUERIES)
def test_queries_by_their_name_in_each_architecture(name):
    stack = "decoder" if "decoder" in name else "encoder"
    assert part(name) == Part(stack, 7, QUERIES[name], "q", "weight")
    key = name.replace("q_proj", "k_proj").replace("query", "key")
    assert part(key).projection == "k"


def test_counts_of_a_whisper(tmp_path):
    """Two layers, by hand: what each part of a Whisper has."""
    with open_weights(tiny_whisper(tmp_path, layers=2)) as weights:
        names = weights.names()

    def count(pattern):
        return sum(matches(name, pattern) for name in names)

    per_attention = 7  # k has no bias
    assert count("encoder.attention") == 2 * per_attention
    assert count("decoder.attention") == 2 * per_attention
    assert count("decoder.cross_attention") == 2 * per_attention
    assert count("attention.k") == count("attention.k.weight") == 4
    assert count("encoder.layers.1") == per_attention + 4 + 4
    assert count("decoder.layers.0-1.feed_forward.up.bias") == 2
    assert count("encoder.front_end") == 4
    assert count("embedding.token") == 1
    assert count("encoder") + count("decoder") == len(names) - count("output")
    assert count("*") == len(names)
    assert count("re:layer_norm") == count("normalization")
    assert depth(names) == {"encoder": 2, "decoder": 2}


def test_patterns():
    name = "wav2vec2.model.encoder.layers.11.attention.q_proj.weight"
    for pattern in (
        "encoder",
        "encoder.layers.11",
        "encoder.layers.4-11",
        "encoder.layers.11-19",
        "layers.11",
        "layer.11",
        "attention",
        "attention.q",
        "attention.weight",
        "q",
        "weight",
        "encoder.layers.0-23.attention.q.weight",
        "*.layers.1?.attention.*",
        r"re:\.layers\.(10|11)\.",
    ):
        assert matches(name, pattern), pattern
    for pattern in (
        "decoder",
        "encoder.layers.1",
        "encoder.layers.0-10",
        "decoder.layers.11",
        "cross_attention",
        "attention.k",
        "bias",
        "front_end",
        "q_proj.*",
        "re:^encoder",
    ):
        assert not matches(name, pattern), pattern


@pytest.mark.parametrize(
    "pattern",
    ["attn", "encoder.q_proj", "weight.attention", "encoder.decoder", ""]
    + ["layers.3.encoder", "encoder.layers.x", "layers.1.layers.2"],
)
def test_a_misspelt_part_is_an_error(pattern):
    with pytest.raises(ValueError, match="names no part of a model"):
        matches("encoder.layers.0.fc1.weight", pattern)


def test_unknown_names_are_other_and_keep_what_is_known():
    assert part("scores") == Part("", None, "other", "", "scores")
    assert part("encoder.gate.w").path == "encoder.other"
    found = part("encoder.layers.3.gate.weight")
    assert (found.layer, found.role, found.path) == (
        3,
        "other",
        "encoder.layers.3.other",
    )
    assert part("rnn.layers.2.weight").path == "layers.2.other"


def test_layers_above_a_pretrained_encoder():
    """LibriSpeech/ASR/CTC: a small DNN and a CTC layer beside wav2vec2."""
    assert part("model.0.linear1.w.weight").role == "feed_forward"
    assert part("model.0.bn1.norm.running_mean").role == "normalization"
    assert part("model.1.w.bias") == Part("", None, "output", "", "bias")


def test_weight_norm_has_its_kinds():
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    assert part(name + "0").kind == "magnitude"
    assert part(name + "1").kind == "direction"
    assert part(name + "1").path == "encoder.embedding.position"
