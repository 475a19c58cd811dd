"""A merged Whisper for CTranslate2, as faster-whisper loads it.

``export_ctranslate2`` converts a folder that ``export_whisper`` wrote. The
result holds ``model.bin``, the vocabulary and ``tokenizer.json``: what
``faster_whisper.WhisperModel(folder)`` and ``ctranslate2.models.Whisper(folder)``
open. Before the folder takes its place, CTranslate2 has loaded it and decoded a
second of noise to the tokens that ``transformers`` decodes.

Needs ``pip install speechbrain_merge[ctranslate2]``.

Authors
 * The speechbrain_merge authors 2026
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

import torch

from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.consistency import check_together, open_beside
from speechbrain_merge.export.folder import export_folder, stored
from speechbrain_merge.export.loading import door, load_whisper, noise
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.records.paths import entry_path, refuse_link_outside
from speechbrain_merge.records.signing import Signer

logger = get_logger(__name__)

QUANTIZATIONS = (
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
)
_HALF = ("float16", "int8_float16")

_FEW_TOKENS = 8
_COPIED = ("tokenizer.json", "preprocessor_config.json")


@steady("whisper")
def export_ctranslate2(
    whisper,
    folder,
    quantization: str = "float32",
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
) -> Path:
    """Writes an exported Whisper for CTranslate2 and faster-whisper.

    Arguments
    ---------
    whisper : str or Path
        A folder that ``export_whisper`` wrote, or any Whisper of
        ``transformers`` in a folder with its ``tokenizer.json``.
    folder : str or Path
        The folder to write. An earlier export there is replaced.
    quantization : str
        How the weights are stored: "float32", "float16", "bfloat16", "int8",
        "int8_float16", …. Only float32 is compared with ``transformers`` by
        the text that it decodes; others round, and are only loaded.
    texts : dict, optional
        More files of the folder, name to text.
    sign : Signer, str or Path, optional
        As for ``export_whisper``.

    Returns
    -------
    folder : Path

    Raises
    ------
    ValueError
        When the folder holds no Whisper, or only some of one, or there is no
        such quantization. When the tokenizer or the feature extractor is
        another model's, or float16 does not hold a weight.
    ImportError
        When CTranslate2 is not installed.
    NotLoadable
        When what was written does not load, or decodes to another text.
    """
    whisper, folder = Path(whisper), entry_path(folder)
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"quantization is {quantization!r}; expected one of "
            f"{', '.join(QUANTIZATIONS)}."
        )
    if not (whisper / "config.json").is_file():
        raise ValueError(
            f"{whisper} holds no Whisper of transformers: there is no "
            "config.json of one. Give a folder that export_whisper wrote."
        )
    for name in _COPIED:
        if not (whisper / name).is_file():
            raise FileNotFoundError(
                f"{whisper / name} is missing: faster-whisper needs it."
            )
        refuse_link_outside(whisper, whisper / name)
    if importlib.util.find_spec("ctranslate2") is None:
        raise ImportError(
            "CTranslate2 is not installed: "
            "pip install 'speechbrain_merge[ctranslate2]'"
        )
    from ctranslate2.converters import TransformersConverter

    loaded, config = load_whisper(whisper)
    check_together(whisper, config, *open_beside(whisper))
    if quantization in _HALF:
        stored(loaded.state_dict(), torch.float16, str(whisper))
    with export_folder(folder, str(whisper), texts, sign) as target:
        # it removes what is there, and with it the marks of an unfinished export
        converted = target / ".converted"
        TransformersConverter(
            str(whisper),
            copy_files=list(_COPIED),
        ).convert(str(converted), quantization=quantization)
        for path in sorted(converted.iterdir()):
            path.rename(target / path.name)
        converted.rmdir()
        exact = loaded if quantization == "float32" else None
        _check(target, whisper, exact, config)
    logger.info(f"Merged model exported to {folder}, for CTranslate2.")
    return folder


def _check(folder, whisper, loaded, config):
    """Decodes noise by CTranslate2, and by the loaded model if there is one."""
    import ctranslate2
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    with noise(extractor.sampling_rate) as path:
        wave = audio_io.load(path)[0].squeeze(0).numpy()
    features = extractor(
        wave, sampling_rate=extractor.sampling_rate, return_tensors="pt"
    ).input_features
    prompt = _prompt(whisper, config)
    with door("ctranslate2.models.Whisper"):
        fast = ctranslate2.models.Whisper(str(folder), device="cpu")
        (heard,) = fast.generate(
            ctranslate2.StorageView.from_array(features.numpy()),
            [prompt],
            beam_size=1,
            max_length=len(prompt) + _FEW_TOKENS,
            suppress_blank=False,
            suppress_tokens=None,
        )
        found = heard.sequences_ids[0]
    if loaded is None:
        return
    model = loaded.eval()
    tokens = list(prompt)
    with door("ctranslate2.models.Whisper"), torch.no_grad():
        encoded = model.model.encoder(features).last_hidden_state
        for token in found:
            logits = model(
                encoder_outputs=(encoded,),
                decoder_input_ids=torch.tensor([tokens]),
            ).logits[0, -1]
            # Rounding may decide between tokens that are as likely
            if logits[token] < logits.max() - 1e-2:
                raise ValueError(
                    f"it decodes to the tokens {found}, and transformers to "
                    f"{int(logits.argmax())} after {len(tokens)}"
                )
            tokens.append(token)


def _prompt(whisper, config):
    """The tokens that a text without times begins with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whisper, trust_remote_code=False)
    names = ["<|startoftranscript|>"]
    if config["vocab_size"] >= 51865:
        names += ["<|en|>", "<|transcribe|>"]
    names.append("<|notimestamps|>")
    return tokenizer.convert_tokens_to_ids(names)
