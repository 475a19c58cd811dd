"""A merged Whisper decodes by CTranslate2 as it does in its recipe.

The tiny models need the package ctranslate2 alone. With ``MERGE_REAL_WHISPER``
set to a folder of a real Whisper, such as the demo's ``whisper/tiny.en``, and
speech under ``../shared/speech``, real clips are transcribed too.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import warm_python
from tiny_models import make_speech, tiny_whisper
from transformers import WhisperForConditionalGeneration

from speechbrain.dataio.dataio import read_audio
from speechbrain.decoders.seq2seq import S2SWhisperGreedySearcher
from speechbrain.inference.ASR import WhisperASR
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain_merge import merge
from speechbrain_merge.export import export_ctranslate2, export_whisper

ctranslate2 = pytest.importorskip("ctranslate2")

REAL = os.environ.get("MERGE_REAL_WHISPER", "")
SPEECH = Path(__file__).parents[2] / "shared" / "speech"


def exported(whisper, folder, noise=0.1):
    """An average of two models, in SpeechBrain and exported."""
    experts = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        experts.append(
            {
                f"whisper.{name}": tensor
                + noise * torch.randn(tensor.shape, generator=generator)
                for name, tensor in whisper.state_dict().items()
            }
        )
    path = merge(
        "average",
        experts,
        output=folder / "merged.safetensors",
        same_base=False,  # drawn apart
    )
    return export_whisper(path, whisper, folder / "whisper")


def decode(folder, whisper, features, length):
    """Token ids by CTranslate2, with what the recipe's search suppresses."""
    searcher = S2SWhisperGreedySearcher(
        whisper, min_decode_ratio=0.0, max_decode_ratio=1.0
    )
    model = ctranslate2.models.Whisper(
        str(folder), device="cpu", compute_type="float32"
    )
    (result,) = model.generate(
        ctranslate2.StorageView.from_array(features.contiguous().numpy()),
        [list(whisper.tokenizer.prefix_tokens)],
        beam_size=1,
        max_length=length,
        suppress_blank=True,
        suppress_tokens=list(searcher.get_tokens_to_suppress),
    )
    return result.sequences_ids[0]


def adapted(hub, generator):
    """A Whisper with LoRA, whose factors are no zeros."""
    whisper = AdaptedModel(
        Whisper(hub, hub),
        LoRA,
        target_layers=["*.?_proj", "*.fc?"],
        adapter_kwargs={"rank": 2, "alpha": 2.0},
    ).eval()
    with torch.no_grad():
        for name, factor in whisper.named_parameters():
            if "adapter" in name:
                factor.copy_(torch.randn(factor.shape, generator=generator))
    return whisper


