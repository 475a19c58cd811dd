"""Tiny models and tiny data of the stored studies, a function a recipe.

Everything is seeded: the same material comes of every call.

Example
-------
>>> places = conformer_material(getfixture("tmp_path"))
>>> sorted(path.name for path in (Path(places["data"]) / "csv").iterdir())[:2]
['others_test.csv', 'others_train.csv']

Authors
 * The speechbrain_merge authors 2026
"""

import csv
from pathlib import Path

import numpy
import soundfile
from tiny_domains import make_domains
from tiny_models import (
    WORDS,
    tiny_beats,
    tiny_bert,
    tiny_bert_tokenizer,
    tiny_vit,
    tiny_wav2vec2,
    tiny_whisper,
)


def whisper_material(folder: Path) -> dict[str, str]:
    """A Whisper of two layers of width 32, and three domains.

    Arguments
    ---------
    folder : Path
        Where to write. Created when missing.

    Returns
    -------
    dict
        Name of a place in the settings to its path: ``whisper``, ``data``.
    """
    return {
        "whisper": tiny_whisper(folder / "whisper", d_model=32),
        "data": str(
            make_domains(folder / "data", ["reverb", "digits", "read"], 12)
        ),
    }


def letter_domains(folder: Path, domains: list[str]) -> str:
    """Domains whose words are letters, which CTC learns in few steps.

    Arguments
    ---------
    folder : Path
        The data folder.
    domains : list of str
        Names of the domains, of twelve utterances in each split.

    Returns
    -------
    str
        The folder.
    """
    make_domains(folder, domains, 12)
    for path in (folder / "csv").iterdir():
        text = path.read_text()
        for word, letter in zip(WORDS, "ABCDEF"):
            text = text.replace(word.upper(), letter)
        path.write_text(text)
    return str(folder)


def conformer_material(folder: Path) -> dict[str, str]:
    """Two domains. The models are trained from scratch.

    Arguments
    ---------
    folder : Path
        Where to write. Created when missing.

    Returns
    -------
    dict
        Name of a place in the settings to its path: ``data``.
    """
    return {"data": letter_domains(folder / "data", ["tones", "others"])}


def wav2vec2_material(folder: Path) -> dict[str, str]:
    """A wav2vec 2.0 and a Whisper, a deeper BERT as wide, and two domains.

    Arguments
    ---------
    folder : Path
        Where to write. Created when missing.

    Returns
    -------
    dict
        Name of a place in the settings to its path: ``wav2vec2``,
        ``whisper``, ``bert``, ``data``.
    """
    bert = tiny_bert(folder / "bert", layers=4)
    tiny_bert_tokenizer(bert)
    return {
        "wav2vec2": tiny_wav2vec2(folder / "wav2vec2"),
        "whisper": tiny_whisper(folder / "whisper"),
        "bert": bert,
        "data": letter_domains(folder / "data", ["digits", "telephony"]),
    }


def esc50_material(folder: Path) -> dict[str, str]:
    """A BEATs, a vision Transformer as deep and wide, and an ESC-50 in small.

    Each of the five folds has eight clips of half a second of each of four
    classes: tones of four pitches in noise that nearly drowns them.

    Arguments
    ---------
    folder : Path
        Where to write. Created when missing.

    Returns
    -------
    dict
        Name of a place in the settings to its path: ``beats``, ``vit``,
        ``data``.
    """
    data = folder / "ESC-50"
    (data / "meta").mkdir(parents=True)
    (data / "audio").mkdir()
    random = numpy.random.default_rng(0)
    time = numpy.arange(22050) / 44100
    with open(data / "meta" / "esc50.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category"])
        for fold in range(1, 6):
            for take in range(8):
                for target, pitch in enumerate((300, 500, 900, 1700)):
                    name = f"{fold}-{take}-A-{target}.wav"
                    clip = 0.05 * numpy.sin(2 * numpy.pi * pitch * time)
                    clip += 0.1 * random.standard_normal(len(clip))
                    path = data / "audio" / name
                    soundfile.write(path, clip.astype("float32"), 44100)
                    writer.writerow([name, fold, target, f"tone-{pitch}"])
    return {
        "beats": tiny_beats(folder / "beats.pt"),
        "vit": tiny_vit(folder / "vit"),
        "data": str(data),
    }
