"""A domain heard in rooms and noise, composed of the recordings of others.

The utterances of some speech domains are put into simulated rooms and mixed
with recorded noise, by SpeechBrain's augmentations ``AddReverb`` and
``AddNoise``, once and for all: a domain like any other, ``rooms_{train,valid,
test}.csv``. Each set is made of the same set of its sources, so that what is
disjoint there, speakers or sentences, is disjoint here. No room is in two sets.
Training and selection have the first half of each noise recording, the test
the second.

The CSV files of all other domains are copied beside it, with the folder that
their audio is in, so that a study finds all domains in one data folder:

> python rooms_prepare.py DATA results/rooms
> python train.py hparams/benchmark.yaml --data_folder results/rooms \
>     --domains "[child_l2, digits, telephony, rooms]"

Example
-------
>>> import numpy as np
>>> room = draw_room((0.5, 0.5), (0.0, 0.0), np.random.default_rng(0))
>>> echo = room[1:] ** 2  # as strong as the direct sound, at 0 dB
>>> bool(np.isclose(echo.sum(), room[0] ** 2))
True
>>> bool(echo[7200:].sum() < 1e-5 * echo.sum())  # 60 dB lower after 0.5 s
True

Authors
 * The speechbrain_merge authors 2026
"""

import argparse
import csv
import hashlib
import io
from pathlib import Path
from typing import Optional

import numpy as np
import soundfile
import torch
from speech_domains_prepare import read_domain, write_manifest
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.once import once
from tqdm import tqdm

from speechbrain.augment.time_domain import AddNoise, AddReverb
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

RATE = 16000
ROOMS = {"train": 60, "valid": 10, "test": 30}  # of each set
UTTERANCES = {"train": 400, "valid": 48, "test": 160}  # at most
DOMAIN = "rooms"


def prepare_rooms(
    data_folder: str,
    save_folder: str,
    sources=("child_l2", "telephony"),
    reverberation=(0.3, 0.8),
    direct=(-3.0, 6.0),
    snr=(5.0, 20.0),
    utterances: Optional[dict] = None,
    seed: int = 1986,
) -> str:
    """Composes the domain and lists the others beside it, once.

    Arguments
    ---------
    data_folder : str
        Holds ``csv/DOMAIN_{train,valid,test}.csv`` and ``noise/``, recordings
        of 16 kHz.
    save_folder : str
        The data folder to write.
    sources : list of str
        The domains whose recordings are put into rooms.
    reverberation : tuple of float
        Seconds until the sound of a room has decayed by 60 dB: from, to.
    direct : tuple of float
        Ratio of direct to reverberant energy in dB: from, to.
    snr : tuple of float
        Ratio of speech to noise in dB: from, to.
    utterances : dict, optional
        How many of each set at most, drawn from all sources together: other
        numbers than 400 for ``train``, 48 for ``valid`` and 160 for ``test``.
    seed : int
        Decides all that is drawn.

    Returns
    -------
    str
        ``save_folder``.

    Raises
    ------
    FileNotFoundError
        If a source lacks a list, or there is no noise.
    ValueError
        If a recording has another rate than 16 kHz.
    """
    source, target = Path(data_folder).resolve(), Path(save_folder)
    lists = {
        split: [source / "csv" / f"{one}_{split}.csv" for one in sources]
        for split in ROOMS
    }
    rows = {
        split: [row for path in paths for row in read_domain(path)]
        for split, paths in lists.items()
    }
    utterances = {**UTTERANCES, **(utterances or {})}
    noises = sorted((source / "noise").glob("*.*"))
    if not noises:
        raise FileNotFoundError(
            f"{source / 'noise'} has no recordings of noise to mix speech with."
        )
    others = sorted((source / "csv").glob("*_*.csv"))
    settings = {
        "data_folder": str(source),
        "sources": list(sources),
        "reverberation": list(reverberation),
        "direct": list(direct),
        "snr": list(snr),
        "utterances": utterances,
        "seed": seed,
        "rooms": ROOMS,
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in others + noises
        },
    }

    def work():
        for part, (split, number) in enumerate(ROOMS.items()):
            random = np.random.default_rng([seed, part])
            all_rows = rows[split]
            drawn = random.permutation(len(all_rows))[: utterances[split]]
            chosen = [all_rows[index] for index in sorted(drawn)]
            rooms = [
                draw_room(reverberation, direct, random) for _ in range(number)
            ]
            halves = [_half(_read(path), split) for path in noises]
            # SpeechBrain's augmentations draw from torch's generator
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + part)
                _compose(target, source, split, chosen, rooms, halves, snr)
        for path in others:
            text = path.read_text(encoding="utf-8")
            text = text.replace("$data_root", str(source))
            write_whole(target / "csv" / path.name, text)

    once(
        target / "rooms.json",
        settings,
        work,
        advice=f"delete {target} to compose it again.",
    )
    return str(target)


