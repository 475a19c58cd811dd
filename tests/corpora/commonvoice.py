"""Common Voice in miniature, in exactly its layout, and a tiny Whisper for it.

The clips are MP3 files of 48 kHz; a word is a tone of its own pitch under light
noise. Spanish, English and Welsh have the tables of recent releases, with
accents and durations; French and Basque those of old ones, with codes of
accents, without durations, and with names of clips without their ending.

    python tests/corpora/commonvoice.py tests/tmp

writes what the rows of tests/recipes/CommonVoice.csv look for in tests/tmp.

Example
-------
>>> folder = getfixture("tmp_path")
>>> write_language(folder, "cy", [""], 1)
>>> for path in sorted((folder / "cy").rglob("*.*")):
...     print(path.relative_to(folder).as_posix())
cy/clip_durations.tsv
cy/clips/common_voice_cy_0.mp3
cy/clips/common_voice_cy_1.mp3
cy/clips/common_voice_cy_2.mp3
cy/clips/common_voice_cy_3.mp3
cy/clips/common_voice_cy_4.mp3
cy/dev.tsv
cy/test.tsv
cy/train.tsv

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
import soundfile
from tiny_models import WORDS, tiny_whisper

RATE = 48000
SPANISH = [
    "México",
    "Rioplatense: Argentina, Uruguay, este de Bolivia, Paraguay",
    "Chileno: Chile, Cuyo",
    "Caribe: Cuba, Venezuela, Puerto Rico, República Dominicana, Panamá, "
    "Colombia caribeña, México caribeño, Costa del golfo de México",
]
RECENT = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes "
    "age gender accents variant locale segment"
).split()
OLD = (
    "client_id path sentence up_votes down_votes age gender accent locale "
    "segment"
).split()


def make(folder) -> None:
    """Writes the corpus and the model.

    Arguments
    ---------
    folder : str or Path
        Gets ``cv-corpus`` with a folder for each language, and ``whisper`` as a
        Hugging Face folder.
    """
    folder = Path(folder)
    corpus = folder / "cv-corpus"
    write_language(corpus, "es", SPANISH, 2)
    write_language(corpus, "en", ["United States English"], 2)
    write_language(corpus, "fr", ["france"], 2, old=True)
    write_language(corpus, "cy", [""], 2)
    write_language(corpus, "eu", [""], 2, old=True)
    tiny_whisper(folder / "whisper", layers=1, multilingual=True)


def write_language(corpus, language, accents, each, old=False) -> None:
    """Writes the tables and the clips of a language.

    Arguments
    ---------
    corpus : Path
        The folder of a release.
    language : str
        Its code.
    accents : list of str
        What speakers say of theirs.
    each : int
        Utterances of each accent in each table.
    old : bool
        Whether in the form of an old release.
    """
    folder = Path(corpus) / language
    (folder / "clips").mkdir(parents=True)
    draw = numpy.random.default_rng(list(language.encode()))
    durations, number = ["clip\tduration[ms]"], 0
    for table in ("train", "dev", "test"):
        lines = ["\t".join(OLD if old else RECENT)]
        for place, accent in enumerate(accents):
            # an accent has few phrases, which a tiny model learns in few steps
            for _ in range(each * (3 if table == "train" else 1)):
                name = f"common_voice_{language}_{number}"
                words = [(place + draw.integers(0, 2)) % len(WORDS)] * 2
                samples = write_clip(folder / f"clips/{name}.mp3", words, draw)
                durations.append(f"{name}.mp3\t{1000 * samples // RATE}")
                sentence = " ".join(WORDS[word] for word in words)
                speaker = f"{table} {accent}".encode()
                row = {
                    "client_id": hashlib.sha256(speaker).hexdigest(),
                    "path": name if old else f"{name}.mp3",
                    # a quotation mark is no quoting in these tables
                    "sentence": f'"{sentence}.',
                    "accent": accent,
                    "accents": accent,
                    "locale": language,
                }
                columns = OLD if old else RECENT
                lines.append("\t".join(row.get(one, "") for one in columns))
                number += 1
        text = "\n".join(lines) + "\n"
        (folder / f"{table}.tsv").write_text(text, encoding="utf-8")
    if not old:
        text = "\n".join(durations) + "\n"
        (folder / "clip_durations.tsv").write_text(text, encoding="utf-8")


def write_clip(path, words, draw) -> int:
    """Writes a clip, and gives the number of its samples.

    Arguments
    ---------
    path : Path
        An MP3 file.
    words : list of int
        Places in ``WORDS``.
    draw : numpy.random.Generator
        Draws the noise.
    """
    time = numpy.arange(RATE // 4) / RATE
    tones = [0.3 * numpy.sin(1000 * (word + 2) * time) for word in words]
    wave = numpy.concatenate(tones)
    wave += 0.01 * draw.standard_normal(len(wave))
    soundfile.write(path, wave, RATE, format="MP3")
    return len(wave)


if __name__ == "__main__":
    make(sys.argv[1])
