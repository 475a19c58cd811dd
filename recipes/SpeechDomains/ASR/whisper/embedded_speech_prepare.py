"""Speech for a machine with no data set: domains out of Debian packages.

Five small English domains, hard enough for a small Whisper that adapting to
them pays, from packages that ``apt-get`` downloads without root and that are
unpacked, not installed:

* ``reverb``: real telephone prompts in a room of 1.5 s of reverberation
* ``accent``: a fast Scottish synthetic voice reading a story
* ``codes``: spelled codes of letters and digits, synthetic voice
* ``prompts``: real telephone prompts as they are (test only)
* ``stories``: another synthetic voice reading the story (test only)

The first three are domains to train experts on; the last two tell what an
expert or a merge forgets, and how it does where no expert was trained. A
sentence is in one domain and one split only: ``prompts`` and ``reverb`` share
the speaker, ``stories`` and ``accent`` the book, and no two sets a sentence.

Licences: the prompts are Allison Smith's, Asterisk core sounds, CC BY-SA 3.0;
the story is the first chapters of Alice's Adventures in Wonderland (public
domain), as Flite ships them; the voices are those of Flite (BSD-like) and
eSpeak NG (GPL-3, run as a program). The audio is made locally, and not passed
on.

Example
-------
>>> from embedded_speech_prepare import split_phrases
>>> split_phrases("Oh dear!  I shall be very late indeed, said the Rabbit.")
['I shall be very late indeed']

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import fftconvolve, resample_poly

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000
PACKAGES = (
    "asterisk-core-sounds-en-wav",
    "asterisk-core-sounds-en",
    "espeak-ng",
    "flite",
)
COLUMNS = ("ID", "duration", "wav", "spk_id", "domain", "wrd")
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()

# Sentences of train, valid and test; the prompts are few, so those that the
# reverberation expert is trained on are heard in several rooms
SIZES = {
    "prompts": (0, 0, 40),
    "reverb": (130, 24, 40),
    "stories": (0, 0, 40),
    "accent": (200, 24, 40),
    "codes": (200, 24, 40),
}
TRAIN_ROOMS = 2
SHORTEST, LONGEST = 0.8, 5.0  # seconds
REVERBERATION = 1.5  # seconds until the sound has decayed by 60 dB


@main_process_only
def prepare_embedded_speech(folder: str, seed: int = 1986) -> str:
    """Makes the domains, once: audio and ``csv/DOMAIN_SPLIT.csv``.

    Arguments
    ---------
    folder : str
        The data folder to write. Its CSV files name audio as ``$data_root/…``.
    seed : int
        Decides the splits, the codes and the rooms.

    Returns
    -------
    str
        The folder.
    """
    folder = Path(folder)
    done = folder / "embedded_speech.json"
    wanted = {"seed": seed, "sizes": SIZES, "packages": PACKAGES}
    wanted = json.loads(json.dumps(wanted))
    if done.is_file() and json.loads(done.read_text()) == wanted:
        logger.info(f"The speech domains are prepared already: {folder}")
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    root = unpack_packages(PACKAGES, folder / "packages")
    plan = plan_utterances(root, seed)
    logger.info(f"Making {len(plan)} utterances in {folder}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        durations = list(
            pool.map(lambda row: make_utterance(row, root, folder), plan)
        )
    for row, duration in zip(plan, durations):
        row["duration"] = f"{duration:.3f}"
    (folder / "csv").mkdir(exist_ok=True)
    for domain, sizes in SIZES.items():
        for split, size in zip(("train", "valid", "test"), sizes):
            if size:
                write_csv(
                    folder / "csv" / f"{domain}_{split}.csv",
                    [
                        r
                        for r in plan
                        if (r["domain"], r["split"]) == (domain, split)
                    ],
                )
    done.write_text(json.dumps(wanted, indent=2))
    return str(folder)


def unpack_packages(names: list, folder: str) -> Path:
    """Downloads Debian packages with what they need, and unpacks them.

    No root is needed and the system is not touched: apt-get works on lists
    and a cache of its own, and nothing is installed.

    Arguments
    ---------
    names : list of str
        The packages.
    folder : str
        Where the lists, the packages and the unpacked files go.

    Returns
    -------
    Path
        The folder of the unpacked files, a small Debian root.
    """
    folder = Path(folder).resolve()
    root = folder / "root"
    if root.is_dir():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"{tool} was not found: the embedded speech domains are made "
                "from Debian packages, on Debian, Ubuntu and their kin. "
                "Elsewhere give a data folder of your own (--data_folder) "
                "with csv/DOMAIN_SPLIT.csv files."
            )
    for part in ("state/lists/partial", "cache/archives/partial", "log"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::lists": folder / "state" / "lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": folder / "cache",
        "Dir::Log": folder / "log",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", "-y"]
    for key, value in settings.items():
        apt += ["-o", f"{key}={value}"]
    run(apt + ["update"])
    run(
        apt
        + ["install", "--download-only", "--reinstall"]
        + ["--no-install-recommends", *names]
    )
    draft = Path(tempfile.mkdtemp(dir=folder))
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(draft)])
    os.rename(draft, root)
    return root


def run(command: list, environment: dict = None):
    """Runs a command; its own words are in the error if it fails."""
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment
    )
    if result.returncode != 0:
        raise RuntimeError(
            f"'{' '.join(command)}' failed with exit status "
            f"{result.returncode}:\n{result.stdout[-2000:]}{result.stderr}"
        )


def plan_utterances(root: Path, seed: int) -> list:
    """Decides which sentence is spoken in which domain and split.

    Arguments
    ---------
    root : Path
        The unpacked packages.
    seed : int
        The seed of the shuffles.

    Returns
    -------
    list of dict
        Rows of the CSV files, with ``split`` and what the audio is made of.
    """
    shuffle = np.random.default_rng(seed).permutation
    prompts, phrases = read_prompts(root), read_phrases(root)
    prompts = [prompts[i] for i in shuffle(len(prompts))]
    phrases = [phrases[i] for i in shuffle(len(phrases))]
    codes = draw_codes(sum(SIZES["codes"]), seed)
    plan = []

    def plan_domain(domain, speaker, sources):
        for split, size in zip(("train", "valid", "test"), SIZES[domain]):
            if len(sources) < size:
                raise RuntimeError(
                    f"{len(sources)} sentences are left for {size} of "
                    f"{domain}_{split}: a package has changed."
                )
            rooms = TRAIN_ROOMS if (domain, split) == ("reverb", "train") else 1
            chosen = [sources.pop() for _ in range(size)] * rooms
            for number, source in enumerate(chosen):
                row = dict(source, domain=domain, split=split)
                row["ID"] = f"{domain}_{split}_{number:03d}"
                row["wav"] = f"$data_root/wav/{domain}/{row['ID']}.wav"
                row["spk_id"] = speaker
                row["seed"] = [seed, len(plan)]
                plan.append(row)

    plan_domain("prompts", "allison", prompts)
    plan_domain("reverb", "allison", prompts)
    plan_domain("stories", "flite_rms", phrases)
    plan_domain("accent", "espeak_en-gb-scotland", phrases)
    plan_domain("codes", "flite_slt", codes)
    return plan


def read_prompts(root: Path) -> list:
    """Lists the telephone prompts that are short sentences, each once."""
    folder = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    text = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    prompts = {}
    with gzip.open(text, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, sentence = line.partition(":")
            audio = folder / f"{name.strip()}.wav"
            words = to_words(sentence)
            # [a sound] is no speech, and a number has several readings
            if re.search(r"[\[\]<>]|\d\d", sentence) or len(words) < 2:
                continue
            if audio.is_file():
                duration = soundfile.info(audio).duration
                if SHORTEST <= duration <= LONGEST:
                    prompts.setdefault(" ".join(words), audio)
    return [
        {"wrd": sentence, "audio": str(prompts[sentence])}
        for sentence in sorted(prompts)
    ]


def read_phrases(root: Path) -> list:
    """Lists the phrases of the story, each once."""
    story = root / "usr/share/doc/flite/examples/alice"
    phrases = {
        " ".join(to_words(phrase)): phrase
        for phrase in split_phrases(story.read_text(encoding="utf-8"))
    }
    return [{"wrd": words, "text": phrases[words]} for words in sorted(phrases)]


def split_phrases(text: str) -> list:
    """Cuts a text at its punctuation into phrases of 4 to 10 words.

    Arguments
    ---------
    text : str
        Any text.

    Returns
    -------
    list of str
        The phrases, in the order of the text.
    """
    text = re.sub(r"-\s*\n\s*", "-", text)
    phrases = re.split(r"[.,;:!?()`\"*]|--|'(?!\w)|\n\s*\n", text)
    phrases = (" ".join(phrase.split()).strip("' ") for phrase in phrases)
    return [
        phrase
        for phrase in phrases
        if 4 <= len(phrase.split()) <= 10 and not re.search(r"\d", phrase)
    ]


def to_words(text: str) -> list:
    """Upper case, without punctuation, digits spelt out."""
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    text = re.sub(r"[^A-Z' ]", " ", text.upper().replace("’", "'"))
    return [word.strip("'") for word in text.split() if word.strip("'")]


def draw_codes(number: int, seed: int) -> list:
    """Draws different codes of five letters and digits, some of each."""
    random = np.random.default_rng([seed, number])
    symbols = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    codes = []
    while len(codes) < number:
        # letters are 26 of 36 symbols: as many digits as letters are drawn
        chances = np.where(np.char.isdigit(symbols), 1 / 20, 1 / 52)
        code = "".join(random.choice(symbols, size=5, p=chances))
        if not code.isdigit() and not code.isalpha() and code not in codes:
            codes.append(code)
    # the article would be read for the letter
    spoken = {"A": "ay"}
    return [
        {
            "wrd": " ".join(DIGITS[int(c)] if c.isdigit() else c for c in code),
            "text": ", ".join(spoken.get(c, c) for c in code),
        }
        for code in codes
    ]


def make_utterance(row: dict, root: Path, folder: Path) -> float:
    """Makes the audio of one row and returns its duration in seconds."""
    target = Path(row["wav"].replace("$data_root", str(folder)))
    target.parent.mkdir(parents=True, exist_ok=True)
    source = row.get("audio")
    if source is None:
        source = target.with_suffix(".tts.wav")
        synthesise(row["text"], row["spk_id"], source, root)
    signal, rate = soundfile.read(source, dtype="float32")
    if "audio" not in row:
        source.unlink()
    signal = resample_poly(signal, SAMPLE_RATE, rate)
    if row["domain"] == "reverb":
        signal = reverberate(signal, np.random.default_rng(row["seed"]))
    signal = 0.5 * signal / max(np.abs(signal).max(), 1e-5)
    soundfile.write(target, signal, SAMPLE_RATE, subtype="PCM_16")
    return len(signal) / SAMPLE_RATE


def synthesise(text: str, speaker: str, target: Path, root: Path):
    """Speaks a text into a file with a voice of the unpacked packages."""
    engine, _, voice = speaker.partition("_")
    libraries, data = find_engines(root)
    if engine == "espeak":
        command = [str(root / "usr/bin/espeak-ng"), f"--path={data}"]
        command += ["-v", voice, "-s", "200", "-w", str(target), text]
    else:
        command = [str(root / "usr/bin/flite"), "-voice", voice]
        command += ["-t", text, "-o", str(target)]
    run(command, dict(os.environ, LD_LIBRARY_PATH=libraries))


@lru_cache
def find_engines(root: Path) -> tuple:
    """Finds the folders of the libraries, and the one of eSpeak's data."""
    libraries = {str(file.parent) for file in root.glob("usr/lib/**/*.so*")}
    path = sorted(libraries) + [os.environ.get("LD_LIBRARY_PATH", "")]
    data = next(root.glob("usr/**/espeak-ng-data/phondata")).parent.parent
    return os.pathsep.join(path).rstrip(os.pathsep), data


def reverberate(signal: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Puts a signal into a room: exponentially decaying noise as its echo.

    Arguments
    ---------
    signal : np.ndarray
        The dry signal, one channel.
    random : np.random.Generator
        Draws the room.

    Returns
    -------
    np.ndarray
        The reverberant signal, with half a second of the echo after its end.
    """
    time = np.arange(int(REVERBERATION * SAMPLE_RATE)) / SAMPLE_RATE
    # 60 dB are a factor of 1000 in amplitude
    echo = random.standard_normal(len(time)) * 1000 ** (-time / REVERBERATION)
    echo[0] = 5.0  # the direct sound
    length = len(signal) + SAMPLE_RATE // 2
    return fftconvolve(signal, echo)[:length].astype(np.float32)


def write_csv(path: Path, rows: list):
    """Writes rows in SpeechBrain's CSV form."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
