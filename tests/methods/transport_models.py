"""A tiny real model of every architecture that has a symmetry map.

All are in float64 and have no constant tensors: what an initialisation leaves
at zero or one is drawn, as a wrong map would not show in it.
"""

from functools import partial

import torch

import speechbrain as sb
from speechbrain.lobes.downsampling import Conv1DDownsampler
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.VanillaNN import VanillaNN
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm2d, GroupNorm, LayerNorm

HEADS = 3
WIDTH = 24
BANDS = 20
LABELS = 7
SPEECH = dict(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=32,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    vocab_size=LABELS,
)


class Recogniser(torch.nn.Module):
    """SpeechBrain's recogniser, as recipes put it together."""

    def __init__(
        self, encoder, attention, decoder, deep, front_end=True, norm=None
    ):
        super().__init__()
        if front_end:
            self.CNN = ConvolutionFrontEnd(
                input_shape=(8, 10, BANDS),
                num_blocks=2,
                num_layers_per_block=2 if deep else 1,
                out_channels=(8, 6),
                kernel_sizes=(3, 3),
                strides=(2, 2),
                residuals=(deep, deep),
                norm=norm or (BatchNorm2d if deep else LayerNorm),
            )
        self.Transformer = TransformerASR(
            tgt_vocab=LABELS,
            input_size=6 * 5 if front_end else BANDS,
            d_model=WIDTH,
            nhead=HEADS,
            num_encoder_layers=2,
            num_decoder_layers=decoder,
            d_ffn=32,
            kernel_size=3,
            encoder_module=encoder,
            attention_type=attention,
            normalize_before=True,
            causal=False,
        )
        self.ctc_lin = Linear(LABELS, input_size=WIDTH)
        if decoder:
            self.seq_lin = Linear(LABELS, input_size=WIDTH)

    def forward(self, features):
        """Logits of the CTC layer, and of the decoder if there is one."""
        if hasattr(self, "CNN"):
            features = self.CNN(features)
        lengths = torch.tensor([1.0, 0.7])
        if not hasattr(self, "seq_lin"):
            encoded = self.Transformer.encode(features, lengths)
            return self.ctc_lin(encoded)
        words = torch.tensor([[1, 2, 3], [2, 4, 5]])
        encoded, decoded = self.Transformer(features, words, lengths)
        return torch.cat([self.ctc_lin(encoded), self.seq_lin(decoded)], dim=1)


class Numbered(torch.nn.Module):
    """A recogniser saved as one ModuleList, as recipes do."""

    def __init__(self, *order):
        super().__init__()
        decoder = int("seq_lin" in order)
        whole = Recogniser("conformer", "RelPosMHAXL", decoder, False)
        self.model = torch.nn.ModuleList(getattr(whole, name) for name in order)
        self.parts = order

    def forward(self, features):
        """As the recogniser."""
        whole = Recogniser.__new__(Recogniser)
        torch.nn.Module.__init__(whole)
        for name, module in zip(self.parts, self.model):
            setattr(whole, name, module)
        return whole(features)


class HeadElsewhere(torch.nn.Module):
    """An encoder whose output layer is in none of its files."""

    def __init__(self, encoder, width):
        super().__init__()
        self.encoder = encoder
        draw = torch.Generator().manual_seed(3)
        head = torch.randn(width, LABELS, generator=draw, dtype=torch.float64)
        self.head = (head,)

    def forward(self, features):
        """Logits."""
        lengths = torch.tensor([1.0, 0.7])
        return self.encoder.encode(features, lengths) @ self.head[0]


class WhisperCTC(torch.nn.Module):
    """Whisper's encoder alone, as SpeechBrain has it, with CTC on top."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.encoder = whisper("Model").encoder
        self.ctc_lin = Linear(LABELS, input_size=WIDTH)

    def forward(self, features):
        """CTC logits."""
        return self.ctc_lin(self.model.encoder(features).last_hidden_state)


class VanillaOnTop(torch.nn.Module):
    """wav2vec 2.0 or WavLM below VanillaNN and one linear layer."""

    def __init__(self, kind, blocks, as_list=False, downsampling=False):
        super().__init__()
        import transformers

        config = getattr(transformers, f"{kind}Config")(**SPEECH)
        self.wav2vec2 = getattr(transformers, f"{kind}Model")(config)
        enc = VanillaNN([None, None, WIDTH], dnn_blocks=blocks, dnn_neurons=11)
        ctc_lin = Linear(LABELS, input_size=11)
        self.on_top = (enc, ctc_lin)
        self.down = (Conv1DDownsampler(2, 5),) if downsampling else ()
        if as_list:
            self.model = torch.nn.ModuleList((*self.on_top, *self.down))
        else:
            self.enc, self.output_lin = enc, ctc_lin

    def forward(self, wavs):
        """CTC logits."""
        for layer in self.down:
            wavs = layer(wavs)
        hidden = self.wav2vec2(wavs).last_hidden_state
        for layer in self.on_top:
            hidden = layer(hidden)
        return hidden


class RecipeOnTop(torch.nn.Module):
    """HuBERT below the dense layers of SpeechBrain's CTC recipes."""

    def __init__(self):
        super().__init__()
        from transformers import HubertConfig, HubertModel

        self.wav2vec2 = HubertModel(HubertConfig(**SPEECH))
        self.enc = sb.nnet.containers.Sequential(input_shape=[None, 9, WIDTH])
        for number in (1, 2):
            self.enc.append(
                Linear, n_neurons=10 + number, layer_name=f"linear{number}"
            )
            self.enc.append(
                sb.nnet.normalization.BatchNorm1d, layer_name=f"bn{number}"
            )
            self.enc.append(torch.nn.LeakyReLU(), layer_name=f"act{number}")
        self.ctc_lin = Linear(LABELS, input_size=12)

    def forward(self, wavs):
        """CTC logits."""
        hidden = self.wav2vec2(wavs).last_hidden_state
        return self.ctc_lin(self.enc(hidden))


