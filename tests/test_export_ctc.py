"""CTC models of SpeechBrain, as transformers and EncoderASR load them."""

import json

import pytest
import torch
from tiny_models import make_speech, tiny_hubert, tiny_wav2vec2, tiny_wavlm
from transformers import AutoModelForCTC, Wav2Vec2Processor

from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from speechbrain.integrations.huggingface.hubert import HuBERT
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.wavlm import WavLM
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.nnet.linear import Linear
from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.command.exporting import read_labels
from speechbrain_merge.export import NotLoadable, export_ctc
from speechbrain_merge.export.loading import check_ctc
from speechbrain_merge.weights import IncompatibleWeights, open_weights

LABELS = ["<blank>", " ", "a", "b", "(c)", "1", "é", "'"]

FAMILIES = {
    "Wav2Vec2ForCTC": (Wav2Vec2, tiny_wav2vec2),
    "HubertForCTC": (HuBERT, tiny_hubert),
    "WavLMForCTC": (WavLM, tiny_wavlm),
}


def expert(encoder, head, seed):
    """The weights of both, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.{name}": tensor
        + 0.3 * torch.randn(tensor.shape, generator=generator)
        for module, of in (("wav2vec2", encoder), ("ctc_lin", head))
        for name, tensor in of.state_dict().items()
    }


@pytest.fixture(params=FAMILIES)
def merged(request, tmp_path):
    """Class in transformers, merged weights, modules with them, a clip."""
    wrapper, tiny = FAMILIES[request.param]
    hub = tiny(tmp_path / "hub")
    encoder = wrapper(hub, hub).eval()
    head = Linear(input_size=16, n_neurons=len(LABELS))
    path = merge(
        "average",
        [expert(encoder, head, seed) for seed in (1, 2)],
        output=tmp_path / "merged.safetensors",
        same_base=False,  # drawn apart
    )
    for name, module in (("wav2vec2", encoder), ("ctc_lin", head)):
        with open_weights(path, recoverable=name) as weights:
            module.load_state_dict(dict(weights), strict=True)
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    return request.param, path, wrapper(hub, hub), (encoder, head), wav


def recipe_text(encoder, head, wav):
    """What a recipe makes of a clip."""
    with torch.no_grad():
        signal = read_audio(str(wav)).unsqueeze(0)
        probabilities = head(encoder(signal, torch.ones(1))).log_softmax(-1)
    (labels,) = ctc_greedy_decode(probabilities, torch.ones(1), blank_id=0)
    return "".join(LABELS[label] for label in labels)


def heard_by_transformers(folder, wav):
    processor = Wav2Vec2Processor.from_pretrained(folder)
    inputs = processor(
        read_audio(str(wav)).numpy(), sampling_rate=16000, return_tensors="pt"
    )
    model = AutoModelForCTC.from_pretrained(folder).float().eval()
    with torch.no_grad():
        best = model(inputs.input_values).logits.argmax(-1)
    return model, processor.batch_decode(best)[0]


def test_all_doors_give_the_text_of_the_recipe(merged, tmp_path):
    kind, path, fresh, modules, wav = merged
    encoder = CTCTextEncoder()
    encoder.update_from_iterable(LABELS, sequence_input=False)
    exported = export_ctc(path, fresh, encoder.ind2lab, tmp_path / "exported")
    moved = exported.rename(tmp_path / "moved")
    for file in moved.rglob("*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    expected = recipe_text(*modules, wav)
    assert len(expected) > 3
    asr = EncoderASR.from_hparams(str(moved))
    assert asr.transcribe_file(str(wav)) == expected
    model, text = heard_by_transformers(moved, wav)
    assert type(model).__name__ == kind
    assert text.split() == expected.split()
    # and a recipe starts from it
    again = type(fresh)(str(moved), str(moved))
    for name, tensor in modules[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_command_does_what_the_function_does(merged, tmp_path):
    _, path, fresh, _, _ = merged
    encoder = CTCTextEncoder()
    encoder.update_from_iterable(LABELS, sequence_input=False)
    encoder.save(tmp_path / "label_encoder.txt")
    command = ["export", "ctc", path, "--ssl", tmp_path / "hub"]
    command += ["--labels", tmp_path / "label_encoder.txt"]
    command += ["--dtype", "float16", "--max_shard_size", "20KB"]
    assert main([*map(str, command), "-o", str(tmp_path / "model")]) == 0
    (tmp_path / "other").mkdir()
    export_ctc(
        path,
        fresh,
        LABELS,
        tmp_path / "other" / "model",
        dtype=torch.float16,
        max_shard_size="20KB",
    )
    found, expected = (
        {file.name: file.read_bytes() for file in folder.glob("[!.]*")}
        for folder in (tmp_path / "model", tmp_path / "other" / "model")
    )
    assert found == expected
    assert len([name for name in found if name.startswith("model-")]) > 1
    # the labels are in the export, too
    vocabulary = tmp_path / "model" / "vocab.json"
    assert read_labels(vocabulary) == (list(LABELS), 0)
    command[command.index("--labels") + 1] = vocabulary
    again = tmp_path / "again" / "model"
    assert main([*map(str, command), "-o", str(again)]) == 0
    assert (again / "vocab.json").read_bytes() == vocabulary.read_bytes()


def test_half_precision_in_shards(tmp_path):
    hub = tiny_wav2vec2(tmp_path / "hub")
    encoder, head = Wav2Vec2(hub, hub).eval(), torch.nn.Linear(16, len(LABELS))
    folder = export_ctc(
        expert(encoder, head, 1),
        encoder,
        LABELS,
        tmp_path / "exported",
        dtype=torch.bfloat16,
        max_shard_size="20KB",
    )
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    found = AutoModelForCTC.from_pretrained(folder).state_dict()
    for name, tensor in expert(encoder, head, 1).items():
        module, _, name = name.partition(".")
        at = "lm_head" if module == "ctc_lin" else "wav2vec2"
        stored = found[f"{at}.{name.removeprefix('model.')}"]
        assert torch.equal(stored, tensor.bfloat16().to(stored.dtype)), name
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    asr = EncoderASR.from_hparams(str(folder))
    text = heard_by_transformers(folder, wav)[1]
    assert asr.transcribe_file(str(wav)).split() == text.split() != []


@pytest.mark.parametrize("kind", FAMILIES)
def test_adapters_are_folded(kind, tmp_path):
    wrapper, tiny = FAMILIES[kind]
    hub = tiny(tmp_path / "hub")
    fresh = wrapper(hub, hub).eval()
    head = Linear(input_size=16, n_neurons=len(LABELS))
    layers = ["*_dense"]
    if kind != "WavLMForCTC":  # which reads these weights past their modules
        layers.append("*.attention.?_proj")
    adapted = AdaptedModel(
        wrapper(hub, hub),
        LoRA,
        target_layers=layers,
        adapter_kwargs={"rank": 2, "alpha": 2.0},
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "adapter" in name:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.5 * drawn)
    whole = torch.nn.ModuleDict({"wav2vec2": adapted, "ctc_lin": head})
    folder = export_ctc(whole, fresh, LABELS, tmp_path / "exported")
    folder = folder.rename(tmp_path / "moved")
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    text = recipe_text(adapted.adapted_model, head, wav)
    assert len(text) > 3
    asr = EncoderASR.from_hparams(str(folder))
    assert asr.transcribe_file(str(wav)) == text
    model, heard = heard_by_transformers(folder, wav)
    assert heard.split() == text.split()
    with torch.no_grad():
        wave = read_audio(str(wav)).unsqueeze(0)
        wave = torch.nn.functional.layer_norm(wave, wave.shape[1:])
        expected = head(adapted.adapted_model.model(wave).last_hidden_state)
        plain = head(fresh.model(wave).last_hidden_state)
        found = model(wave).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_wrong_input(tmp_path):
    hub = tiny_wav2vec2(tmp_path / "hub")
    encoder, head = Wav2Vec2(hub, hub), torch.nn.Linear(16, len(LABELS))
    state = expert(encoder, head, 1)
    folder = tmp_path / "exported"
    between = {**state, "enc.w.weight": torch.zeros(16, 16)}
    for weights, labels, message in (
        (state, LABELS[:-1], "8 outputs, and there are 7 labels"),
        (state, ["a"] * 8, "each of them once"),
        (state, dict(enumerate(LABELS, 1)), "no label of output 0"),
        (between, LABELS, "'enc.w.weight'.*nothing between the encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            export_ctc(weights, encoder, labels, folder)
    wide = {**state, "ctc_lin.weight": torch.zeros(len(LABELS), 3)}
    with pytest.raises(IncompatibleWeights, match="'ctc_lin'.*\n.*shape"):
        export_ctc(wide, encoder, LABELS, folder)
    with pytest.raises(ValueError, match="blank_index is 8"):
        export_ctc(state, encoder, LABELS, folder, blank_index=8)
    normed = Wav2Vec2(hub, hub, output_norm=True)
    with pytest.raises(ValueError, match="output_norm"):
        export_ctc(state, normed, LABELS, folder)
    with pytest.raises(ValueError, match="Linear: expected SpeechBrain's"):
        export_ctc(state, head, LABELS, folder)
    assert [each.name for each in tmp_path.iterdir()] == ["hub"]


def test_two_labels_that_are_as_probable(tmp_path):
    """Both libraries scale a wave, and not by exactly the same number."""
    hub = tiny_wav2vec2(
        tmp_path / "hub",
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
    )
    encoder = Wav2Vec2(hub, hub).eval()
    torch.manual_seed(0)
    head = Linear(input_size=16, n_neurons=len(LABELS))
    state = expert(encoder, head, 3)
    folder = export_ctc(state, encoder, LABELS, tmp_path / "exported")
    # What is really different is still found
    vocabulary = folder / "vocab.json"
    known = json.loads(vocabulary.read_text())
    turned = dict(zip(known, reversed(known.values())))
    vocabulary.write_text(json.dumps(turned))
    with pytest.raises(NotLoadable, match="where transformers hears"):
        check_ctc(folder, {})
