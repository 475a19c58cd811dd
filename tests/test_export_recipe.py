"""Conformers and transducers, with the YAML for inference written."""

import json
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file
from tiny_models import make_speech

from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.transducer import (
    TransducerBeamSearcher,
    TransducerGreedySearcherStreamingContext,
)
from speechbrain.inference.ASR import (
    EncoderASR,
    EncoderDecoderASR,
    StreamingASR,
)
from speechbrain.lobes.features import StreamingFeatureWrapper
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.nnet.containers import LengthsCapableSequential
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from speechbrain.utils.filter_analysis import stack_filter_properties
from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.export import NotLoadable, export_recipe
from speechbrain_merge.weights import open_weights

LABELS = ["<blank>", *"abcdefghijk"]

# As in recipes/LibriSpeech/ASR of SpeechBrain, but tiny
FRONT = """\
data_folder: !PLACEHOLDER
output_folder: !ref <data_folder>/results
save_folder: !ref <output_folder>/save
sample_rate: 16000
n_mels: 40
d_model: 16
output_neurons: 12
blank_index: 0
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_fft: 400
    n_mels: !ref <n_mels>
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    update_until_epoch: 4
time_drop: !new:speechbrain.augment.freq_domain.SpectrogramDrop
    drop_length_low: 2
CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: (8, 10, 40)
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (8, 4)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 40
    tgt_vocab: !ref <output_neurons>
    d_model: !ref <d_model>
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: DECODER_LAYERS
    d_ffn: 32
    activation: !name:torch.nn.GELU
    encoder_module: conformer
    attention_type: RelPosMHAXL
    kernel_size: 3
    normalize_before: True
    causal: False
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <d_model>
    n_neurons: !ref <output_neurons>
"""
END = """\
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !ref <save_folder>
    recoverables:
        model: !ref <asr>
        normalizer: !ref <normalize>
"""
CTC = (
    FRONT.replace("DECODER_LAYERS", "0")
    + """\
asr: !new:torch.nn.ModuleList
    - [!ref <CNN>, !ref <Transformer>, !ref <ctc_lin>]
"""
    + END
)
ATTENTION = (
    FRONT.replace("DECODER_LAYERS", "1")
    + """\
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <d_model>
    n_neurons: !ref <output_neurons>
scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
    full_scorers:
        - !new:speechbrain.decoders.scorer.CTCScorer
            eos_index: 2
            blank_index: !ref <blank_index>
            ctc_fc: !ref <ctc_lin>
    weights:
        ctc: 0.4
test_search: !new:speechbrain.decoders.S2STransformerBeamSearcher
    modules: [!ref <Transformer>, !ref <seq_lin>]
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 0.5
    beam_size: 3
    using_eos_threshold: False
    length_normalization: True
    scorer: !ref <scorer>
asr: !new:torch.nn.ModuleList
    - [!ref <CNN>, !ref <Transformer>, !ref <seq_lin>, !ref <ctc_lin>]
"""
    + END
)
TRANSDUCER = (
    FRONT.replace("DECODER_LAYERS", "0")
    + """\
enc: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
    transformer: !ref <Transformer>
proj_enc: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <d_model>
    n_neurons: 16
    bias: False
proj_dec: !new:speechbrain.nnet.linear.Linear
    input_size: 8
    n_neurons: 16
    bias: False
emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: !ref <output_neurons>
    consider_as_one_hot: True
    blank_id: !ref <blank_index>
dec: !new:speechbrain.nnet.RNN.LSTM
    input_shape: [null, null, !ref <output_neurons> - 1]
    hidden_size: 8
    num_layers: 1
Tjoint: !new:speechbrain.nnet.transducer.transducer_joint.Transducer_joint
    joint: sum
    nonlinearity: !name:torch.nn.GELU
transducer_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: !ref <output_neurons>
    bias: False
Greedysearcher: !new:speechbrain.decoders.transducer.TransducerBeamSearcher
    decode_network_lst: [!ref <emb>, !ref <dec>, !ref <proj_dec>]
    tjoint: !ref <Tjoint>
    classifier_network: [!ref <transducer_lin>]
    blank_id: !ref <blank_index>
    beam_size: 1
    nbest: 1
asr: !new:torch.nn.ModuleList
    - - !ref <CNN>
      - !ref <enc>
      - !ref <emb>
      - !ref <dec>
      - !ref <proj_enc>
      - !ref <proj_dec>
      - !ref <transducer_lin>
"""
    + END
)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model of twelve pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    text = folder / "text.txt"
    text.write_text("\n".join(["abc def", "gh ab", "hgf edc"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=len(LABELS),
        model_type="char",  # eight letters, a space, and three of its own
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    return folder / "tokenizer.model"


class Trained:
    """A recipe's YAML and objects, with merged weights, and a clip."""

    def __init__(self, text, folder):
        self.yaml = folder / "hyperparams.yaml"
        self.yaml.write_text(text.replace("!PLACEHOLDER", str(folder)))
        torch.manual_seed(0)
        with open(self.yaml) as stream:
            self.hparams = load_hyperpyyaml(stream)
        asr = self.hparams["asr"].eval()
        experts = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            experts.append(
                {
                    f"model.{name}": tensor
                    + 0.5 * torch.randn(tensor.shape, generator=generator)
                    if tensor.is_floating_point()
                    else tensor
                    for name, tensor in asr.state_dict().items()
                }
            )
        for state in experts:
            for name in state:
                if "running_var" in name:
                    state[name] = state[name].abs() + 0.1
        self.weights = merge(
            "average",
            experts,
            output=folder / "merged.safetensors",
            same_base=False,  # drawn apart
        )
        with open_weights(self.weights, recoverable="model") as weights:
            asr.load_state_dict(dict(weights), strict=True)
        make_speech(folder, 1)
        (wav,) = folder.glob("*.wav")
        self.wav = str(wav)
        # a training's statistics, as its checkpoint keeps them
        normalize = self.hparams["normalize"]
        features = self.hparams["compute_features"](self.signal())
        normalize.train()
        normalize(features, torch.ones(1), epoch=0)
        normalize.eval()
        self.normalizer = folder / "normalizer.ckpt"
        normalize._save(self.normalizer)

    def signal(self):
        return read_audio(self.wav).unsqueeze(0)

    @torch.no_grad()
    def encoded(self):
        """What the recipe's encoder makes of the clip."""
        hparams = self.hparams
        features = hparams["compute_features"](self.signal())
        features = hparams["normalize"](features, torch.ones(1), epoch=9)
        front = hparams["CNN"](features)
        return hparams["Transformer"].encode(front, torch.ones(1))

    def adapt(self):
        """Trains LoRA on, so to say: what is exported has its factors."""
        plain = self.encoded()
        adapted = AdaptedModel(
            self.hparams["Transformer"],
            LoRA,
            target_layers=["*.ffn.[03]", "*.mha_layer.out_proj"],
            adapter_kwargs={"rank": 2, "alpha": 4.0},
        ).eval()
        generator = torch.Generator().manual_seed(3)
        factors = [
            factor
            for name, factor in adapted.named_parameters()
            if "adapter" in name
        ]
        for factor in factors:
            with torch.no_grad():
                factor.copy_(torch.randn(factor.shape, generator=generator))
        assert len(factors) > 4
        assert not torch.allclose(self.encoded(), plain, atol=0.1)
        self.weights = torch.nn.ModuleDict({"model": self.hparams["asr"]})

    def tie(self):
        """One tensor for the words that go in, and for those that come out."""
        words = self.hparams["Transformer"].custom_tgt_module.layers[0].emb
        words.Embedding.weight = self.hparams["seq_lin"].w.weight
        self.weights = torch.nn.ModuleDict({"model": self.hparams["asr"]})

    def export(self, folder, **more):
        exported = export_recipe(
            self.weights,
            self.yaml,
            folder / "exported",
            files={"normalize": self.normalizer},
            **more,
        )
        moved = exported.rename(folder / "moved")
        # nor the place of the tokenizer's training text, beside the folder
        for path in moved.rglob("*"):
            assert str(folder.parent).encode() not in path.read_bytes(), path
        with pytest.raises(Exception, match="pickle|Unpickling|Weights only"):
            torch.load(moved / "asr.ckpt", weights_only=True)
        return str(moved)


CHAIN = ["compute_features", "normalize", "CNN"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "lora"])
def test_ctc(tmp_path, dtype):
    trained = Trained(CTC, tmp_path)
    if dtype == "lora":
        dtype = trained.adapt()
    folder = trained.export(
        tmp_path,
        interface="EncoderASR",
        encoder=[*CHAIN, "Transformer", "ctc_lin"],
        tokenizer=LABELS,
        dtype=dtype,
    )
    if dtype is not None:
        rounded = trained.hparams["asr"].to(dtype).float()
        assert next(rounded.parameters()).dtype == torch.float32
    with torch.no_grad():
        logits = trained.hparams["ctc_lin"](trained.encoded())
    (found,) = ctc_greedy_decode(
        logits.log_softmax(-1), torch.ones(1), blank_id=0
    )
    expected = "".join(LABELS[label] for label in found)
    asr = EncoderASR.from_hparams(folder)
    assert asr.transcribe_file(trained.wav) == expected
    assert len(expected) > 3
    # elsewhere collected, and under the name of its own
    asr = EncoderASR.from_hparams(folder, savedir=str(tmp_path / "links"))
    assert asr.transcribe_file(trained.wav) == expected


def test_the_yaml_of_a_recipe(tmp_path):
    """recipes/SpeechDomains has its wrapper of the encoder, and settings."""
    recipe = Path(__file__).parents[1] / "recipes/SpeechDomains/ASR/conformer"
    yaml = recipe / "hparams" / "train.yaml"
    overrides = {"data_folder": str(tmp_path), "num_encoder_layers": 1}
    overrides["results_folder"] = str(tmp_path / "results")
    with open(yaml) as stream:
        hparams = load_hyperpyyaml(stream, overrides)
    weights = {
        f"{module}.{name}": tensor
        for module in ("CNN", "Transformer", "ctc_lin")
        for name, tensor in hparams[module].eval().state_dict().items()
    }
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    signal = read_audio(str(wav)).unsqueeze(0)
    normalize = hparams["normalize"]
    features = hparams["compute_features"](signal)
    features = normalize(features, torch.ones(1), epoch=0)
    normalize._save(tmp_path / "normalizer.ckpt")
    labels = ["<blank>", *hparams["characters"]]
    folder = export_recipe(
        weights,
        yaml,
        tmp_path / "exported",
        "EncoderASR",
        [*CHAIN, "encoder", "ctc_lin"],
        labels,
        files={"normalize": tmp_path / "normalizer.ckpt"},
        overrides=overrides,
    )
    text = (folder / "hyperparams.yaml").read_text()
    for name in ("optimizer", "fea_augment", "pool", str(tmp_path)):
        assert name not in text
    with torch.no_grad():
        encoded = hparams["encoder"](hparams["CNN"](features), torch.ones(1))
        scores = hparams["ctc_lin"](encoded).log_softmax(-1)
    (found,) = ctc_greedy_decode(scores, torch.ones(1), blank_id=0)
    expected = "".join(labels[label] for label in found)
    asr = EncoderASR.from_hparams(str(folder))
    assert asr.transcribe_file(str(wav)) == expected != ""


@pytest.mark.parametrize("kind", ["plain", "lora", "tied", "twice"])
def test_attention(tmp_path, pieces, kind):
    text = ATTENTION
    if kind == "twice":  # two names in the YAML itself, too
        text = text.replace("<ctc_lin>]\n", "<ctc_lin>, !ref <Transformer>]\n")
    trained = Trained(text, tmp_path)
    if kind == "lora":
        trained.adapt()
    elif kind == "tied":
        trained.tie()
    elif kind == "twice":
        trained.weights = torch.nn.ModuleDict({"model": trained.hparams["asr"]})
    folder = trained.export(
        tmp_path,
        interface="EncoderDecoderASR",
        encoder=[*CHAIN, "Transformer"],
        decoder="test_search",
        tokenizer=pieces,
    )
    with torch.no_grad():
        tokens, *_ = trained.hparams["test_search"](
            trained.encoded(), torch.ones(1)
        )
    stored = load_file(Path(folder) / "asr.ckpt")
    assert "1.custom_tgt_module.layers.0.emb.Embedding.weight" in stored
    assert not any(name.startswith("4.") for name in stored)
    assert not any(name.startswith("4.") for name in stored)
    tokenizer = sentencepiece.SentencePieceProcessor(str(pieces))
    asr = EncoderDecoderASR.from_hparams(folder)
    words, found = asr.transcribe_batch(trained.signal(), torch.ones(1))
    assert found == tokens and len(tokens[0]) > 3
    text = asr.transcribe_file(trained.wav)
    assert text == words[0] == tokenizer.decode_ids(tokens[0])


@pytest.mark.parametrize("lora", [False, True])
def test_transducer(tmp_path, pieces, lora):
    trained = Trained(TRANSDUCER, tmp_path)
    if lora:
        trained.adapt()
    folder = trained.export(
        tmp_path,
        interface="StreamingASR",
        encoder=[*CHAIN, "enc", "proj_enc"],
        decoder="Greedysearcher",
        tokenizer=pieces,
    )
    with torch.no_grad():
        encoded = trained.hparams["proj_enc"](trained.encoded())
        tokens, *_ = trained.hparams["Greedysearcher"](encoded)
    tokenizer = sentencepiece.SentencePieceProcessor(str(pieces))
    asr = EncoderDecoderASR.from_hparams(folder)
    _, found = asr.transcribe_batch(trained.signal(), torch.ones(1))
    assert found == tokens and len(tokens[0]) > 3
    text = asr.transcribe_file(trained.wav)
    assert text == tokenizer.decode_ids(tokens[0])
    # The same of the recipe's own objects, chunk by chunk
    own = trained.hparams
    features = StreamingFeatureWrapper(
        module=LengthsCapableSequential(
            own["compute_features"], own["normalize"], own["CNN"]
        ),
        properties=stack_filter_properties(
            [own["compute_features"], own["CNN"]]
        ),
    )
    chunks = DynChunkTrainConfig(8, 2)
    reference = StreamingASR(
        modules={"enc": own["enc"], "proj_enc": own["proj_enc"]},
        hparams={
            "fea_streaming_extractor": features,
            "make_decoder_streaming_context": (
                TransducerGreedySearcherStreamingContext
            ),
            "decoding_function": partial(
                TransducerBeamSearcher.transducer_greedy_decode_streaming,
                own["Greedysearcher"],
            ),
            "make_tokenizer_streaming_context": list,
            "tokenizer": tokenizer,
            "tokenizer_decode_streaming": lambda _, tokens, seen: (
                seen.extend(tokens),
                "",
            )[1],
        },
    )
    streaming = StreamingASR.from_hparams(folder)
    length = streaming.get_chunk_size_frames(chunks)
    contexts = [
        each.make_streaming_context(chunks) for each in (streaming, reference)
    ]
    text = ""
    wave = trained.signal()
    for chunk in wave.split(length, dim=1):
        text += streaming.transcribe_chunk(contexts[0], chunk)[0]
        reference.transcribe_chunk(contexts[1], chunk)
    (heard,) = contexts[1].tokenizer_context
    assert text == tokenizer.decode_ids(heard) and len(heard) > 3
    assert wave.shape[1] > 3 * length
    # A word that begins a chunk keeps the space before it
    tokens = tokenizer.encode("abc def gh")
    for split in range(len(tokens) + 1):
        context = streaming.hparams.make_tokenizer_streaming_context()
        parts = [
            streaming.hparams.tokenizer_decode_streaming(
                tokenizer, part, context
            )
            for part in (tokens[:split], [], tokens[split:])
        ]
        assert "".join(parts) == "abc def gh"
    assert (
        text
        == streaming.transcribe_file(trained.wav, chunks, False)[: len(text)]
    )


def exported_twice(trained, folder, options, **wanted):
    """The files that the command writes, and those that the function does."""
    normalizer = trained.normalizer
    command = ["export", "recipe", trained.weights, "--hparams", trained.yaml]
    command += ["--file", f"normalize={normalizer}", "-o", folder / "model"]
    for name, value in options.items():
        command += [f"--{name}", value]
    assert main([*map(str, command), "--json"]) == 0
    files = {"normalize": normalizer}
    folders = folder / "model", folder / "other" / "model"
    folders[1].parent.mkdir()
    export_recipe(
        trained.weights, trained.yaml, folders[1], files=files, **wanted
    )
    return [
        {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
        for folder in folders
    ]


def test_the_command_does_what_the_function_does(tmp_path, capsys):
    trained = Trained(CTC, tmp_path)
    encoder = CTCTextEncoder()
    encoder.update_from_iterable(LABELS, sequence_input=False)
    encoder.save(tmp_path / "label_encoder.txt")
    found, expected = exported_twice(
        trained,
        tmp_path,
        {
            "interface": "EncoderASR",
            "encoder": ",".join([*CHAIN, "Transformer", "ctc_lin"]),
            "tokenizer": tmp_path / "label_encoder.txt",
            "dtype": "bfloat16",
            "overrides": "{n_mels: 40}",
        },
        interface="EncoderASR",
        encoder=[*CHAIN, "Transformer", "ctc_lin"],
        tokenizer=tmp_path / "label_encoder.txt",
        dtype=torch.bfloat16,
    )
    assert found == expected
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == {n: len(found[n]) for n in sorted(found)}
    assert printed["card"] == str(tmp_path / "model" / "README.md")
    assert "A merge of 2 models by `average`" in found["README.md"].decode()


def test_the_command_exports_transducers(tmp_path, pieces, capsys):
    trained = Trained(TRANSDUCER, tmp_path)
    found, expected = exported_twice(
        trained,
        tmp_path,
        {
            "interface": "StreamingASR",
            "encoder": ",".join([*CHAIN, "enc", "proj_enc"]),
            "decoder": "Greedysearcher",
            "tokenizer": pieces,
        },
        interface="StreamingASR",
        encoder=[*CHAIN, "enc", "proj_enc"],
        decoder="Greedysearcher",
        tokenizer=pieces,
    )
    assert found == expected and "asr.ckpt" in found


def test_what_is_not_loaded_is_refused(tmp_path):
    trained = Trained(CTC, tmp_path)
    wanted = {
        "interface": "EncoderASR",
        "encoder": [*CHAIN, "Transformer", "ctc_lin"],
        "tokenizer": LABELS,
    }
    folder = tmp_path / "exported"
    with pytest.raises(NotLoadable, match="normalizer.ckpt"):
        export_recipe(trained.weights, trained.yaml, folder, **wanted)
    text = trained.yaml.read_text()
    trained.yaml.write_text(
        text.replace(", !ref <ctc_lin>]", "]")
        + "modules: {ctc_lin: !ref <ctc_lin>}\n"
    )
    with open_weights(trained.weights) as weights:
        state = {n: weights[n] for n in weights if n[:8] != "model.2."}
    with pytest.raises(NotLoadable, match="ctc_lin.w.weight' takes part"):
        export_recipe(
            state,
            trained.yaml,
            folder,
            files={"normalize": trained.normalizer},
            **wanted,
        )
    assert not folder.exists()


def as_trained(trained):
    """What exports the CTC model as it was trained."""
    return {
        "interface": "EncoderASR",
        "encoder": [*CHAIN, "Transformer", "ctc_lin"],
        "tokenizer": LABELS,
        "files": {"normalize": trained.normalizer},
    }


def test_wrong_input(tmp_path):
    trained = Trained(CTC, tmp_path)
    wanted = as_trained(trained)
    folder = tmp_path / "exported"
    for changed, message in (
        ({"interface": "WhisperASR"}, "expected one of EncoderASR"),
        ({"decoder": "x"}, "EncoderASR needs no `decoder`"),
        ({"interface": "StreamingASR"}, "needs `decoder`"),
        ({"encoder": ["nothing"]}, "no key 'nothing' to export; it has CNN"),
    ):
        with pytest.raises(ValueError, match=message):
            export_recipe(
                trained.weights, trained.yaml, folder, **{**wanted, **changed}
            )
    with pytest.raises(ValueError, match="a module 'other'"):
        export_recipe(
            {"other.w": torch.ones(1)}, trained.yaml, folder, **wanted
        )
    assert not folder.exists()
    folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exported is a .* link"):
        export_recipe(trained.weights, trained.yaml, folder, **wanted)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"tokenizer": LABELS[:7]}, "has 12 labels, and the tokenizer 7"),
        ({"tokenizer": [*LABELS, "l"]}, "has 12 labels, and the tokenizer 13"),
        (
            {"tokenizer": [*LABELS[1:], LABELS[0]]},
            "'<blank>' as label 11, and blank_index is 0",
        ),
        ({"blank_index": 3}, "is 3, and the YAML has `blank_index: 0`"),
        (
            {"encoder": ["compute_features", "CNN", "Transformer", "ctc_lin"]},
            "normalised by 'normalize'.*put 'normalize' in its place",
        ),
        ({"files": {"model": "a.ckpt"}}, "no key 'model'"),
        ({"files": {"asr": "a.ckpt"}}, "'asr', which has merged weights"),
    ],
)
def test_what_is_not_as_it_was_trained_is_refused(tmp_path, changed, message):
    trained = Trained(CTC, tmp_path)
    wanted = as_trained(trained)
    folder = tmp_path / "exported"
    with pytest.raises(ValueError, match=message):
        export_recipe(
            trained.weights, trained.yaml, folder, **{**wanted, **changed}
        )
    assert not folder.exists()


@pytest.mark.parametrize(
    "text, encoder, decoder",
    [
        (ATTENTION, ["Transformer"], "test_search"),
        (TRANSDUCER, ["enc", "proj_enc"], "Greedysearcher"),
    ],
)
def test_a_search_with_another_tokenizer(
    tmp_path, pieces, text, encoder, decoder
):
    trained = Trained(
        text.replace("output_neurons: 12", "output_neurons: 14"), tmp_path
    )
    with pytest.raises(NotLoadable, match="14 labels, and the tokenizer 12"):
        export_recipe(
            trained.weights,
            trained.yaml,
            tmp_path / "exported",
            interface="EncoderDecoderASR",
            encoder=[*CHAIN, *encoder],
            decoder=decoder,
            tokenizer=pieces,
            files={"normalize": trained.normalizer},
        )
    assert not (tmp_path / "exported").exists()