def draw_room(reverberation, direct, random: np.random.Generator) -> np.ndarray:
    """The impulse response of a room: direct sound, and decaying noise after it.

    Arguments
    ---------
    reverberation : tuple of float
        Seconds until the echo has decayed by 60 dB: from, to.
    direct : tuple of float
        Ratio of the energies of direct sound and echo in dB: from, to.
    random : np.random.Generator
        Draws the room.

    Returns
    -------
    np.ndarray
        Samples at 16 kHz; the first is the direct sound, 1 without any echo.
    """
    seconds = random.uniform(*reverberation)
    ratio = 10 ** (random.uniform(*direct) / 20)
    time = np.arange(1, round(seconds * RATE)) / RATE
    # 60 dB are a factor of 1000 in amplitude
    echo = random.standard_normal(len(time)) * 1000 ** (-time / seconds)
    echo /= np.linalg.norm(echo) * ratio
    return np.concatenate([[1.0], echo])


def _compose(target, source, split, rows, rooms, noises, snr):
    """Composes one set, the audio first and its list last."""
    home = target / DOMAIN / split
    reverb = AddReverb(_listed(target, f"{split}-room", rooms))
    noise = AddNoise(
        _listed(target, f"{split}-noise", noises),
        snr_low=snr[0],
        snr_high=snr[1],
        pad_noise=True,
        normalize=True,
    )
    home.mkdir(parents=True, exist_ok=True)
    composed = []
    for row in tqdm(rows, desc=f"{DOMAIN} {split}", leave=False):
        signal = _read(row["wav"].replace("$data_root", str(source)))
        speech = torch.from_numpy(signal).unsqueeze(0)
        heard = noise(reverb(speech), torch.ones(1))[0].numpy()
        name = f"{DOMAIN}-{row['ID']}"
        soundfile.write(home / f"{name}.wav", heard, RATE, "PCM_16")
        where = f"$data_root/{DOMAIN}/{split}/{name}.wav"
        composed.append({**row, "ID": name, "wav": where, "domain": DOMAIN})
    (target / "csv").mkdir(exist_ok=True)
    write_manifest(target / "csv" / f"{DOMAIN}_{split}.csv", composed)


def _listed(target, name, signals):
    """Writes signals as files, and their list as the augmentations read it."""
    home = target / "heard_with"
    home.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["ID", "duration", "wav", "wav_format", "wav_opts"])
    for number, signal in enumerate(signals):
        path = home / f"{name}-{number}.wav"
        soundfile.write(path, signal, RATE, "FLOAT")
        writer.writerow([path.stem, len(signal) / RATE, path, "wav", ""])
    path = home / f"{name}.csv"
    write_whole(path, text.getvalue())
    return str(path)


def _half(signal, split):
    """The part of a noise recording that a set may have."""
    middle = len(signal) // 2
    return signal[middle:] if split == "test" else signal[:middle]


def _read(path):
    """Samples of one channel."""
    signal, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != RATE:
        raise ValueError(f"{path} has {rate} Hz, expected {RATE}.")
    return signal[:, 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Composes the domain `rooms`.")
    parser.add_argument("data_folder", help="holds csv/DOMAIN_SPLIT.csv, noise")
    parser.add_argument("save_folder", help="the data folder to write")
    parser.add_argument(
        "--sources",
        nargs="+",
        default=["child_l2", "telephony"],
        help="the domains whose recordings are put into rooms",
    )
    parser.add_argument("--seed", type=int, default=1986)
    prepare_rooms(**vars(parser.parse_args()))