@pytest.mark.parametrize("kind", ["english", "multilingual", "untied", "lora"])
def test_the_tokens_of_the_recipe(tmp_path, kind):
    multilingual = kind == "multilingual"
    hub = tiny_whisper(tmp_path / "hub", layers=1, multilingual=multilingual)
    if kind == "untied":
        config = json.loads((Path(hub) / "config.json").read_text())
        config["tie_word_embeddings"] = False
        (Path(hub) / "config.json").write_text(json.dumps(config))
    language = "english" if multilingual else None
    whisper = Whisper(hub, hub, language=language)
    assert whisper.config.tie_word_embeddings == (kind != "untied")
    if kind == "lora":
        trained = adapted(hub, torch.Generator().manual_seed(0))
        source = export_whisper(
            torch.nn.ModuleDict({"whisper": trained}),
            whisper,
            tmp_path / "whisper",
        )
    else:
        source = exported(whisper, tmp_path)
    target = export_ctranslate2(source, tmp_path / "fast")
    names = {each.name for each in target.iterdir()}
    assert {"model.bin", "config.json", "tokenizer.json"} < names
    moved = target.rename(tmp_path / "moved")
    for file in moved.rglob("*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    make_speech(tmp_path, 1)
    (wav,) = tmp_path.glob("*.wav")
    if kind == "lora":
        whisper = trained.adapted_model
    else:
        whisper = Whisper(str(source), str(source), language=language).eval()
    searcher = S2SWhisperGreedySearcher(
        whisper, min_decode_ratio=0.0, max_decode_ratio=0.02
    )
    with torch.no_grad():
        features = whisper._get_mel(read_audio(str(wav)).unsqueeze(0))
        encoded = whisper.forward_encoder(features)
        (expected,), *_ = searcher(encoded, torch.ones(1))
    # of two limits to the length, the smaller counts
    found = decode(moved, whisper, features, len(expected))
    assert len(found) > 3
    assert found == expected[: len(found)]
    # SpeechBrain's interface and transformers, out of a folder that was moved
    source = source.rename(tmp_path / "elsewhere")
    asr = WhisperASR.from_hparams(
        str(source), overrides={"max_decode_ratio": 0.02}
    )
    (segment,) = asr.transcribe_file(str(wav), no_speech_threshold=None)
    assert segment.tokens == expected
    model = WhisperForConditionalGeneration.from_pretrained(source).eval()
    ids = list(whisper.tokenizer.prefix_tokens)
    with torch.no_grad():
        for token in expected[:4]:
            scores = model(
                features, decoder_input_ids=torch.tensor([ids])
            ).logits[0, -1]
            scores[list(searcher.get_tokens_to_suppress)] = -torch.inf
            assert scores.argmax() == token
            ids.append(token)


def test_quantized(tmp_path):
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    source = exported(Whisper(hub, hub), tmp_path)
    whole = export_ctranslate2(source, tmp_path / "whole")
    small = export_ctranslate2(source, tmp_path / "small", "int8")
    sizes = [(each / "model.bin").stat().st_size for each in (whole, small)]
    assert sizes[1] < 0.7 * sizes[0]


def test_wrong_input(tmp_path):
    hub = Path(tiny_whisper(tmp_path / "hub", layers=1))
    with pytest.raises(ValueError, match="'int4'; expected one of float32"):
        export_ctranslate2(hub, tmp_path / "fast", quantization="int4")
    with pytest.raises(ValueError, match="holds no Whisper"):
        export_ctranslate2(tmp_path, tmp_path / "fast")
    (hub / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        export_ctranslate2(hub, tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


@pytest.mark.skipif(
    not REAL or not SPEECH.is_dir(),
    reason="needs MERGE_REAL_WHISPER and ../shared/speech",
)
def test_real_clips(tmp_path):
    """WhisperASR and CTranslate2 write the same of real speech."""
    whisper = Whisper(REAL, REAL)
    source = exported(whisper, tmp_path, noise=1e-3)
    target = export_ctranslate2(source, tmp_path / "fast")
    source = source.rename(tmp_path / "moved")
    asr = WhisperASR.from_hparams(str(source))
    clips = [
        path
        for domain in ("digits", "read")
        for path in sorted((SPEECH / domain).rglob("*.flac"))[:3]
    ]
    assert len(clips) == 6
    for path in clips:
        (segment,) = asr.transcribe_file(str(path), no_speech_threshold=None)
        features = asr.mods.whisper._get_mel(read_audio(str(path)).unsqueeze(0))
        found = decode(target, asr.mods.whisper, features, 200)
        text = asr.tokenizer.decode(found, skip_special_tokens=True).strip()
        assert text == segment.words != "", path


ENDED = """
import os, sys
from ctranslate2 import converters
from speechbrain_merge.export import export_ctranslate2

convert = converters.TransformersConverter.convert

def ended(*arguments, **options):
    convert(*arguments, **options)
    os._exit(9)  # as a kill: nothing is cleaned up

converters.TransformersConverter.convert = ended
export_ctranslate2(sys.argv[1], sys.argv[2])
"""


def test_a_conversion_that_was_ended_leaves_nothing(tmp_path):
    """The converter removed the mark by which remains are known."""
    whisper = Whisper(
        tiny_whisper(tmp_path / "hub", layers=1), str(tmp_path / "c")
    )
    source = exported(whisper, tmp_path)
    folder = tmp_path / "fast" / "model"
    folder.parent.mkdir()
    (tmp_path / "ended.py").write_text(ENDED)
    command = [warm_python.python(), tmp_path / "ended.py", source, folder]
    assert subprocess.run(command, capture_output=True).returncode == 9
    assert [path.name for path in folder.parent.iterdir()] != ["model"]
    export_ctranslate2(source, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert not [path for path in folder.iterdir() if "converted" in path.name]
