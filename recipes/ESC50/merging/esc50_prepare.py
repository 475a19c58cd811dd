"""Manifests of ESC-50: 2000 environmental sounds of 5 s, 50 classes, 5 folds.

ESC-50 (https://github.com/karolpiczak/ESC-50) is a folder with
``meta/esc50.csv`` and ``audio/*.wav``. Each of training, validation and test
gets whole folds, as in SpeechBrain's own recipe: a recording that was cut into
several clips is in one fold only.

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import json
from pathlib import Path

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

FOLDS = (1, 2, 3, 4, 5)
COLUMNS = ("filename", "fold", "target", "category")


def prepare_esc50(
    data_folder: str,
    audio_data_folder: str,
    save_json_train: str,
    save_json_valid: str,
    save_json_test: str,
    train_fold_nums: list,
    valid_fold_nums: list,
    test_fold_nums: list,
    skip_manifest_creation: bool = False,
):
    """Writes the three JSON manifests.

    Arguments
    ---------
    data_folder : str
        ESC-50, with ``meta/esc50.csv``.
    audio_data_folder : str
        Its ``audio``.
    save_json_train, save_json_valid, save_json_test : str
        The manifests.
    train_fold_nums, valid_fold_nums, test_fold_nums : list of int
        Which of the five folds each has.
    skip_manifest_creation : bool
        Whether to use the manifests as they are.

    Raises
    ------
    FileNotFoundError
        When the folder is not ESC-50, or a clip is missing.
    ValueError
        When a fold is unknown or in two sets, or a set is empty.
    """
    if skip_manifest_creation:
        return
    wanted = {
        save_json_train: ("train_fold_nums", train_fold_nums),
        save_json_valid: ("valid_fold_nums", valid_fold_nums),
        save_json_test: ("test_fold_nums", test_fold_nums),
    }
    check_folds(dict(wanted.values()))
    table = Path(data_folder) / "meta" / "esc50.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} was not found: data_folder must be ESC-50 "
            "(https://github.com/karolpiczak/ESC-50), with meta/esc50.csv and "
            "audio/*.wav."
        )
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{table} lacks the columns {', '.join(missing)}.")
    for path, (name, folds) in wanted.items():
        chosen = [row for row in rows if int(row["fold"]) in folds]
        if not chosen:
            raise ValueError(f"{table} has no clip of {name}: {folds}.")
        for row in chosen:
            wav = Path(audio_data_folder) / row["filename"]
            if not wav.is_file():
                raise FileNotFoundError(f"{table} lists {wav}: not found.")
        write_manifest(path, chosen)


def check_folds(folds: dict):
    """Refuses folds that do not exist, or that two sets share.

    Arguments
    ---------
    folds : dict
        Name of the setting to its list of folds.

    Example
    -------
    >>> check_folds({"train_fold_nums": [1, 2], "test_fold_nums": [2]})
    Traceback (most recent call last):
    ...
    ValueError: train_fold_nums and test_fold_nums share the folds [2].
    """
    for name, numbers in folds.items():
        unknown = sorted(set(numbers) - set(FOLDS))
        if unknown:
            raise ValueError(f"{name} has {unknown}: expected {list(FOLDS)}.")
    names = list(folds)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = sorted({*folds[first]} & {*folds[second]})
            if shared:
                raise ValueError(
                    f"{first} and {second} share the folds {shared}."
                )


def write_manifest(path: str, rows: list):
    """Writes one manifest in SpeechBrain's JSON form."""
    content = {
        Path(row["filename"]).stem: {
            "wav": row["filename"],
            "classID": int(row["target"]),
            "class_string": row["category"],
            "fold": int(row["fold"]),
        }
        for row in rows
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    logger.info(f"{path}: {len(content)} clips")
