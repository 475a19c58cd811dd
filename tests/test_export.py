"""Exports: what was merged comes out of every door, to the bit."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sandbox import run_in_sandbox
from tiny_models import make_speech, tiny_wav2vec2, tiny_whisper

from speechbrain.dataio.dataio import read_audio
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from speechbrain.inference.ASR import EncoderASR, WhisperASR
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import merge
from speechbrain_merge.export import (
    NotLoadable,
    export_pretrained,
    export_whisper,
)
from speechbrain_merge.weights import open_weights

ENCODER_ASR = """\
wav2vec2: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
    source: {hub}
    save_path: {hub}
ctc_lin: !new:torch.nn.Linear
    in_features: 16
    out_features: 5
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    wav2vec2: !ref <wav2vec2>
    ctc_lin: !ref <ctc_lin>
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True
tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
decoding_function: !name:speechbrain.decoders.ctc.ctc_greedy_decode
    blank_id: 0
modules:
    encoder: !ref <encoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        wav2vec2: !ref <wav2vec2>
        ctc_lin: !ref <ctc_lin>
        tokenizer: !ref <tokenizer>
"""


def perturbed(module, seed, noise=0.1):
    """The module's weights and some noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + noise * torch.randn(tensor.shape, generator=generator)
        for name, tensor in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def merged_whisper(tmp_path_factory):
    """A Whisper with merged weights, their file, and the folder it is from."""
    folder = tmp_path_factory.mktemp("whisper")
    hub = tiny_whisper(folder / "hub", multilingual=True, layers=1)
    whisper = Whisper(hub, hub + "/cache", language="french").eval()
    experts = []
    for seed in (1, 2):
        state = perturbed(whisper, seed)
        state["_mel_filters"] = whisper.state_dict()["_mel_filters"]
        experts.append({f"whisper.{n}": t for n, t in state.items()})
    path = merge(
        "average",
        experts,
        output=folder / "merged.safetensors",
        same_base=False,  # drawn apart
    )
    with open_weights(path, recoverable="whisper") as weights:
        whisper.load_state_dict(dict(weights), strict=True)
    return whisper, path, hub


@pytest.fixture(scope="module")
def exported(merged_whisper, tmp_path_factory):
    """The folder that everything opens."""
    whisper, path, hub = merged_whisper
    fresh = Whisper(hub, hub + "/cache", language="french")
    before = {name: t.clone() for name, t in fresh.state_dict().items()}
    folder = tmp_path_factory.mktemp("export") / "whisper"
    assert export_whisper(path, fresh, folder) == folder
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, before[name])
    return folder


def test_speechbrain_transcribes(merged_whisper, exported, tmp_path):
    whisper, _, _ = merged_whisper
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    # One that was moved is loaded from where it is
    before = tmp_path / "before"
    shutil.copytree(exported, before)
    moved = before.rename(tmp_path / "moved")
    decoded = []
    for folder, more in (
        (exported, {"savedir": str(exported)}),
        (moved, {"savedir": str(tmp_path / "links")}),
        (moved, {}),
    ):
        asr = WhisperASR.from_hparams(
            str(folder), overrides={"max_decode_ratio": 0.02}, **more
        )
        assert asr.mods.whisper.language == "french"
        state = asr.mods.whisper.state_dict()
        for name, tensor in whisper.state_dict().items():
            assert torch.equal(state[name], tensor), name
        (segment,) = asr.transcribe_file(str(wav), no_speech_threshold=None)
        decoded.append(segment.tokens)
    searcher = S2SWhisperGreedySearcher(
        whisper, min_decode_ratio=0.0, max_decode_ratio=0.02
    )
    with torch.no_grad():
        mel = whisper._get_mel(read_audio(str(wav)).unsqueeze(0))
        encoded = whisper.forward_encoder(mel)
        (expected,), *_ = searcher(encoded, torch.ones(1))
    assert decoded == [expected] * 3 and len(expected) > 3


