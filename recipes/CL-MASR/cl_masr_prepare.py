"""Data preparation of CL-MASR, a benchmark of continual learning.

The data (https://zenodo.org/record/8065754) are 20 languages of Common Voice
13, each with about 10 hours to train on, 1 hour of development and 1 hour of
test recordings, in Common Voice's own layout::

    CL-MASR/LOCALE/train.tsv, dev.tsv, test.tsv
                   clips/common_voice_LOCALE_NUMBER.mp3

For each locale and split a manifest is written, ``LOCALE_SPLIT.csv``, with the
columns ``ID,duration,wav,spk_id,locale,wrd``. Sentences are cleaned as the
benchmark does: commas become blanks, ``$`` becomes ``S``, quotation marks are
dropped, and sentences of no or of more than 200 characters are left out.

Example
-------
>>> clean_sentence("It's  5$, isn’t it?")
'It s 5S isn t it?'

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Optional

from speechbrain_merge.records.contents import contents_of
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.reading import read_json

from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "locale", "wrd")
NEEDED = ("client_id", "path", "sentence")
LONGEST_SENTENCE = 200  # characters


def prepare_cl_masr(
    data_folder: str,
    save_folder: str,
    train_locales: list = (),
    valid_locales: list = (),
    test_locales: list = (),
    max_durations: tuple = (36000, 3600, 3600),
    avoid_if_longer_than: float = 10.0,
    seed: int = 0,
    skip_prep: bool = False,
):
    """Writes a manifest for each locale and split that is asked for.

    Arguments
    ---------
    data_folder : str
        The folder ``CL-MASR``; nothing is written there.
    save_folder : str
        Gets the manifests. One that is there already, with the same settings
        and from the same file, is kept.
    train_locales, valid_locales, test_locales : list of str
        The locales of each split, such as ``rw`` or ``fy-NL``.
    max_durations : list of float
        Seconds of training, development and test data of a locale at most;
        null takes all. More are drawn from by `seed`.
    avoid_if_longer_than : float
        Longer recordings, in seconds, are left out.
    seed : int
        Decides what is drawn.
    skip_prep : bool
        Whether to use the manifests as they are.

    Raises
    ------
    FileNotFoundError
        If a locale or a split is not there, with what to do.
    ValueError
        If a file is not of Common Voice's form, or a set is empty.
    """
    if skip_prep:
        return
    splits = {
        "train": train_locales,
        "dev": valid_locales,
        "test": test_locales,
    }
    if len(max_durations) != len(splits):
        raise ValueError(
            f"max_durations is {list(max_durations)}: expected three numbers, "
            "for the training, the development and the test set."
        )
    for (split, locales), most in zip(splits.items(), max_durations):
        for locale in locales:
            settings = {
                "max_duration": most,
                "avoid_if_longer_than": avoid_if_longer_than,
                "seed": seed,
            }
            write_manifest(
                Path(data_folder), Path(save_folder), locale, split, settings
            )


def write_manifest(
    data_folder: Path,
    save_folder: Path,
    locale: str,
    split: str,
    settings: dict,
):
    """Writes one manifest, unless it is there with the same settings.

    Arguments
    ---------
    data_folder : Path
        The folder ``CL-MASR``.
    save_folder : Path
        Gets ``LOCALE_SPLIT.csv``, and ``.json`` with what it was made from.
    locale : str
        The locale.
    split : str
        "train", "dev" or "test".
    settings : dict
        ``max_duration``, ``avoid_if_longer_than`` and ``seed``.
    """
    table = find_table(data_folder, locale, split)
    made_from = {**settings, "tables": contents_of([table])}
    target = save_folder / f"{locale}_{split}.csv"
    record = target.with_suffix(".json")
    if target.is_file() and record.is_file() and read_json(record) == made_from:
        return
    rows = [
        row
        for row in read_table(table, locale)
        if row["duration"] <= settings["avoid_if_longer_than"]
    ]
    rows = draw(rows, settings["max_duration"], settings["seed"])
    if not rows:
        raise ValueError(
            f"{table}: no utterance is left of those up to "
            f"{settings['avoid_if_longer_than']} seconds and "
            f"{LONGEST_SENTENCE} characters."
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    save_folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    write_whole(target, text.getvalue())
    write_whole(record, json.dumps(made_from) + "\n")
    hours = sum(row["duration"] for row in rows) / 3600
    logger.info(f"{target}: {len(rows)} utterances, {hours:.2f} hours")


def find_table(data_folder: Path, locale: str, split: str) -> Path:
    """The table of a locale and split, with durations where they are known.

    The benchmark's own scripts leave ``SPLIT_with_duration.tsv`` beside the
    original, which saves measuring.
    """
    folder = data_folder / locale
    for name in (f"{split}_with_duration.tsv", f"{split}.tsv"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder / split}.tsv is missing: download CL-MASR.tar.gz from "
        "https://zenodo.org/record/8065754, extract it, and give the folder "
        "CL-MASR as data_folder."
    )


def read_table(path: Path, locale: str) -> list:
    """Reads one table of Common Voice.

    Arguments
    ---------
    path : Path
        Tab-separated, with ``client_id``, ``path``, ``sentence`` and perhaps
        ``duration``.
    locale : str
        The locale.

    Returns
    -------
    list of dict
        Rows of a manifest, without sentences that are empty or too long. Of a
        clip, ``wav`` begins with ``$data_root``.
    """
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [
            key for key in NEEDED if key not in (reader.fieldnames or ())
        ]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}: expected a table "
                "of Common Voice 13."
            )
        for row in reader:
            words = clean_sentence(row["sentence"] or "")
            if not 1 <= len(words) <= LONGEST_SENTENCE:
                continue
            duration = row.get("duration")
            if duration is None:
                info = audio_io.info(str(path.parent / "clips" / row["path"]))
                duration = info.num_frames / info.sample_rate
            rows.append(
                {
                    "ID": Path(row["path"]).stem,
                    "duration": float(duration),
                    "wav": f"$data_root/{locale}/clips/{row['path']}",
                    "spk_id": row["client_id"],
                    "locale": locale,
                    "wrd": words,
                }
            )
    return rows


def clean_sentence(sentence: str) -> str:
    """A sentence as the benchmark trains on it and compares it."""
    sentence = sentence.replace("$", "S")
    sentence = re.sub("[,'’`\"]", " ", sentence)
    return re.sub(" +", " ", sentence).strip()


def draw(rows: list, seconds: Optional[float], seed: int) -> list:
    """Draws rows until they are as long as allowed.

    Arguments
    ---------
    rows : list of dict
        With ``duration``.
    seconds : float, optional
        The limit; None takes all rows.
    seed : int
        Decides what is drawn.

    Returns
    -------
    list of dict
        In the order of ``rows``. As in the benchmark, the row that exceeds the
        limit is in it.
    """
    if seconds is None or sum(row["duration"] for row in rows) <= seconds:
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    drawn, total = set(), 0.0
    for index in order:
        if total > seconds:
            break
        drawn.add(index)
        total += rows[index]["duration"]
    return [row for index, row in enumerate(rows) if index in drawn]
