"""What an export would change or leave out is refused, whichever export."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_wav2vec2, tiny_whisper

from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import merge
from speechbrain_merge.cli import main
from speechbrain_merge.export import (
    NotLoadable,
    export_ctc,
    export_ctranslate2,
    export_ggml,
    export_pretrained,
    export_whisper,
)
from speechbrain_merge.weights import (
    attention_heads,
    heads_metadata,
    open_weights,
    write_weights,
)

LABELS = ["<blank>", " ", "a", "b", "c"]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A Whisper of SpeechBrain, its weights, and the folder it is from."""
    hub = tiny_whisper(tmp_path_factory.mktemp("whisper") / "hub", layers=1)
    model = Whisper(hub, hub)
    state = {
        f"whisper.{name}": tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    return model, state, Path(hub)


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    """A wav2vec 2.0 of SpeechBrain, and its weights with a last layer."""
    hub = tiny_wav2vec2(tmp_path_factory.mktemp("ssl") / "hub")
    model = Wav2Vec2(hub, hub)
    state = {
        f"wav2vec2.{name}": tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    head = torch.nn.Linear(16, len(LABELS))
    state.update({f"ctc_lin.{n}": t for n, t in head.state_dict().items()})
    return model, state


@pytest.mark.parametrize(
    "name", ["proj.weight", "whisper.bottleneck.weight", "whisper.bias"]
)
def test_trained_weights_are_not_left_out(whisper, ctc, tmp_path, name):
    model, state, _ = whisper
    with pytest.raises(ValueError, match=f"'{name}' and 0 more tensors"):
        export_whisper({**state, name: torch.ones(3)}, model, tmp_path / "out")
    encoder, state = ctc
    name = name.replace("whisper", "wav2vec2")
    with pytest.raises(ValueError, match=f"'{name}' and 0 more tensors"):
        export_ctc(
            {**state, name: torch.ones(3)}, encoder, LABELS, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_of_transformers_with_more_is_refused(whisper, tmp_path):
    model, state, _ = whisper
    state = {
        name.removeprefix("whisper."): tensor
        for name, tensor in state.items()
        if name.startswith("whisper.model.")
    }
    state["classifier.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match="'classifier.weight'"):
        export_whisper(state, model, tmp_path / "out")


def test_values_that_float16_does_not_hold_are_refused(whisper, ctc, tmp_path):
    """They were stored as infinity."""
    model, state, _ = whisper
    name = "whisper.model.encoder.layers.0.fc1.weight"
    large = {**state, name: torch.full_like(state[name], 1e6)}
    said = "layers.0.fc1.weight' has values up to .*.*float16"
    with pytest.raises(ValueError, match=said):
        export_whisper(large, model, tmp_path / "out", dtype=torch.float16)
    source = export_whisper(
        large, model, tmp_path / "large", dtype=torch.bfloat16
    )
    pytest.importorskip("ctranslate2")
    for kind in ("float16", "int8_float16"):
        with pytest.raises(ValueError, match=said):
            export_ctranslate2(source, tmp_path / "out", kind)
    encoder, state = ctc
    large = {**state, "ctc_lin.bias": torch.full((5,), 1e6)}
    with pytest.raises(ValueError, match="lm_head.bias' has values up to"):
        export_ctc(
            large, encoder, LABELS, tmp_path / "out", dtype=torch.float16
        )
    assert not (tmp_path / "out").exists()


def test_the_number_of_heads_is_kept_and_checked(whisper, tmp_path):
    """Shapes do not tell it: another model was exported."""
    model, state, _ = whisper
    hub = tiny_whisper(tmp_path / "hub", layers=1, heads=4)
    other = Whisper(hub, hub)
    notes = heads_metadata({"whisper": model})
    for name in "ab":
        write_weights(tmp_path / f"{name}.safetensors", state, notes)
    experts = [tmp_path / f"{name}.safetensors" for name in "ab"]
    merged = merge("average", experts, output=tmp_path / "m.safetensors")
    with open_weights(merged) as weights:
        assert set(attention_heads(weights).values()) == {2}
    for source in (experts[0], merged):
        with pytest.raises(ValueError, match="trained with 2 .* has 4"):
            export_whisper(source, other, tmp_path / "out")
    export_whisper(merged, model, tmp_path / "good")
    # what is made again is the same
    for made, copy in (("m.safetensors", "1"), ("good", "2")):
        copy = str(tmp_path / f"{copy}.safetensors")
        made = str(tmp_path / made)
        assert main(["again", made, "-o", copy, "--quiet"]) == 0
    # a mean of both is no model
    write_weights(experts[1], state, heads_metadata({"whisper": other}))
    with pytest.raises(ValueError, match="has 4 attention heads in .* has 2"):
        merge("average", experts, output=tmp_path / "n.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_pretrained_folder_has_the_heads_that_were_trained(tmp_path):
    attention = torch.nn.MultiheadAttention(8, 2)
    state = {f"asr.{n}": t for n, t in attention.state_dict().items()}
    source = tmp_path / "a.safetensors"
    write_weights(source, state, heads_metadata({"asr": attention}))
    yaml = tmp_path / "h.yaml"
    for heads in (2, 4):
        yaml.write_text(
            f"asr: !new:torch.nn.MultiheadAttention [8, {heads}]\n"
            "modules: {asr: !ref <asr>}\n"
            "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
            "    loadables: {asr: !ref <asr>}\n"
        )
        if heads == 2:
            export_pretrained(source, yaml, tmp_path / "good")
    with pytest.raises(NotLoadable, match="trained with 2 .* has 4"):
        export_pretrained(source, yaml, tmp_path / "out")


@pytest.mark.parametrize(
    "file, key, value, said",
    [
        ("preprocessor_config.json", "feature_size", 128, "128 mel bands"),
        ("preprocessor_config.json", "sampling_rate", 8000, "is 8000"),
        ("config.json", "activation_function", "relu", "is relu, .* gelu"),
        ("config.json", "scale_embedding", True, "scale_embedding"),
        ("config.json", "eos_token_id", 7, "for <.endoftext.>, .* has 7"),
        ("config.json", "vocab_size", None, "1903 tokens, .* 1805"),
        ("generation_config.json", "no_timestamps_token_id", 9, "has 9"),
    ],
)
def test_files_of_two_models_are_not_converted(
    whisper, tmp_path, file, key, value, said
):
    folder = tmp_path / "whisper"
    shutil.copytree(whisper[2], folder)
    if value is None:  # the tokenizer of a multilingual one
        hub = tiny_whisper(tmp_path / "hub", layers=1, multilingual=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(hub) / name, folder / name)
    else:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError, match=f"cannot be converted: .*{said}"):
        export_ggml(folder, tmp_path / "out")
    if key in ("feature_size", "eos_token_id", "vocab_size"):
        pytest.importorskip("ctranslate2")
        with pytest.raises(ValueError, match=f"cannot be converted: .*{said}"):
            export_ctranslate2(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value", [("encoder_layers", 10**6), ("d_model", 2**16)]
)
def test_a_configuration_of_another_size_is_refused(
    whisper, tmp_path, capsys, key, value
):
    """Before a model is laid out as it says."""
    _, state, hub = whisper
    write_weights(tmp_path / "m.safetensors", state)
    shutil.copytree(hub, tmp_path / "hub")
    path = tmp_path / "hub" / "config.json"
    config = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps(config))
    begun = time.process_time()
    line = f"export whisper {tmp_path}/m.safetensors --whisper {path.parent}"
    assert main([*line.split(), "-o", str(tmp_path / "out")]) == 2
    assert time.process_time() - begun < 10
    assert "its config.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"cache_implementation": [1]}'])
def test_a_damaged_generation_configuration_is_named(
    whisper, tmp_path, capsys, content
):
    _, state, hub = whisper
    write_weights(tmp_path / "m.safetensors", state)
    shutil.copytree(hub, tmp_path / "hub")
    (tmp_path / "hub" / "generation_config.json").write_text(content)
    line = f"export whisper {tmp_path}/m.safetensors --whisper {tmp_path}/hub"
    assert main([*line.split(), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"generation_config.json of {tmp_path}/hub cannot be" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["whisper", "ctc", "ctranslate2", "ggml"])
def test_a_link_in_the_place_of_an_export_is_refused(
    whisper, ctc, tmp_path, kind
):
    model, state, hub = whisper
    encoder, trained = ctc
    export = {
        "whisper": lambda folder: export_whisper(state, model, folder),
        "ctc": lambda folder: export_ctc(trained, encoder, LABELS, folder),
        "ctranslate2": lambda folder: export_ctranslate2(hub, folder),
        "ggml": lambda folder: export_ggml(hub, folder),
    }[kind]
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        link = tmp_path / f"to-{name}"
        link.symlink_to(tmp_path / name)
        with pytest.raises(FileExistsError, match=f"to-{name} is a .* link"):
            export(link)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "empty",
        "to-empty",
        "to-nowhere",
    ]
