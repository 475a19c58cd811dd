"""CL-MASR in miniature: five languages, and a tiny multilingual Whisper.

In the layout of the benchmark's archive: ``LOCALE/{train,dev,test}.tsv`` with
Common Voice's columns, and ``LOCALE/clips/*.mp3``. A word is a tone.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import random
from pathlib import Path

import numpy as np
import soundfile
from tiny_models import tiny_whisper

BASE = ("en", "zh-CN")
NEW = ("rw", "eo", "kab")
# Of what the tiny Whisper writes in one token each language has its own word
WORDS = {
    "en": ["one"],
    "zh-CN": ["一二", "二三"],
    "rw": ["six"],
    "eo": ["k"],
    "kab": ["z"],
}
COLUMNS = [
    *("client_id", "path", "sentence", "up_votes", "down_votes", "age"),
    *("gender", "accents", "locale", "segment"),
]
RATE = 32000  # of Common Voice's clips


def make(folder) -> None:
    """Writes the corpus and the model.

    Arguments
    ---------
    folder : str or Path
        Gets ``CL-MASR`` and ``whisper``.
    """
    folder = Path(folder)
    for seed, locale in enumerate(WORDS):
        make_locale(folder / "CL-MASR", locale, seed)
    tiny_whisper(folder / "whisper", multilingual=True)


def make_locale(corpus: Path, locale: str, seed: int) -> None:
    """Writes the tables and the clips of one language.

    Arguments
    ---------
    corpus : Path
        The folder ``CL-MASR``.
    locale : str
        One of `WORDS`.
    seed : int
        Decides what is said.
    """
    chance, words = random.Random(seed), WORDS[locale]
    (corpus / locale / "clips").mkdir(parents=True)
    number = 1000 * seed
    for split, clips in {"train": 4, "dev": 2, "test": 2}.items():
        rows = []
        for _ in range(clips):
            number += 1
            said = [chance.randrange(len(words))]
            name = f"common_voice_{locale}_{number}.mp3"
            write_clip(corpus / locale / "clips" / name, said)
            rows.append(
                {
                    "client_id": f"speaker-{number % 2}",
                    "path": name,
                    "sentence": " ".join(words[index] for index in said),
                    "up_votes": 2,
                    "down_votes": 0,
                    "locale": locale,
                }
            )
        with open(
            corpus / locale / f"{split}.tsv", "w", newline="", encoding="utf-8"
        ) as file:
            writer = csv.DictWriter(
                file, COLUMNS, delimiter="\t", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


def write_clip(path: Path, said: list) -> None:
    """A tone of a fifth of a second for each word, as MP3."""
    time = np.arange(RATE // 5) / RATE
    tones = [np.sin(2 * np.pi * 300 * (1 + word) * time) for word in said]
    soundfile.write(path, 0.3 * np.concatenate(tones), RATE, format="MP3")
