"""Tiny real models for the tests, built offline in seconds.

Every function is seeded: the same arguments give the same weights, so two
tests can rely on the same model without sharing files. The models are random
but real: the folders load through SpeechBrain's own wrappers and Hugging
Face's `from_pretrained`. `tiny_recipe` holds the Brain and the data that
belong to them; its names can be imported from here too.

Example
-------
>>> first, second = tiny_conformer(seed=0), tiny_conformer(seed=1)
>>> torch.equal(first.ctc_lin.weight, second.ctc_lin.weight)
False

Authors
 * The speechbrain_merge authors 2026
"""

import importlib
import json
from pathlib import Path

import torch
from tiny_recipe import (  # noqa: F401
    FEATURES,
    SAMPLE_RATE,
    WORDS,
    TinyCTC,
    TinyNetwork,
    make_speech,
    tiny_ctc_brain,
    tiny_ctc_data,
    tiny_network,
)

from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR


def tiny_whisper(
    folder,
    seed: int = 0,
    layers: int = 2,
    heads: int = 2,
    d_model: int = 16,
    multilingual: bool = False,
) -> str:
    """Saves a random Whisper with tokenizer, as a Hugging Face folder.

    Arguments
    ---------
    folder : str or Path
        Where to write. Created when missing.
    seed : int
        Seed of the random weights (the tokenizer is always the same).
    layers : int
        Number of encoder layers and of decoder layers.
    heads : int
        Number of attention heads.
    d_model : int
        Width. Every utterance costs a pass over 1500 frames: keep it small.
    multilingual : bool
        True gives the vocabulary size from which SpeechBrain and transformers
        recognise a multilingual Whisper (51865, 0.8 M parameters).

    Returns
    -------
    str
        The folder, ready to be `source=` of SpeechBrain's `Whisper`.

    Example
    -------
    >>> from speechbrain.integrations.huggingface.whisper import Whisper
    >>> folder = tiny_whisper(getfixture("tmp_path") / "whisper")
    >>> whisper = Whisper(source=folder, save_path=folder + "/cache")
    >>> bos = torch.tensor([[whisper.bos]])
    >>> encoded, logits, _ = whisper(torch.randn(1, 16000), bos)
    >>> encoded.shape
    torch.Size([1, 1500, 16])
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    byte_pairs = ByteLevelBPETokenizer()
    byte_pairs.train_from_iterator(
        [" ".join(WORDS), " ".join(WORDS).upper()],
        vocab_size=300,
        min_frequency=1,
        show_progress=False,
    )
    byte_pairs.save_model(str(folder))
    lines = (folder / "merges.txt").read_text().splitlines()
    end = "<|endoftext|>"
    tokenizer = WhisperTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()),
        merges=[tuple(x.split()) for x in lines if x and x[0] != "#"],
        unk_token=end,
        bos_token=end,
        eos_token=end,
        pad_token=end,
    )
    # SpeechBrain finds the language of an id by its distance from the start
    # token, so the multilingual model needs all of them, in Whisper's order
    codes = list(LANGUAGES) if multilingual else ["en", "fr"]
    special = ["<|startoftranscript|>"]
    special += [f"<|{code}|>" for code in codes]
    special += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    tokenizer.save_pretrained(folder)
    (folder / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)

    end_id = tokenizer.convert_tokens_to_ids(end)
    config = WhisperConfig(
        vocab_size=51865 if multilingual else len(tokenizer),
        num_mel_bins=80,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=2 * d_model,
        decoder_ffn_dim=2 * d_model,
        max_source_positions=1500,  # 30 s are hard-wired in SpeechBrain
        max_target_positions=64,
        pad_token_id=end_id,
        bos_token_id=end_id,
        eos_token_id=end_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(special[0]),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return _save_random(WhisperForConditionalGeneration, config, folder, seed)


def tiny_wav2vec2(folder, seed: int = 0, **config) -> str:
    """Saves a random wav2vec 2.0 encoder as a Hugging Face folder.

    Its positional convolution is weight-normed, as in the real one.

    Arguments
    ---------
    folder : str or Path
        Where to write.
    seed : int
        Seed of the random weights.
    **config
        Replaces settings of the configuration, e.g. `hidden_size=32`.

    Returns
    -------
    str
        The folder, ready to be `source=` of SpeechBrain's `Wav2Vec2`.

    Example
    -------
    >>> from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
    >>> folder = tiny_wav2vec2(getfixture("tmp_path") / "wav2vec2")
    >>> encoder = Wav2Vec2(source=folder, save_path=folder + "/cache")
    >>> encoder(torch.randn(1, 4000)).shape
    torch.Size([1, 12, 16])
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return _save_speech_encoder(
        Wav2Vec2Model, Wav2Vec2Config, folder, seed, config
    )


def tiny_hubert(folder, seed: int = 0, **config) -> str:
    """Saves a random HuBERT encoder; see `tiny_wav2vec2`."""
    from transformers import HubertConfig, HubertModel

    return _save_speech_encoder(HubertModel, HubertConfig, folder, seed, config)


def tiny_wavlm(folder, seed: int = 0, **config) -> str:
    """Saves a random WavLM encoder; see `tiny_wav2vec2`."""
    from transformers import WavLMConfig, WavLMModel

    return _save_speech_encoder(WavLMModel, WavLMConfig, folder, seed, config)


