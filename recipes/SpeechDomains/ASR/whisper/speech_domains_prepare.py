"""Manifests of one run over a folder of speech domains.

A domain is a set of SpeechBrain CSV files ``csv/DOMAIN_train.csv``,
``csv/DOMAIN_valid.csv`` and ``csv/DOMAIN_test.csv`` with the columns
``ID,duration,wav,spk_id,domain,wrd``, where ``wav`` may start with
``$data_root``. From them a run gets its own training and selection sets: of
some domains, of so many hours, of a named part of the development sets.

Example
-------
>>> from speech_domains_prepare import draw_hours
>>> rows = [{"ID": i, "duration": 1.0 + i % 10} for i in range(1000)]
>>> drawn = draw_hours(rows, hours=0.5, seed=0)
>>> sum(row["duration"] for row in drawn) <= 1800
True
>>> len(drawn) > 300  # the mean duration is still 5.5 seconds
True

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import io
import json
from pathlib import Path
from typing import Optional

import numpy as np
from speechbrain_merge.records.contents import contents_of
from speechbrain_merge.records.files import write_whole

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "domain", "wrd")
WINDOW = 30  # seconds that Whisper hears at once
STRATA = 10
FILES = {
    "domains": "csv/{domain}_train.csv",
    "valid_domains": "csv/{domain}_valid.csv",
    "test_domains": "csv/{domain}_test.csv",
}


def prepare_speech_domains(
    data_folder: str,
    save_folder: str,
    train_domains: list,
    test_domains: list = (),
    valid_domains: Optional[list] = None,
    train_hours: Optional[float] = None,
    select_fraction: float = 1.0,
    test_fraction: float = 1.0,
    seed: int = 1986,
    skip_prep: bool = False,
    domain_files: Optional[dict] = None,
):
    """Checks the domains and writes the manifests of a run.

    ``train.csv`` joins the training sets of the run's domains, without what is
    longer than Whisper's window. ``valid.csv`` joins their selection sets, and
    ``valid_DOMAIN.csv`` is the selection set of each, ``test_DOMAIN.csv`` the test
    set.

    Arguments
    ---------
    data_folder : str
        Holds ``csv/DOMAIN_SPLIT.csv``.
    save_folder : str
        Where the manifests go.
    train_domains : list of str
        The domains to train on; may be empty.
    test_domains : list of str
        The domains to test on.
    valid_domains : list of str, optional
        The domains to select on (default: those to train on).
    train_hours : float, optional
        Train on so many hours only, over all domains, drawn so that the
        durations are distributed as before. Fewer hours are a part of more.
    select_fraction : float
        Select on this part of each development set, drawn in the same way
        after every utterance of more than 30 seconds.
    test_fraction : float
        Test on this part of each test set, drawn likewise.
    seed : int
        Decides what is drawn.
    skip_prep : bool
        Whether to use the manifests as they are.
    domain_files : dict, optional
        Where the sets are in the data folder, if not in
        ``csv/DOMAIN_SPLIT.csv``: a path with ``{domain}`` for each of
        ``domains`` (to train on), ``valid_domains`` and ``test_domains``.

    Raises
    ------
    FileNotFoundError
        If a domain has no file for a split.
    ValueError
        If a file lacks a column, a domain is empty, or an ID stands twice.
    """
    if skip_prep:
        return
    if valid_domains is None:
        valid_domains = train_domains
    for name, fraction, whole in (
        ("select_fraction", select_fraction, "development"),
        ("test_fraction", test_fraction, "test"),
    ):
        if not 0 < fraction <= 1:
            raise ValueError(
                f"{name} is {fraction}, expected a part of the {whole} set: "
                "more than 0, at most 1."
            )
    sources = [(domain, "train") for domain in train_domains]
    sources += [(domain, "valid") for domain in valid_domains]
    sources += [(domain, "test") for domain in test_domains]
    files = {**FILES, **(domain_files or {})}
    of_split = {
        "train": files["domains"],
        "valid": files["valid_domains"],
        "test": files["test_domains"],
    }
    paths = {
        (domain, split): Path(data_folder)
        / of_split[split].replace("{domain}", domain)
        for domain, split in sources
    }
    sets = {source: read_domain(path) for source, path in paths.items()}
    check_ids(paths, sets)
    save_folder = Path(save_folder)
    wanted = {
        "train_domains": list(train_domains),
        "valid_domains": list(valid_domains),
        "train_hours": train_hours,
        "select_fraction": select_fraction,
        "test_fraction": test_fraction,
        "test_domains": list(test_domains),
        "seed": seed,
        "sources": contents_of(paths.values()),
    }
    done = save_folder / "manifests.json"
    if done.is_file() and json.loads(done.read_text()) == wanted:
        logger.info(f"The manifests are prepared already: {save_folder}")
        return
    save_folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)

    train = [row for d in train_domains for row in sets[d, "train"]]
    short = [row for row in train if row["duration"] <= WINDOW]
    if len(short) < len(train):
        logger.info(
            f"{len(train) - len(short)} training utterances of more than "
            f"{WINDOW} s are left out: Whisper hears {WINDOW} s at once."
        )
    if train_hours is not None:
        short = draw_hours(short, train_hours, seed)
    write_manifest(save_folder / "train.csv", short)

    valid = {d: sets[d, "valid"] for d in valid_domains}
    for domain, rows in valid.items():
        valid[domain] = draw_selection(rows, select_fraction, seed)
        write_manifest(save_folder / f"valid_{domain}.csv", valid[domain])
    joined = [row for rows in valid.values() for row in rows]
    write_manifest(save_folder / "valid.csv", joined)
    for domain in test_domains:
        rows = draw_selection(sets[domain, "test"], test_fraction, seed)
        write_manifest(save_folder / f"test_{domain}.csv", rows)
    write_whole(done, json.dumps(wanted, indent=2))


def read_domain(path: Path) -> list:
    """Reads and checks one CSV file of a domain.

    Arguments
    ---------
    path : Path
        ``csv/DOMAIN_SPLIT.csv``.

    Returns
    -------
    list of dict
        Its rows, with ``duration`` as a number.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it lacks a column, has no rows, or a duration is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} was not found. A domain is a set of files "
            "DATA_FOLDER/csv/DOMAIN_SPLIT.csv, SPLIT being train, valid or "
            "test, unless `domain_files` of the YAML says otherwise, with the "
            f"columns {','.join(COLUMNS)}."
        )
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise ValueError(
                f"{path} lacks the column {', '.join(missing)}: expected "
                f"{','.join(COLUMNS)}, found {','.join(found)}."
            )
        rows = list(reader)
    if not rows:
        raise ValueError(f"{path} has no utterances.")
    for row in rows:
        try:
            row["duration"] = float(row["duration"])
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: the duration of {row['ID']} is {row['duration']!r}, "
                "expected seconds."
            )
    return rows


