"""The Speech Accessibility Project's corpus in miniature, and tiny models.

It has exactly the corpus's layout: a folder for each contributor with a JSON and
the audio, in the three categories of prompts, with marks of disfluencies and
comments in the transcripts, and one recording of more than 30 seconds. A word is
a tone of its own pitch under light noise.

    python tests/corpora/sap.py tests/tmp

writes what the rows of tests/recipes/SAP.csv look for in tests/tmp.

Example
-------
>>> folder = getfixture("tmp_path")
>>> write_split(folder / "Dev", {"a1b2": "Parkinson's Disease"}, each=1)
>>> for path in sorted(folder.rglob("*.*")):
...     print(path.relative_to(folder).as_posix())
Dev/a1b2/a1b2.json
Dev/a1b2/a1b2_10_1000.wav
Dev/a1b2/a1b2_10_1001.wav
Dev/a1b2/a1b2_10_1002.wav

Authors
 * The speechbrain_merge authors 2026
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
import soundfile
from tiny_models import WORDS, tiny_whisper
from tiny_text_models import letter_bert, letter_classifier

RATE = 16000
PROMPTS = {
    "Digital Assistant Commands": "{first} {second}.",
    "Novel Sentences": "({first} {first}-) {{u: {first}}} {second}.",
    "Spontaneous Speech Prompts": "[What do you like?] ({first}) {second}.",
}


def make(folder) -> None:
    """Writes the corpus and the models.

    Arguments
    ---------
    folder : str or Path
        Gets ``SAP`` with Train and Dev, and ``whisper``, ``encoder`` and
        ``classifier`` as Hugging Face folders.
    """
    folder = Path(folder)
    write_split(
        folder / "SAP/Train",
        {"a1b2": "Parkinson's Disease", "c3d4": "ALS"},
        each=2,
    )
    write_split(
        folder / "SAP/Dev", {"e5f6": "Down Syndrome"}, each=2, longest=31.0
    )
    tiny_whisper(folder / "whisper", layers=1)
    letter_bert(folder / "encoder", WORDS)
    labels = ["entailment", "neutral", "contradiction"]
    letter_classifier(folder / "classifier", labels, WORDS)


def write_split(folder, contributors, each, longest=None) -> None:
    """Writes the contributors of a split.

    Arguments
    ---------
    folder : Path
        Of the split.
    contributors : dict
        Name to etiology.
    each : int
        Recordings of each category.
    longest : float, optional
        Seconds of the first recording.
    """
    for place, (name, etiology) in enumerate(contributors.items()):
        home = Path(folder) / name
        home.mkdir(parents=True)
        draw = numpy.random.default_rng([place, each])
        files = []
        for category, form in PROMPTS.items():
            for _ in range(each):
                audio = f"{name}_10_{1000 + len(files)}.wav"
                # one phrase, which a tiny model learns in few steps
                first, second = 0, 1
                seconds = 0.5 if longest is None or files else longest
                write_audio(home / audio, [first, second], seconds, draw)
                transcript = form.format(
                    first=WORDS[first], second=WORDS[second]
                )
                files.append(
                    {
                        "Filename": audio,
                        "Comment": "",
                        "Prompt": {
                            "Prompt Text": transcript,
                            "Transcript": transcript,
                            "Category Description": category,
                            "Sub Category Description": "",
                        },
                        "Ratings": [],
                    }
                )
        contributor = {
            "Contributor ID": name.upper(),
            "Etiology": etiology,
            "Files": files,
        }
        text = json.dumps(contributor, indent=2)
        (home / f"{name}.json").write_text(text, encoding="utf-8")


def write_audio(path, words, seconds, draw) -> None:
    """Writes tones for words, and silence up to a duration.

    Arguments
    ---------
    path : Path
        A WAV file.
    words : list of int
        Places in ``WORDS``.
    seconds : float
        How long it is.
    draw : numpy.random.Generator
        Draws the noise.
    """
    time = numpy.arange(RATE // 4) / RATE
    wave = 0.01 * draw.standard_normal(round(seconds * RATE))
    for place, word in enumerate(words):
        tone = 0.3 * numpy.sin(1000 * (word + 2) * time)
        wave[place * len(tone) : (place + 1) * len(tone)] += tone
    soundfile.write(path, wave, RATE)


if __name__ == "__main__":
    make(sys.argv[1])