def test_an_english_whisper_transcribes(tmp_path):
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    whisper = Whisper(hub, hub).eval()  # no language: it has no token for one
    state = {f"whisper.{n}": t for n, t in whisper.state_dict().items()}
    exported = export_whisper(state, whisper, tmp_path / "exported")
    moved = exported.rename(tmp_path / "moved")
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    asr = WhisperASR.from_hparams(
        str(moved), overrides={"max_decode_ratio": 0.02}
    )
    (segment,) = asr.transcribe_file(str(wav), no_speech_threshold=None)
    searcher = S2SWhisperGreedySearcher(
        whisper, min_decode_ratio=0.0, max_decode_ratio=0.02
    )
    with torch.no_grad():
        mel = whisper._get_mel(read_audio(str(wav)).unsqueeze(0))
        (expected,), *_ = searcher(whisper.forward_encoder(mel), torch.ones(1))
    assert segment.tokens == expected and len(expected) > 3
    words, _ = asr.transcribe_batch(torch.zeros(1, 16000), torch.ones(1))
    assert len(words) == 1


def test_an_export_names_no_place(merged_whisper, exported, tmp_path):
    """What is uploaded says nothing of the machine that it comes from."""
    for path in exported.rglob("*"):
        assert str(exported.parents[1]).encode() not in path.read_bytes(), path


