"""The sentences of recorded domains, spoken by a synthetic voice.

For a domain of which there is text and no recording, text-to-speech makes
training data. An expert of such data has learned the voice as well as the
words. Of a domain that was recorded, the same sentences spoken by the same
voice tell what the voice did, and this can be taken out again
(``speechbrain_merge.methods.Analogy``).

The voices are those of ``embedded_speech_prepare``: programs of Debian packages
that are downloaded and unpacked, not installed.

Example
-------
>>> spoken_as("SEVEN ONE FIVE")
'seven one five.'

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embedded_speech_prepare import make_utterance, unpack_packages, write_csv

from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

PACKAGES = ("espeak-ng", "flite")
SPLITS = ("train", "valid", "test")


@main_process_only
def prepare_synthetic_speech(
    recordings: str,
    folder: str,
    domains: list,
    voice: str = "flite_slt",
) -> str:
    """Makes ``DOMAIN_synthetic`` beside each domain, once.

    Arguments
    ---------
    recordings : str
        A data folder with ``csv/DOMAIN_SPLIT.csv``. It is only read.
    folder : str
        The data folder to write: all domains of the recordings, whose audio
        stays where it is, and the synthetic ones.
    domains : list of str
        The domains to be spoken.
    voice : str
        ``flite_slt``, ``flite_rms``, ``espeak_en-gb-scotland``, …

    Returns
    -------
    str
        The folder.
    """
    recordings, folder = Path(recordings).resolve(), Path(folder)
    files = sorted((recordings / "csv").glob("*_*.csv"))
    wanted = {
        "recordings": str(recordings),
        "texts": {file.name: file.read_text("utf-8") for file in files},
        "domains": list(domains),
        "voice": voice,
    }
    done = folder / "synthetic_speech.json"
    if done.is_file() and json.loads(done.read_text("utf-8")) == wanted:
        logger.info(f"The synthetic speech is prepared already: {folder}")
        return str(folder)
    missing = [
        f"{domain}_{split}.csv"
        for domain in domains
        for split in SPLITS
        if f"{domain}_{split}.csv" not in wanted["texts"]
    ]
    if missing:
        raise FileNotFoundError(
            f"{recordings / 'csv'} has no {', '.join(missing)}: expected a "
            "training, a development and a test set of each domain."
        )
    (folder / "csv").mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for name, text in wanted["texts"].items():
        text = text.replace("$data_root", str(recordings))
        (folder / "csv" / name).write_text(text, "utf-8")
    root = unpack_packages(PACKAGES, folder / "packages")
    for domain in domains:
        for split in SPLITS:
            rows = read_rows(recordings / "csv" / f"{domain}_{split}.csv")
            spoken = [
                synthetic_row(row, f"{domain}_synthetic", voice) for row in rows
            ]
            logger.info(f"{voice} speaks {len(rows)} sentences of {domain}")
            with ThreadPoolExecutor() as pool:
                durations = pool.map(
                    lambda row: make_utterance(row, root, folder), spoken
                )
                for row, duration in zip(spoken, durations):
                    row["duration"] = f"{duration:.3f}"
            write_csv(
                folder / "csv" / f"{domain}_synthetic_{split}.csv", spoken
            )
    done.write_text(json.dumps(wanted), "utf-8")
    return str(folder)


def read_rows(path: Path) -> list:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def synthetic_row(row: dict, domain: str, voice: str) -> dict:
    """The row of a sentence as a synthetic voice speaks it.

    Arguments
    ---------
    row : dict
        Of the recording.
    domain : str
        The synthetic domain.
    voice : str
        The voice.

    Returns
    -------
    dict
        With the ``text`` that is spoken.
    """
    name = f"{row['ID']}_synthetic"
    return {
        "ID": name,
        "wav": f"$data_root/wav/{domain}/{name}.wav",
        "spk_id": voice,
        "domain": domain,
        "wrd": row["wrd"],
        "text": spoken_as(row["wrd"]),
    }


def spoken_as(words: str) -> str:
    """What the voice is given: words as a sentence, not spelt out."""
    return f"{words.lower()}."
