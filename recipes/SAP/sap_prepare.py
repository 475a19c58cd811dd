"""Prepares the Speech Accessibility Project's corpus: a CSV for each split.

The corpus is given out under an agreement by
https://speechaccessibilityproject.beckman.illinois.edu. It is read as it comes
out of its archives, with a folder for each contributor::

    DATA/Train/CONTRIBUTOR/CONTRIBUTOR.json
                           CONTRIBUTOR_NUMBER_NUMBER.wav
         Dev/...

The names of splits may be in lower case, and may have a folder more between
them and the contributors. A contributor's JSON has ``Contributor ID``, perhaps
``Etiology``, and ``Files``, of which each has ``Filename`` and ``Prompt`` with
``Transcript``, ``Category Description`` (Digital Assistant Commands, Novel
Sentences, Spontaneous Speech Prompts) and ``Sub Category Description``. That is
the structure in the repositories speechaccessibility/SplitTrainTest (which makes
corpora of this form for its tests) and xiuwenz2/SAPC-template (the challenge's
preparation and scoring), which also have the marks of the transcripts: see
``two_transcripts``.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain_merge.records.contents import contents_of
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json

from speechbrain.dataio.dataio import read_audio_info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

COLUMNS = "ID duration wav spk_id etiology category wrd fluent".split()
CATEGORIES = {
    "Digital Assistant Commands": "commands",
    "Novel Sentences": "sentences",
    "Spontaneous Speech Prompts": "spontaneous",
}


def prepare_sap(
    data_folder,
    save_folder,
    splits=("Train", "Dev"),
    select_from="Dev",
    select_fraction=0.15,
    longest=30.0,
    seed=1986,
    skip_prep=False,
):
    """Writes ``<save_folder>/<split>.csv`` for each split, and ``select.csv``.

    Beside each, a JSON says what it was made from. One that was made of other
    transcripts or with other settings is written anew.

    Arguments
    ---------
    data_folder : str
        The folder with the splits.
    save_folder : str
        Where the CSVs go.
    splits : list of str
        Names of splits.
    select_from : str
        The split of which a part is drawn to select checkpoints and merges on.
    select_fraction : float
        How much of it, at random; every utterance of more than `longest`
        seconds is in it besides, as in Ducorroy and Riad (arXiv 2505.20477).
    longest : float
        Seconds that Whisper hears at once.
    seed : int
        Of what is drawn.
    skip_prep : bool
        Whether to write nothing.

    Raises
    ------
    FileNotFoundError
        Where a split is not there.
    ValueError
        Where a split has no utterances.
    """
    if skip_prep:
        return
    save_folder = Path(save_folder)
    for split in dict.fromkeys(splits):
        table = save_folder / f"{split}.csv"
        folder = split_folder(Path(data_folder), split)
        if is_of(table, folder):
            logger.info(f"{table} is there already.")
        else:
            rows = rows_of(Path(data_folder), folder)
            contributors = contents_of(sorted(folder.rglob("*.json")))
            made_from = {
                "entries": sorted(os.listdir(folder)),
                "contributors": contributors,
            }
            write_rows(table, rows, made_from)
    table = save_folder / "select.csv"
    path = save_folder / f"{select_from}.csv"
    made_from = {
        "tables": contents_of([path]),
        "select_fraction": select_fraction,
        "longest": longest,
        "seed": seed,
    }
    if recorded(table) != made_from:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        drawn = random.Random(seed).sample(
            range(len(rows)), max(1, round(select_fraction * len(rows)))
        )
        kept = [
            row
            for place, row in enumerate(rows)
            if place in set(drawn) or float(row[1]) > longest
        ]
        write_rows(table, kept, made_from)


def recorded(table):
    """What a CSV was made from, as far as it is there and on record."""
    record = table.with_suffix(".json")
    if not (table.is_file() and record.is_file()):
        return None
    return read_json(record)


def is_of(table, folder):
    """Whether a CSV was made from the contributors that there are now.

    The folders of contributors are listed, and their audio is not.
    """
    known = recorded(table)
    return (
        known is not None
        and known["entries"] == sorted(os.listdir(folder))
        and contents_of(known["contributors"]) == known["contributors"]
    )


def write_rows(table, rows, made_from):
    """Writes a CSV, whole or not at all, and beside it what it is made from."""
    table.parent.mkdir(parents=True, exist_ok=True)
    record = table.with_suffix(".json")
    record.unlink(missing_ok=True)
    part = table.with_name(f"{table.name}.{os.getpid()}")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    os.replace(part, table)
    write_whole(record, json.dumps(made_from, indent=1) + "\n")
    hours = sum(float(row[1]) for row in rows) / 3600
    logger.info(f"{table}: {len(rows)} utterances, {hours:.1f} hours.")


def split_folder(data_folder, split):
    """The folder of a split, whose name is in capitals or not."""
    found = [data_folder / split, data_folder / split.lower()]
    folder = next((path for path in found if path.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"There is no folder {found[0]}. `data_folder` must hold the "
            "splits of the Speech Accessibility Project, unpacked, with a "
            "folder for each contributor; the corpus is given out by "
            "https://speechaccessibilityproject.beckman.illinois.edu."
        )
    return folder


def rows_of(data_folder, folder):
    """The utterances of a split, in the order of their names.

    Arguments
    ---------
    data_folder : Path
        The folder with the splits.
    folder : Path
        That of one of them.

    Returns
    -------
    list of list
        The columns of each. Utterances without words are left out.
    """
    rows = {}
    for path in sorted(folder.rglob("*.json")):
        contributor = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(contributor, dict):
            continue  # another list that lies there
        for file in contributor.get("Files") or []:
            audio = path.parent / Path(file["Filename"]).name
            prompt = file["Prompt"]
            spoken, fluent = two_transcripts(prompt["Transcript"] or "")
            category = (prompt.get("Category Description") or "").strip()
            if spoken and audio.is_file():
                rows[audio.stem] = [
                    audio,
                    contributor.get("Contributor ID", path.stem).lower(),
                    (contributor.get("Etiology") or "").strip(),
                    CATEGORIES.get(category, category),
                    spoken,
                    # nothing but disfluencies has no other transcript
                    fluent or spoken,
                ]
    if not rows:
        raise ValueError(
            f"{folder} has no utterances: expected CONTRIBUTOR/"
            "CONTRIBUTOR.json with `Files`, and their audio beside it."
        )
    names = sorted(rows)
    with ThreadPoolExecutor() as readers:
        infos = readers.map(
            read_audio_info, [str(rows[name][0]) for name in names]
        )
        return [
            [
                name,
                info.num_frames / info.sample_rate,
                f"$data_root/{rows[name][0].relative_to(data_folder)}",
                *rows[name][1:],
            ]
            for name, info in zip(names, infos)
        ]


def two_transcripts(text):
    """What was said, and what was meant: with and without disfluencies.

    Transcripts mark disfluencies by round brackets, comments by square ones,
    and doubtful words by curly ones. The mark before a colon, as in
    ``{u: words}``, says of what kind they are. Spelled letters have ``~``
    between them. The first line may say of what kind the transcript is
    (``#dis``); after ``#ts``, each line begins with two times.

    Arguments
    ---------
    text : str
        Of the JSON.

    Returns
    -------
    spoken : str
    fluent : str

    Example
    -------
    >>> two_transcripts("[laughs] (I w-) (um) I want {u: the} blue one.")
    ('I w- um I want the blue one.', 'I want the blue one.')
    >>> two_transcripts("#ts\\n0.1 1.5 turn it\\n1.5 2.25 (cs: off) off")
    ('turn it off off', 'turn it off')
    """
    lines = text.replace("\u00a0", " ").strip().splitlines()
    if lines and lines[0].startswith("#"):
        timed = lines.pop(0).startswith("#ts")
        if timed:
            times = re.compile(r"^\s*[\d.]+\s+[\d.]+\s*")
            lines = [times.sub("", line) for line in lines]
    text = re.sub(r"\[[^\]]*\]", " ", " ".join(lines))
    text = re.sub(r"\{(?:[^{}:]*:)?([^{}]*)\}", r" \1 ", text)
    text = text.replace("*", " ")
    spoken = re.sub(r"\((?:[^():]*:)?([^()]*)\)", r" \1 ", text)
    fluent = re.sub(r"\([^()]*\)", " ", text)
    return " ".join(spoken.split()), " ".join(fluent.split())