def test_what_does_not_load_is_not_exported(merged_whisper, tmp_path):
    from transformers import WhisperFeatureExtractor

    _, path, hub = merged_whisper
    whisper = Whisper(hub, hub + "/cache", language="french")
    export_whisper(path, whisper, tmp_path / "exported")
    before = (tmp_path / "exported" / "merge.json").read_bytes()
    # Features that the encoder does not take: it shows when it transcribes
    whisper.feature_extractor = WhisperFeatureExtractor(feature_size=40)
    for name in ("exported", "new"):
        with pytest.raises(NotLoadable, match="WhisperASR does not load it"):
            export_whisper(path, whisper, tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["exported"]
    assert (tmp_path / "exported" / "merge.json").read_bytes() == before
    WhisperASR.from_hparams(str(tmp_path / "exported"))


def test_an_untied_whisper_is_exported_as_it_decodes(tmp_path):
    """SpeechBrain's decodes by its embedding, and keeps no output layer."""
    from transformers import WhisperForConditionalGeneration

    hub = tiny_whisper(tmp_path / "hub", layers=1)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    whisper = Whisper(hub, hub)
    assert not whisper.config.tie_word_embeddings
    state = {f"whisper.{n}": t for n, t in whisper.state_dict().items()}
    folder = export_whisper(state, whisper, tmp_path / "exported")
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    embedding = whisper.model.decoder.embed_tokens.weight
    assert torch.equal(model.proj_out.weight, embedding)


def test_lora_is_folded(tmp_path):
    from speechbrain.nnet.adapters import AdaptedModel, LoRA

    hub = tiny_whisper(tmp_path / "hub", layers=1)
    adapted = AdaptedModel(
        Whisper(hub, hub),
        LoRA,
        target_layers=["*.?_proj"],
        adapter_kwargs={"rank": 2, "alpha": 2.0},
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "adapter" in name:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * drawn)
    source = torch.nn.ModuleDict({"whisper": adapted})
    folder = export_whisper(source, Whisper(hub, hub), tmp_path / "exported")
    asr = WhisperASR.from_hparams(str(folder))
    wave = torch.randn(1, 16000, generator=generator)
    start = torch.tensor([[asr.mods.whisper.bos] * 3])
    with torch.no_grad():
        expected = adapted.adapted_model(wave, start)[1]
        plain = Whisper(hub, hub).eval()(wave, start)[1]
        found = asr.mods.whisper(wave, start)[1]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_shards_of_half_precision(merged_whisper, tmp_path):
    whisper, path, hub = merged_whisper
    folder = export_whisper(
        path,
        Whisper(hub, hub + "/cache", language="french"),
        tmp_path / "exported",
        dtype=torch.float16,
        max_shard_size="500KB",
    )
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    asr = WhisperASR.from_hparams(str(folder))
    found = asr.mods.whisper.model.state_dict()
    for name, tensor in whisper.model.state_dict().items():
        assert torch.equal(found[name], tensor.half().float()), name


def test_hugging_face_loads(merged_whisper, exported):
    from transformers import (
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    whisper, _, hub = merged_whisper
    model, loading = WhisperForConditionalGeneration.from_pretrained(
        exported, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    inner = model.model.state_dict()
    for name, tensor in whisper.model.state_dict().items():
        assert torch.equal(inner[name], tensor), name
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    tokenizer = WhisperTokenizer.from_pretrained(exported)
    assert tokenizer("one two").input_ids == whisper.tokenizer("one two")[0].ids
    assert WhisperFeatureExtractor.from_pretrained(exported).feature_size == 80
    # How to generate travels along: it is no part of SpeechBrain's wrapper
    original = WhisperForConditionalGeneration.from_pretrained(hub)
    start = original.generation_config.decoder_start_token_id
    assert model.generation_config.decoder_start_token_id == start is not None


def test_a_recipe_starts_from_it(merged_whisper, exported, tmp_path):
    whisper, path, _ = merged_whisper
    again = Whisper(str(exported), str(tmp_path), language="french")
    for name, tensor in whisper.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.tokenizer.prefix_tokens == whisper.tokenizer.prefix_tokens
    # as recipes with `normalized_transcripts: True` do
    assert again.tokenizer.normalize("The COLOUR!") == "the color"
    # and an export of the export is the same
    second = export_whisper(
        {f"whisper.{n}": t for n, t in again.state_dict().items()},
        again,
        tmp_path / "second",
    )
    for name in ("model.safetensors", "config.json", "normalizer.json"):
        first = (exported / name).read_bytes()
        assert (second / name).read_bytes() == first, name


def test_half_precision_stays(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    with open_weights(path) as weights:
        half = {name: weights[name].bfloat16() for name in weights}
    whisper = Whisper(hub, hub + "/cache", language="french")
    folder = export_whisper(half, whisper, tmp_path / "half")
    again = Whisper(str(folder), str(tmp_path), language="french")
    for name, tensor in again.state_dict().items():
        if name != "_mel_filters":
            assert torch.equal(tensor.bfloat16(), half[f"whisper.{name}"])


def test_replacing_an_export(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    whisper = Whisper(hub, hub + "/cache", language="french")
    folder = tmp_path / "mine"
    folder.mkdir()  # an empty one is as good as none
    export_whisper(path, whisper, folder)
    first = (folder / "model.safetensors").read_bytes()
    with open_weights(path) as weights:
        other = {name: weights[name] + 1 for name in weights}
    export_whisper(other, whisper, folder, texts={"README.md": "a card"})
    second = (folder / "model.safetensors").read_bytes()
    assert second != first
    assert (folder / "README.md").read_text() == "a card"
    export_whisper(other, whisper, folder)
    assert not (folder / "README.md").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
    # What a person put into it is not replaced with it
    (folder / "notes.txt").write_text("heard on Monday")
    with pytest.raises(FileExistsError, match="mine holds .*: 'notes.txt'"):
        export_whisper(path, whisper, folder)
    assert (folder / "notes.txt").read_text() == "heard on Monday"
    assert (folder / "model.safetensors").read_bytes() == second
    # but never a folder of something else
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="'thesis.tex'. Nothing was"):
        export_whisper(path, whisper, theirs)
    assert [each.name for each in theirs.iterdir()] == ["thesis.tex"]
    (theirs / "merge.json").write_text("{}")  # of whatever it is
    with pytest.raises(FileExistsError, match="'thesis.tex'"):
        export_whisper(path, whisper, theirs)


def test_folders_of_like_names_are_a_persons_own(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    whisper = Whisper(hub, hub + "/cache", language="french")
    for name in ("model.old", "model.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    for _ in range(2):
        export_whisper(path, whisper, tmp_path / "model")
    for name in ("model.old", "model.tmp"):
        assert (tmp_path / name / "thesis.tex").read_text() == "years of work"


def test_two_exports_at_once_leave_a_whole_one(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    script = tmp_path / "export.py"
    script.write_text(
        "import sys\n"
        "from speechbrain.integrations.huggingface.whisper import Whisper\n"
        "from speechbrain_merge.export import export_whisper\n"
        "path, hub, folder = sys.argv[1:]\n"
        "whisper = Whisper(hub, hub + '/cache', language='french')\n"
        "for _ in range(3):\n"
        "    export_whisper(path, whisper, folder)\n"
    )
    folder = tmp_path / "export"
    command = [sys.executable, script, path, hub, folder]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    names = {each.name for each in folder.iterdir()}
    assert {"model.safetensors", "config.json", "merge.json"} < names
    assert {each.name for each in tmp_path.iterdir()} == {"export", "export.py"}
    Whisper(str(folder), str(tmp_path / "cache"), language="french")


def test_settings_are_written_by_a_yaml_library(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    whisper = Whisper(hub, hub + "/cache", language="french")
    name = "a: !apply:os.getpid [] #'\n\"{x}"
    folder = export_whisper(path, whisper, tmp_path / name)
    again = Whisper(str(folder), str(tmp_path), language="french")
    assert again.tokenizer is not None
    text = (folder / "hyperparams.yaml").read_text()
    settings = yaml.safe_load(text.partition("sample_rate")[0])
    assert settings == {
        "language": "french",
        "task": "transcribe",
    }


def test_wrong_weights(merged_whisper, tmp_path):
    _, path, hub = merged_whisper
    whisper = Whisper(hub, hub + "/cache", language="french")
    folder = tmp_path / "export"
    with pytest.raises(ValueError, match="no weights of a module 'model'"):
        export_whisper(path, whisper, folder, module="model")
    with open_weights(path) as weights:
        good = dict(weights)
    name = "whisper.model.decoder.layers.0.fc1.weight"
    with pytest.raises(ValueError, match="fc1.weight' is missing"):
        export_whisper({n: good[n] for n in good if n != name}, whisper, folder)
    with pytest.raises(ValueError, match=r"shape \[1, 16\]"):
        export_whisper({**good, name: good[name][:1]}, whisper, folder)
    with pytest.raises(ValueError, match="NaN or infinite"):
        export_whisper({**good, name: good[name] / 0}, whisper, folder)
    encoder = Whisper(hub, hub + "/cache", encoder_only=True)
    with pytest.raises(ValueError, match="encoder_only"):
        export_whisper(path, encoder, folder)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export(merged_whisper, tmp_path):
    """The folder is not there, or the earlier one is; never a half."""
    _, path, hub = merged_whisper
    folder = tmp_path / "export"
    script = tmp_path / "export.py"
    script.write_text(
        "import os, signal, sys\n"
        "from speechbrain.integrations.huggingface.whisper import Whisper\n"
        "from speechbrain_merge.export import export_whisper\n"
        "path, hub, folder = sys.argv[1:]\n"
        "whisper = Whisper(hub, hub + '/cache', language='french')\n"
        "whisper.feature_extractor.save_pretrained = lambda folder: os.kill(\n"
        "    os.getpid(), signal.SIGKILL\n"
        ")\n"
        "export_whisper(path, whisper, folder)\n"
    )
    command = [sys.executable, script, path, hub, folder]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not folder.exists()
    whisper = Whisper(hub, hub + "/cache", language="french")

    def full_disk(folder):
        raise OSError("No space left on device")

    saver = whisper.feature_extractor
    saver.save_pretrained = full_disk
    with pytest.raises(OSError, match="No space"):
        export_whisper(path, whisper, folder)
    assert [each.name for each in tmp_path.iterdir()] == ["export.py"]
    del saver.save_pretrained
    export_whisper(path, whisper, folder)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "export",
        "export.py",
    ]


@pytest.fixture
def merged_ctc(tmp_path):
    """wav2vec 2.0 with a CTC layer: merged file, YAML, tokenizer, modules."""
    hub = tiny_wav2vec2(tmp_path / "hub")
    encoder = Wav2Vec2(hub, hub).eval()
    head = torch.nn.Linear(16, 5)
    experts = []
    for seed in (1, 2):
        expert = {}
        for name, module in (("wav2vec2", encoder), ("ctc_lin", head)):
            for key, tensor in perturbed(module, seed, 0.3).items():
                expert[f"{name}.{key}"] = tensor
        experts.append(expert)
    path = merge(
        "average",
        experts,
        output=tmp_path / "merged.safetensors",
        same_base=False,  # drawn apart
    )
    for name, module in (("wav2vec2", encoder), ("ctc_lin", head)):
        with open_weights(path, recoverable=name) as weights:
            module.load_state_dict(dict(weights), strict=True)
    (tmp_path / "inference.yaml").write_text(ENCODER_ASR.format(hub=hub))
    (tmp_path / "tokenizer.ckpt").write_text(
        "'<blank>' => 0\n'a' => 1\n'b' => 2\n'c' => 3\n'd' => 4\n"
        "================\n'starting_index' => 0\n'blank_label' => '<blank>'\n"
    )
    return tmp_path, path, encoder, head


def test_a_ctc_model_transcribes(merged_ctc):
    folder, path, encoder, head = merged_ctc
    exported = export_pretrained(
        path,
        folder / "inference.yaml",
        folder / "exported",
        files=[folder / "tokenizer.ckpt"],
    )
    asr = EncoderASR.from_hparams(str(exported), savedir=str(folder / "cache"))
    for name, module in (("wav2vec2", encoder), ("ctc_lin", head)):
        found = getattr(asr.hparams, name).state_dict()
        for key, tensor in module.state_dict().items():
            assert torch.equal(found[key], tensor), key
    make_speech(folder, 1)
    (wav,) = folder.glob("*.wav")
    with torch.no_grad():
        signal_ = read_audio(str(wav)).unsqueeze(0)
        probabilities = head(encoder(signal_)).log_softmax(-1)
        (labels,) = ctc_greedy_decode(probabilities, torch.ones(1), blank_id=0)
    expected = "".join(" abcd"[label] for label in labels)
    assert asr.transcribe_file(str(wav), savedir=str(folder)) == expected
    assert len(expected) > 0


def test_wrong_pretrained_exports(merged_ctc):
    folder, path, _, _ = merged_ctc
    hparams, target = folder / "inference.yaml", folder / "exported"
    with pytest.raises(ValueError, match="every loadable have a file"):
        export_pretrained(path, hparams, target)  # the tokenizer's is missing
    text = hparams.read_text().replace(
        "ctc_lin: !ref <ctc_lin>\n        t", "t"
    )
    hparams.write_text(text)
    with pytest.raises(ValueError, match="Every merged module must be"):
        export_pretrained(path, hparams, target, [folder / "tokenizer.ckpt"])
    with pytest.raises(FileNotFoundError):
        export_pretrained(path, folder / "no.yaml", target)
    with pytest.raises(FileNotFoundError):
        export_pretrained(folder / "no.safetensors", hparams, target)
    hparams.write_text(ENCODER_ASR.format(hub="hub"))
    with pytest.raises(FileNotFoundError):
        export_pretrained(
            path, hparams, target, [Path("nowhere/tokenizer.ckpt")]
        )
    assert not target.exists() and not list(folder.glob("exported*"))


def test_a_malformed_yaml_is_named(merged_ctc):
    folder, path, _, _ = merged_ctc
    wrong = folder / "wrong.yaml"
    for text in ("", "a: [", "[1]", "pretrainer: 3", "pretrainer: {}"):
        wrong.write_text(text)
        with pytest.raises(ValueError, match="wrong.yaml"):
            export_pretrained(path, wrong, folder / "exported")


def test_two_loadables_of_one_name_are_refused(merged_ctc):
    folder, path, _, _ = merged_ctc
    (folder / "more").mkdir()
    (folder / "more" / "ctc_lin.ckpt").write_text("another")
    files = [folder / "tokenizer.ckpt", folder / "more" / "ctc_lin.ckpt"]
    with pytest.raises(ValueError, match="the name ctc_lin.ckpt"):
        export_pretrained(
            path, folder / "inference.yaml", folder / "exported", files
        )


def test_the_name_of_a_tensor_is_no_path(tmp_path):
    code = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from speechbrain_merge.export import export_pretrained
folder = Path(sys.argv[1])
(folder / "outside").mkdir()
for number, name in enumerate([f"{folder}/outside/x", "../outside/x", "a/b"]):
    source = folder / f"{number}.safetensors"
    save_file({f"{name}.weight": torch.ones(2)}, source)
    hparams = folder / "inference.yaml"
    hparams.write_text(f"pretrainer:\\n    loadables: {{'{name}': x}}\\n")
    try:
        export_pretrained(source, hparams, folder / "exported")
    except ValueError as error:
        print(error)
assert list((folder / "outside").iterdir()) == []
assert not (folder / "exported").exists()
"""
    output = run_in_sandbox(code, tmp_path)
    assert output.count("expected the plain name of a file") == 3
