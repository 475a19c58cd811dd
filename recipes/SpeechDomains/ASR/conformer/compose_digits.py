"""Digit strings composed of single recordings, with noise and rooms.

A study that is to tell small differences apart needs many test words at an
error rate that is neither 0 nor 100. The digits of the speech domains are
strings of recordings of single digits with pauses between them. Here these are
cut at the pauses and joined anew, string by string: a speaker, a length, digits
of that speaker, pauses, perhaps a room, and noise at a ratio drawn for each
string. Training, selection and test sets use the recordings of their own split
alone; of each noise and each room, training and selection have the first half
of the noise and all rooms but the last, tests have the second half and all
rooms.

Each group of speakers becomes a domain of its own (``GROUP_{train,valid,test}
.csv``), so that models of disjoint speakers are models of two domains.

Example
-------
>>> import numpy as np
>>> pause, tone = np.zeros(1600), np.ones(3200)
>>> parts = cut(np.concatenate([pause, tone, pause, tone, pause]), 2)
>>> [len(part) for part in parts]
[3200, 3200]

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import hashlib
import io
from pathlib import Path
from typing import Optional

import numpy as np
import soundfile
from scipy.signal import fftconvolve
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.once import once
from tqdm import tqdm

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

RATE = 16000
SILENT = 1e-4  # of full scale
PAUSE = 0.06  # seconds of silence that part two digits
SPLITS = ("train", "valid", "test")
COLUMNS = ("ID", "duration", "wav", "spk_id", "domain", "wrd")


def compose_digits(
    data_folder: str,
    save_folder: str,
    groups: dict,
    utterances: dict,
    digits=(2, 5),
    snr=(0, 15),
    room: float = 0.5,
    tested: Optional[list] = None,
    domain: str = "digits",
    seed: int = 1986,
) -> str:
    """Composes the sets of all groups, unless they are there.

    Arguments
    ---------
    data_folder : str
        Holds ``csv/digits_{train,valid,test}.csv``, ``noise/`` and ``rir/``.
    save_folder : str
        Gets ``csv/GROUP_SPLIT.csv`` and the audio.
    groups : dict
        Name of a group to its speakers; None for all.
    utterances : dict
        Strings of each split: ``train``, ``valid``, ``test``.
    digits : tuple of int
        The least and the largest number of digits of a string.
    snr : tuple of float
        Ratio of speech to noise in dB: from, to.
    room : float
        The share of strings that are heard in a room.
    tested : list of str, optional
        The groups that have a test set. Default: all.
    domain : str
        The domain that is cut.
    seed : int
        Decides all that is drawn.

    Returns
    -------
    str
        ``save_folder``: a data folder for the recipe.

    Raises
    ------
    ValueError
        Where a speaker of a group has no recordings.
    """
    source, target = Path(data_folder), Path(save_folder)
    lists = {s: source / "csv" / f"{domain}_{s}.csv" for s in SPLITS}
    settings = {
        "groups": groups,
        "utterances": utterances,
        "digits": list(digits),
        "snr": list(snr),
        "room": room,
        "tested": tested,
        "domain": domain,
        "seed": seed,
        "sources": {
            split: hashlib.sha256(path.read_bytes()).hexdigest()
            for split, path in lists.items()
        },
    }

    def work():
        noises = [_read(p) for p in sorted((source / "noise").glob("*.*"))]
        rooms = [_read(p) for p in sorted((source / "rir").glob("*.*"))]
        for part, (split, path) in enumerate(lists.items()):
            recordings = _recordings(path, source)
            test = split == "test"
            halves = [
                noise[len(noise) // 2 :] if test else noise[: len(noise) // 2]
                for noise in noises
            ]
            for number, (group, speakers) in enumerate(groups.items()):
                if test and group not in (tested or groups):
                    continue
                _compose(
                    target,
                    group,
                    split,
                    _of(recordings, speakers, group, path),
                    utterances[split],
                    halves,
                    rooms if test else rooms[:-1] or rooms,
                    digits,
                    snr,
                    room,
                    np.random.default_rng([seed, part, number]),
                )

    once(
        target / "composed.json",
        settings,
        work,
        advice=f"delete {target} to compose them again.",
    )
    return str(target)


def cut(signal: np.ndarray, words: int) -> Optional[list]:
    """The recordings of single digits in a string of them.

    Arguments
    ---------
    signal : np.ndarray
        Samples.
    words : int
        How many there are.

    Returns
    -------
    list of np.ndarray or None
        None where the pauses give another number.
    """
    loud = np.flatnonzero(np.abs(signal) > SILENT)
    if not len(loud):
        return None
    breaks = np.flatnonzero(np.diff(loud) > PAUSE * RATE)
    starts = loud[np.concatenate([[0], breaks + 1])]
    ends = loud[np.concatenate([breaks, [len(loud) - 1]])] + 1
    if len(starts) != words:
        return None
    return [signal[start:end] for start, end in zip(starts, ends)]


def _recordings(path, folder):
    """Speaker to digit to the recordings that a list of strings has."""
    found, lost = {}, 0
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            words = row["wrd"].split()
            where = row["wav"].replace("$data_root", str(folder))
            parts = cut(_read(where), len(words))
            lost += parts is None
            for word, part in zip(words, parts or []):
                own = found.setdefault(row["spk_id"], {})
                own.setdefault(word, []).append(part)
    if lost:
        logger.info(f"{path}: {lost} strings could not be cut at their pauses.")
    return found


def _of(recordings, speakers, group, path):
    """The recordings of a group."""
    if speakers is None:
        return recordings
    missing = [one for one in speakers if one not in recordings]
    if missing:
        raise ValueError(
            f"`groups`: {group} names {', '.join(missing)}, and {path} has "
            f"{', '.join(sorted(recordings))}."
        )
    return {one: recordings[one] for one in speakers}


def _compose(
    target,
    group,
    split,
    recordings,
    number,
    noises,
    rooms,
    digits,
    snr,
    room,
    draw,
):
    """Composes one set, the audio first and its list last."""
    home = target / group / split
    home.mkdir(parents=True, exist_ok=True)
    rows, speakers = [], sorted(recordings)
    for index in tqdm(range(number), desc=f"{group} {split}", leave=False):
        speaker = speakers[index % len(speakers)]
        own = recordings[speaker]
        length = draw.integers(digits[0], digits[1], endpoint=True)
        words = draw.choice(sorted(own), length).tolist()
        parts = []
        for word in words:
            parts.append(np.zeros(int(draw.uniform(0.05, 0.15) * RATE)))
            parts.append(own[word][draw.integers(len(own[word]))])
        parts.append(np.zeros(int(draw.uniform(0.05, 0.15) * RATE)))
        signal = np.concatenate(parts)
        if rooms and draw.random() < room:
            response = rooms[draw.integers(len(rooms))]
            response = response / np.linalg.norm(response)
            start = int(np.abs(response).argmax())
            heard = fftconvolve(signal, response)
            signal = heard[start : start + len(signal)]
        if noises:
            noise = noises[draw.integers(len(noises))]
            place = draw.integers(len(noise)) + np.arange(len(signal))
            noise = noise[place % len(noise)]
            level = 10 ** (-draw.uniform(*snr) / 20)
            powers = np.linalg.norm(signal), np.linalg.norm(noise)
            signal = signal + noise * (level * powers[0] / max(powers[1], 1e-9))
        signal = 0.5 * signal / max(np.abs(signal).max(), 1e-9)
        name = f"{group}-{split}-{index:05d}"
        soundfile.write(home / f"{name}.wav", signal, RATE, "PCM_16")
        rows.append(
            {
                "ID": name,
                "duration": round(len(signal) / RATE, 4),
                "wav": f"$data_root/{group}/{split}/{name}.wav",
                "spk_id": speaker,
                "domain": group,
                "wrd": " ".join(words),
            }
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    (target / "csv").mkdir(exist_ok=True)
    write_whole(target / "csv" / f"{group}_{split}.csv", text.getvalue())


def _read(path):
    """Samples of one channel at the rate of the domains."""
    signal, rate = soundfile.read(path)
    if rate != RATE:
        raise ValueError(f"{path} has {rate} Hz, expected {RATE}.")
    return signal if signal.ndim == 1 else signal[:, 0]
