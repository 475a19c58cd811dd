"""Prepares LibriSpeech: a CSV for each split.

LibriSpeech is at https://www.openslr.org/12. It is read as it comes out of its
archives, with ``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`` and
``SPEAKER-CHAPTER.trans.txt`` beside these.

The function is called as that of SpeechBrain's ``recipes/LibriSpeech/
librispeech_prepare.py`` and writes the same columns, so that in a checkout of
SpeechBrain either file serves these recipes.

Example
-------
>>> line = "84-121123-0000 GO DO YOU HEAR"
>>> transcripts([line])
{'84-121123-0000': 'GO DO YOU HEAR'}

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.dataio.dataio import read_audio_info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

COLUMNS = ["ID", "duration", "wav", "spk_id", "wrd"]


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=(),
    dev_splits=(),
    te_splits=(),
    skip_prep=False,
):
    """Writes ``<save_folder>/<split>.csv`` for every split that is not there.

    Arguments
    ---------
    data_folder : str
        The folder ``LibriSpeech``.
    save_folder : str
        Where the CSVs go.
    tr_splits, dev_splits, te_splits : list of str
        Names of splits, such as ``train-clean-100``.
    skip_prep : bool
        Whether to write nothing.

    Raises
    ------
    FileNotFoundError
        When a split is not there.
    ValueError
        When a split lacks audio or transcripts.
    """
    if skip_prep:
        return
    for split in dict.fromkeys([*tr_splits, *dev_splits, *te_splits]):
        table = Path(save_folder, f"{split}.csv")
        if table.is_file():
            logger.info(f"{table} is there already.")
            continue
        rows = rows_of(Path(data_folder), split)
        table.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, also where two processes write it
        part = table.with_name(f"{table.name}.{os.getpid()}")
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        os.replace(part, table)
        logger.info(f"{table}: {len(rows)} utterances.")


def rows_of(data_folder, split):
    """The utterances of a split, in the order of their names.

    Arguments
    ---------
    data_folder : Path
        The folder ``LibriSpeech``.
    split : str
        One of its folders.

    Returns
    -------
    list of list
        ID, duration in seconds, path, speaker and chapter, and words of each.
    """
    folder = data_folder / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. `data_folder` must be the folder "
            "LibriSpeech as it comes out of the archives at "
            "https://www.openslr.org/12, with all splits that the YAML names."
        )
    audio = {path.stem: path for path in folder.glob("*/*/*.flac")}
    words = {}
    for path in folder.glob("*/*/*.trans.txt"):
        words.update(transcripts(path.read_text("utf-8").splitlines()))
    odd = sorted(set(audio) ^ set(words))
    if odd or not audio:
        raise ValueError(
            f"{folder} has {len(audio)} files of audio and {len(words)} "
            f"transcripts, which must be as many, and not none. "
            f"{'Only one of the two: ' + ', '.join(odd[:3]) if odd else ''}"
        )
    names = sorted(audio)
    with ThreadPoolExecutor() as readers:
        infos = readers.map(read_audio_info, [str(audio[n]) for n in names])
        return [
            [
                name,
                info.num_frames / info.sample_rate,
                f"$data_root/{audio[name].relative_to(data_folder).as_posix()}",
                name.rpartition("-")[0],
                words[name],
            ]
            for name, info in zip(names, infos)
        ]


def transcripts(lines):
    """Lines of a ``.trans.txt`` as a dict from the name to the words."""
    split = (line.strip().partition(" ") for line in lines if line.strip())
    return {name: words for name, _, words in split}
