"""A merged Whisper in whisper.cpp's file.

The tiny models are read back by the rules of the format; whisper.cpp itself
knows only vocabularies of the real size. With ``MERGE_REAL_WHISPER`` set to a
folder of a real Whisper, the package pywhispercpp and speech under
``../shared/speech``, whisper.cpp transcribes real clips.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_whisper

from speechbrain.dataio.dataio import read_audio
from speechbrain.inference.ASR import WhisperASR
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge.export import export_ggml, export_whisper
from speechbrain_merge.export.ggml import GGML_FILE, ggml_name, read_ggml

REAL = os.environ.get("MERGE_REAL_WHISPER", "")
SPEECH = Path(__file__).parents[2] / "shared" / "speech"


def test_what_is_written_is_what_was_merged(tmp_path):
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    whisper = Whisper(hub, hub)
    folder = export_ggml(hub, tmp_path / "exported")
    sizes, tokens, tensors = read_ggml(folder / GGML_FILE)
    assert sizes["d_model"] == 16 and sizes["max_source_positions"] == 1500
    assert sizes["vocab_size"] == whisper.config.vocab_size
    # each token is the text that the tokenizer has for its id
    texts = [whisper.tokenizer.decode([i]) for i in range(len(tokens))]
    assert [t.decode(errors="replace") for t in tokens] == texts
    assert len(tokens) == whisper.eos > 256
    state = whisper.model.state_dict()
    assert len(tensors) == len(state)
    for name, tensor in state.items():
        found = tensors[ggml_name(name)]
        narrow = tensor.ndim > 1 and "positions" not in name
        wanted = tensor.half() if narrow else tensor
        assert np.array_equal(found.squeeze(), wanted.numpy().squeeze()), name
        assert found.dtype == (np.float16 if narrow else np.float32)


def test_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="holds no Whisper"):
        export_ggml(tmp_path, tmp_path / "exported")
    hub = tiny_whisper(tmp_path / "hub", layers=1)
    whisper = Whisper(hub, hub)
    state = {
        f"whisper.{name}": tensor * 1e7
        for name, tensor in whisper.state_dict().items()
    }
    source = export_whisper(state, whisper, tmp_path / "whisper")
    with pytest.raises(ValueError, match="float16 does not hold"):
        export_ggml(source, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    folder = export_ggml(hub, tmp_path / "exported")
    data = (folder / GGML_FILE).read_bytes()
    for wrong, message in (
        (data[:-1], "was cut short"),
        (b"\0" + data, "does not begin as"),
    ):
        (tmp_path / "wrong.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            read_ggml(tmp_path / "wrong.bin")


def test_damage_beside_the_weights_names_the_file(tmp_path):
    hub = Path(tiny_whisper(tmp_path / "hub", layers=1))
    names = sorted(path.name for path in hub.glob("*.json"))
    assert {"preprocessor_config.json", "tokenizer_config.json"} <= set(names)
    for name in names:
        text = (hub / name).read_text()
        (hub / name).write_text(text[: len(text) // 2])
        with pytest.raises(ValueError, match=name):
            export_ggml(hub, tmp_path / "exported")
        (hub / name).write_text(text)
    (hub / "preprocessor_config.json").write_text('{"feature_size": "many"}')
    with pytest.raises(ValueError, match=f"^{hub} has no feature extractor"):
        export_ggml(hub, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.skipif(
    not REAL or not SPEECH.is_dir(),
    reason="needs MERGE_REAL_WHISPER and ../shared/speech",
)
def test_whisper_cpp_transcribes(tmp_path):
    """The text of WhisperASR, but for rounding's choice of a mark."""
    cpp = pytest.importorskip("pywhispercpp.model")
    whisper = Whisper(REAL, REAL)
    generator = torch.Generator().manual_seed(0)
    state = {
        f"whisper.{name}": tensor
        + 1e-3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in whisper.state_dict().items()
    }
    source = export_whisper(state, whisper, tmp_path / "whisper")
    folder = export_ggml(source, tmp_path / "ggml")
    moved = folder.rename(tmp_path / "moved")
    model = cpp.Model(str(moved / GGML_FILE), n_threads=1)
    asr = WhisperASR.from_hparams(str(source))
    clips = [
        path
        for domain in ("digits", "read")
        for path in sorted((SPEECH / domain).rglob("*.flac"))[:3]
    ]
    assert len(clips) == 6
    for path in clips:
        (segment,) = asr.transcribe_file(str(path), no_speech_threshold=None)
        segments = model.transcribe(
            read_audio(str(path)).numpy(),
            no_timestamps=True,
            single_segment=True,
            temperature_inc=0.0,
        )
        text = " ".join(each.text for each in segments)
        assert text.split() == segment.words.split() != [], path