def hugging_face(kind, task="ForCTC", **settings):
    """A random model of Hugging Face, with a layer for CTC or bare."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SPEECH, **settings})
    return getattr(transformers, f"{kind}{task}")(config)


def whisper(task="ForConditionalGeneration"):
    """A random Whisper that hears 40 frames of 10 bands."""
    import transformers
    from transformers import WhisperConfig

    config = WhisperConfig(
        vocab_size=50,
        num_mel_bins=10,
        max_source_positions=20,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    return getattr(transformers, f"Whisper{task}")(config)


LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
MODELS = {
    # encoder, attention, decoder layers, deep front end with batch norm
    **{
        f"{encoder}-{attention}-{'decoder' if decoder else 'ctc'}": partial(
            Recogniser, encoder, attention, decoder, bool(decoder)
        )
        for encoder in ("conformer", "transformer")
        for attention in ("RelPosMHAXL", "RoPEMHA", "regularMHA")
        for decoder in (0, 1)
    },
    "conformer-features": partial(
        Recogniser, "conformer", "RelPosMHAXL", 0, False, False
    ),
    "conformer-GroupNorm": partial(
        Recogniser,
        "conformer",
        "RelPosMHAXL",
        0,
        True,
        norm=partial(GroupNorm, num_groups=2),
    ),
    "conformer-list-ctc": partial(Numbered, "CNN", "Transformer", "ctc_lin"),
    "conformer-list-seq-ctc": partial(
        Numbered, "CNN", "Transformer", "seq_lin", "ctc_lin"
    ),
    "conformer-list-ctc-seq": partial(
        Numbered, "CNN", "Transformer", "ctc_lin", "seq_lin"
    ),
    "conformer-headless": lambda: HeadElsewhere(
        Recogniser("conformer", "RelPosMHAXL", 0, False, False).Transformer,
        WIDTH,
    ),
    "transformer-headless-decoder": lambda: HeadElsewhere(
        Recogniser("transformer", "RelPosMHAXL", 1, False, False).Transformer,
        WIDTH,
    ),
    "wav2vec2": partial(hugging_face, "Wav2Vec2"),
    "wav2vec2-bare": partial(hugging_face, "Wav2Vec2", "Model"),
    "wav2vec2-pretraining": partial(
        hugging_face,
        "Wav2Vec2",
        "ForPreTraining",
        num_codevectors_per_group=4,
        codevector_dim=8,
        proj_codevector_dim=8,
    ),
    "wav2vec2-vanilla": partial(VanillaOnTop, "Wav2Vec2", 3),
    "wav2vec2-vanilla-one-layer": partial(VanillaOnTop, "Wav2Vec2", 1),
    "wav2vec2-vanilla-list": partial(VanillaOnTop, "Wav2Vec2", 2, True),
    "wavlm-vanilla-list": partial(VanillaOnTop, "WavLM", 2, True, True),
    "wav2vec2-large": partial(
        hugging_face, "Wav2Vec2", conv_bias=True, **LARGE
    ),
    "hubert": partial(hugging_face, "Hubert", conv_pos_batch_norm=True),
    "hubert-recipe": RecipeOnTop,
    "wavlm": partial(hugging_face, "WavLM"),
    "wavlm-large": partial(hugging_face, "WavLM", **LARGE),
    "whisper": whisper,
    "whisper-bare": partial(whisper, "Model"),
    "whisper-ctc": WhisperCTC,
}


def build(name, seed):
    """A model of the table, in float64, with every tensor drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name]().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for key, buffer in model.named_buffers():
                if "running" in key:
                    buffer.add_(torch.rand_like(buffer))
    for module in model.modules():
        # relative positions are made in a type of their own
        if hasattr(module, "emb_dtype"):
            module.emb_dtype = torch.float64
    return model


def outputs(name, model):
    """What a model says to some input, always the same."""
    draw = torch.Generator().manual_seed(7)

    def input_of(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    with torch.no_grad():
        if isinstance(model, (Recogniser, Numbered, HeadElsewhere)):
            return model(input_of(2, 30, BANDS))
        if isinstance(model, (RecipeOnTop, VanillaOnTop)):
            return model(input_of(2, 3000))
        if isinstance(model, WhisperCTC):
            return model(input_of(2, 10, 40))
        if name == "whisper-bare":
            found = model(
                input_features=input_of(2, 10, 40),
                decoder_input_ids=torch.tensor([[1, 2, 3], [2, 4, 5]]),
            )
            states = found.last_hidden_state, found.encoder_last_hidden_state
            return torch.cat([one.flatten() for one in states])
        if name == "whisper":
            words = torch.tensor([[1, 2, 3], [2, 4, 5]])
            found = model(input_features=input_of(2, 10, 40), labels=words)
            return found.logits
        mask = torch.ones(2, 3000, dtype=torch.long)
        mask[1, 2000:] = 0
        found = model(input_of(2, 3000), attention_mask=mask)
        if name == "wav2vec2-bare":
            states = found.last_hidden_state, found.extract_features
            return torch.cat([one.flatten() for one in states])
        if name == "wav2vec2-pretraining":
            return found.projected_states
        return found.logits