def check_ids(paths: dict, sets: dict):
    """Raises where an ID stands twice in what is read as one set.

    Arguments
    ---------
    paths : dict
        Domain and split to the CSV file. The training sets of all domains are
        one set, and so are the development sets; each test set is by itself.
    sets : dict
        Domain and split to rows.

    Raises
    ------
    ValueError
        With the ID and the files.
    """
    seen: dict = {}
    for (domain, split), rows in sets.items():
        path = paths[domain, split]
        together = path if split == "test" else split
        for row in rows:
            other = seen.setdefault((together, row["ID"]), path)
            if other is not path:
                raise ValueError(
                    f"{row['ID']} is an ID in {other} and in {path}, which "
                    "are read as one set: give one of the two another ID."
                )
        if len({row["ID"] for row in rows}) < len(rows):
            ids = [row["ID"] for row in rows]
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(
                f"{path}: the ID {twice} stands there more than once."
            )


def draw_hours(rows: list, hours: float, seed: int) -> list:
    """Draws a training subset of so many hours, with the same durations.

    Arguments
    ---------
    rows : list of dict
        Utterances with ``duration`` in seconds.
    hours : float
        The size wanted; the subset is just below it.
    seed : int
        The seed of the draw.

    Returns
    -------
    list of dict
        The subset, in the order of ``rows``.
    """
    total = sum(row["duration"] for row in rows)
    if hours <= 0:
        raise ValueError(f"train_hours is {hours}, expected more than 0.")
    if hours * 3600 >= total:
        logger.warning(
            f"train_hours is {hours}, and there are only "
            f"{total / 3600:.2f} hours: all are used."
        )
        return rows
    drawn = set()
    for stratum in strata(rows, seed):
        seconds = sum(rows[i]["duration"] for i in stratum)
        allowed = hours * 3600 * seconds / total
        for i in stratum:
            allowed -= rows[i]["duration"]
            if allowed < 0:
                break
            drawn.add(i)
    return [row for i, row in enumerate(rows) if i in drawn]


def draw_selection(rows: list, fraction: float, seed: int) -> list:
    """Draws the part of a set on which models are selected, or tested.

    Arguments
    ---------
    rows : list of dict
        Utterances with ``duration`` in seconds.
    fraction : float
        The part wanted, by number of utterances. Every utterance of more than
        30 seconds is in it, even where that makes it larger.
    seed : int
        The seed of the draw.

    Returns
    -------
    list of dict
        The part drawn, in the order of ``rows``.
    """
    long = {i for i, row in enumerate(rows) if row["duration"] > WINDOW}
    rest = [i for i in range(len(rows)) if i not in long]
    number = max(1, round(fraction * len(rows))) - len(long)
    drawn = set(long)
    if number > 0:
        # the first of every stratum, then the second of every stratum, …
        layers = strata([rows[i] for i in rest], seed)
        order = sorted(
            (place / len(stratum), number_, index)
            for number_, stratum in enumerate(layers)
            for place, index in enumerate(stratum)
        )
        drawn |= {rest[index] for _, _, index in order[:number]}
    return [row for i, row in enumerate(rows) if i in drawn]


def strata(rows: list, seed: int) -> list:
    """Parts rows into equally many short, …, long ones, each part shuffled.

    Arguments
    ---------
    rows : list of dict
        Utterances with ``duration`` in seconds.
    seed : int
        The seed of the shuffle.

    Returns
    -------
    list of list of int
        Indices into ``rows``.
    """
    order = np.argsort([row["duration"] for row in rows], kind="stable")
    random = np.random.default_rng(seed)
    parts = np.array_split(order, min(STRATA, max(len(rows), 1)))
    return [random.permutation(part).tolist() for part in parts]


def write_manifest(path: Path, rows: list):
    """Writes rows in SpeechBrain's CSV form, and says how much it is.

    Of a study's models that are made side by side, several may prepare the same
    manifests, and one read what another writes: so each is written whole.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
    seconds = sum(row["duration"] for row in rows)
    logger.info(f"{path}: {len(rows)} utterances, {seconds / 60:.1f} minutes")