def tiny_bert(folder, seed: int = 0, layers: int = 2) -> str:
    """Saves a random BERT (32 tokens, width 16) as a Hugging Face folder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return _save_random(BertModel, config, folder, seed)


def tiny_bert_tokenizer(folder) -> None:
    """Saves a tokenizer for a `tiny_bert`: its tokens are single letters."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [chr(ord("a") + index) for index in range(26)]
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)


def tiny_beats(path, seed: int = 0) -> str:
    """Saves a random BEATs (2 layers, width 16) as a file of its authors' form.

    Arguments
    ---------
    path : str or Path
        The file to write.
    seed : int
        Seed of the random weights.

    Returns
    -------
    str
        The file, ready to be `ckp_path=` of SpeechBrain's `BEATs`.

    Example
    -------
    >>> from speechbrain.lobes.models.beats import BEATs
    >>> beats = BEATs(tiny_beats(getfixture("tmp_path") / "beats.pt"))
    >>> beats.cfg.encoder_layers, beats.cfg.encoder_embed_dim
    (2, 16)
    """
    # as in BEATs_iter3.pt, but small
    settings = {
        "embed_dim": 8,
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "deep_norm": True,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "num_buckets": 8,
        "max_distance": 16,
    }
    # SpeechBrain's class takes its sizes from a checkpoint alone
    beats = importlib.import_module("speechbrain.lobes.models.beats")
    sizes, beats.BEATsConfig = beats.BEATsConfig, lambda _: sizes(settings)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = beats.BEATs(freeze=False).state_dict()
    finally:
        beats.BEATsConfig = sizes
    torch.save({"cfg": settings, "model": weights}, path)
    return str(path)


def tiny_vit(folder, seed: int = 0, layers: int = 2) -> str:
    """Saves a random vision transformer (8×8 pixels, width 16)."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    return _save_random(ViTModel, config, folder, seed)


def _save_speech_encoder(model_class, config_class, folder, seed, config):
    from transformers import Wav2Vec2FeatureExtractor

    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        **config,
    }
    # SpeechBrain's wrapper needs preprocessor_config.json beside the weights
    Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=True
    ).save_pretrained(folder)
    return _save_random(model_class, config_class(**settings), folder, seed)


def _save_random(model_class, config, folder, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)
    return str(folder)


class TinyConformer(torch.nn.Module):
    """SpeechBrain's Conformer encoder with a CTC layer on top.

    The attention is `RelPosMHAXL`, whose queries, keys and values are one
    fused matrix.

    Arguments
    ---------
    features : int
        Size of the input vectors.
    labels : int
        Number of CTC labels, blank included.
    layers : int
        Number of Conformer layers.
    decoder_layers : int
        Number of Transformer decoder layers (0: none, CTC only).

    Example
    -------
    >>> tiny_conformer()(torch.randn(2, 10, FEATURES), torch.ones(2)).shape
    torch.Size([2, 10, 7])
    """

    def __init__(
        self,
        features: int = FEATURES,
        labels: int = len(WORDS) + 1,
        layers: int = 2,
        decoder_layers: int = 0,
    ):
        super().__init__()
        self.Transformer = TransformerASR(
            tgt_vocab=labels,
            input_size=features,
            d_model=16,
            nhead=2,
            num_encoder_layers=layers,
            num_decoder_layers=decoder_layers,
            d_ffn=32,
            dropout=0.0,
            activation=torch.nn.GELU,
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            kernel_size=3,
            normalize_before=True,
            causal=False,
        )
        self.ctc_lin = torch.nn.Linear(16, labels)

    def forward(self, features, lengths):
        """CTC logits, shape [batch, frames, labels]."""
        encoded = self.Transformer.encode(features, wav_len=lengths)
        return self.ctc_lin(encoded)


def tiny_conformer(seed: int = 0, **arguments) -> TinyConformer:
    """A seeded `TinyConformer`; takes its arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyConformer(**arguments)


def inference_yaml(weights) -> str:
    """A YAML for inference with modules that have just these parameters.

    Arguments
    ---------
    weights : dict
        Name to tensor, as `export_pretrained` takes them.

    Returns
    -------
    str
        HyperPyYAML with `modules` and `pretrainer`.

    Example
    -------
    >>> from hyperpyyaml import load_hyperpyyaml
    >>> text = inference_yaml({"asr.layers.0.weight": torch.ones(3, 2)})
    >>> hparams = load_hyperpyyaml(text)
    >>> [(n, tuple(p.shape)) for n, p in hparams["asr"].named_parameters()]
    [('layers.0.weight', (3, 2))]
    """
    tree: dict = {}
    for name, tensor in weights.items():
        *above, last = name.split(".")
        place = tree
        for word in above:
            place = place.setdefault(word, {})
        place[last] = list(tensor.shape)

    def node(content, indent):
        kinds = {type(each) for each in content.values()}
        assert len(kinds) == 1, "tensors and modules side by side"
        leaf = kinds == {list}
        text = "Parameter" if leaf else "Module"
        text = f"!new:torch.nn.{text}Dict\n"
        for number, (key, each) in enumerate(content.items()):
            text += " " * indent + ("  " if number else "- ") + f'"{key}": '
            text += (
                f"!apply:torch.zeros [{each}]\n"
                if leaf
                else node(each, indent + 4)
            )
        return text

    text = "".join(f"{key}: {node(tree[key], 4)}" for key in tree)
    listed = "".join(f"        {key}: !ref <{key}>\n" for key in tree)
    return (
        f"{text}modules:\n{listed}"
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        f"    loadables:\n{listed}"
    )
