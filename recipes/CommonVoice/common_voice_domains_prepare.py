"""Prepares domains of Common Voice: languages, or accents of a language.

Common Voice is at https://commonvoice.mozilla.org/datasets, a download for each
language. It is read as it comes out of its archives::

    DATA/LANGUAGE/train.tsv, dev.tsv, test.tsv
         LANGUAGE/clip_durations.tsv             in recent releases
         LANGUAGE/clips/*.mp3

where DATA is the folder ``cv-corpus-…`` of a release. The tables are those of
release 17 to 22 (``client_id path sentence_id sentence sentence_domain up_votes
down_votes age gender accents variant locale segment``), and of older ones, in
which the column is called ``accent`` and holds codes such as ``rioplatense`` for
"Rioplatense: Argentina, Uruguay, este de Bolivia, Paraguay". No speaker is in two
of the three tables.

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

COLUMNS = ["ID", "duration", "wav", "spk_id", "domain", "language", "wrd"]
SPLITS = {"train": "train", "valid": "dev", "test": "test"}
KEYS = {"language", "accents", "variants", "code"}


def prepare_common_voice_domains(
    data_folder,
    save_folder,
    definitions,
    train_domains=(),
    valid_domains=(),
    test_domains=(),
    train_hours=None,
    most_utterances=None,
    seed=1986,
    skip_prep=False,
):
    """Writes ``<save_folder>/<domain>_<split>.csv``, where it is not there.

    Beside each, a JSON says what it was made from. One that was made from other
    tables or with other settings is written anew.

    Arguments
    ---------
    data_folder : str
        The folder with a folder for each language.
    save_folder : str
        Where the CSVs go.
    definitions : dict
        Domain to what it is: ``language`` (the folder, such as ``es``),
        perhaps ``accents`` or ``variants`` (names of which one has to be in
        that column), and ``code``, Whisper's code of the language where it is
        not the folder's name up to its dash.
    train_domains, valid_domains, test_domains : list of str
        Domains whose ``train``, ``dev`` and ``test`` are needed.
    train_hours : float, optional
        Draws no more than so many hours of each domain to train on.
    most_utterances : int, optional
        Draws no more than so many of each domain to select and to test on.
    seed : int
        Of what is drawn.
    skip_prep : bool
        Whether to write nothing.

    Raises
    ------
    FileNotFoundError
        Where a language, or a clip of it, is not there.
    ValueError
        Where a domain is not defined, or has no utterances.
    """
    if skip_prep:
        return
    wanted = {"train": train_domains, "valid": valid_domains}
    wanted["test"] = test_domains
    for split, domains in wanted.items():
        for domain in domains:
            if domain not in definitions:
                raise ValueError(
                    f"`definitions` has no domain '{domain}'; it has "
                    f"{', '.join(definitions)}."
                )
            table = Path(save_folder, f"{domain}_{split}.csv")
            record = table.with_suffix(".json")
            language = Path(
                data_folder, definitions[domain].get("language", "")
            )
            sources = [f"{SPLITS[split]}.tsv", "clip_durations.tsv"]
            made_from = {
                "definition": dict(definitions[domain]),
                "limit": train_hours if split == "train" else most_utterances,
                "seed": seed,
                "tables": contents_of(language / name for name in sources),
            }
            if (
                table.is_file()
                and record.is_file()
                and read_json(record) == made_from
            ):
                logger.info(f"{table} is there already.")
                continue
            rows = rows_of(
                Path(data_folder), domain, definitions[domain], split
            )
            random.Random(f"{seed} {domain} {split}").shuffle(rows)
            if split == "train" and train_hours is not None:
                rows = first_hours(rows, train_hours)
            elif split != "train":
                rows = rows[:most_utterances]
            table.parent.mkdir(parents=True, exist_ok=True)
            record.unlink(missing_ok=True)
            # Whole or not at all, also where two processes write it
            part = table.with_name(f"{table.name}.{os.getpid()}")
            with open(part, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                writer.writerows(sorted(rows))
            os.replace(part, table)
            write_whole(record, json.dumps(made_from, indent=1) + "\n")
            hours = sum(row[1] for row in rows) / 3600
            logger.info(f"{table}: {len(rows)} utterances, {hours:.1f} hours.")


def rows_of(data_folder, domain, definition, split):
    """The utterances of a domain in a split.

    Arguments
    ---------
    data_folder : Path
        The folder with a folder for each language.
    domain : str
        Its name.
    definition : dict
        What it is; see ``prepare_common_voice_domains``.
    split : str
        ``train``, ``valid`` or ``test``.

    Returns
    -------
    list of list
        The columns of each.
    """
    if "language" not in definition or set(definition) - KEYS:
        raise ValueError(
            f"Domain '{domain}' is {dict(definition)}; expected `language`, "
            "and perhaps `accents`, `variants` and `code`."
        )
    language = definition["language"]
    folder = data_folder / language
    table = folder / f"{SPLITS[split]}.tsv"
    if not table.is_file():
        raise FileNotFoundError(
            f"There is no {table}. `data_folder` must hold a folder for each "
            "language, with train.tsv, dev.tsv, test.tsv and clips, as it "
            "comes out of the archives at "
            "https://commonvoice.mozilla.org/datasets."
        )
    with open(table, newline="", encoding="utf-8") as file:
        clips = [
            clip
            for clip in csv.DictReader(
                file, delimiter="\t", quoting=csv.QUOTE_NONE
            )
            if belongs(clip, definition)
        ]
    if not clips:
        raise ValueError(
            f"Domain '{domain}' has no utterance in {table}: none has one of "
            f"{definition.get('accents') or definition.get('variants')}."
            if len(definition) > 1
            else f"{table} has no utterances."
        )
    # Up to release 4 names are without ending
    names = [
        re.sub(r"(\.mp3)?$", ".mp3", clip["path"], count=1) for clip in clips
    ]
    seconds = durations(folder, names)
    code = definition.get("code", language.partition("-")[0].lower())
    return [
        [
            f"{language}_{name[: -len('.mp3')]}",
            seconds[name],
            f"$data_root/{language}/clips/{name}",
            clip["client_id"],
            domain,
            code,
            clip["sentence"].strip(),
        ]
        for name, clip in zip(names, clips)
    ]


def belongs(clip, definition):
    """Whether a clip is of a domain: of one of its accents or variants.

    An accent is known by its name up to a colon or bracket, so that
    "Rioplatense" stands for "Rioplatense: Argentina, Uruguay, …". Speakers may
    name several, with commas or bars between them.

    Arguments
    ---------
    clip : dict
        A row of the table.
    definition : dict
        What the domain is.

    Returns
    -------
    bool

    Example
    -------
    >>> caribbean = "Caribe: Cuba, Colombia caribeña, México caribeño"
    >>> asked = {"language": "es", "accents": ["México", "mexicano"]}
    >>> [
    ...     belongs({"accents": accents}, asked)
    ...     for accents in ("México", "Monterrey|México", caribbean, "")
    ... ]
    [True, True, False, False]
    >>> belongs({"accent": "mexicano"}, asked)
    True
    """
    for key, columns in (
        ("accents", ("accents", "accent")),
        ("variants", ("variant",)),
    ):
        if not definition.get(key):
            continue
        told = next((clip[one] for one in columns if clip.get(one)), "")
        if not any(
            re.search(
                rf"(?:^|[|,;])\s*{re.escape(name)}\s*(?:$|[:(|,;])", told, re.I
            )
            for name in definition[key]
        ):
            return False
    return True


def durations(folder, names):
    """The seconds of clips: of the table that recent releases have, or read.

    Arguments
    ---------
    folder : Path
        Of a language.
    names : list of str
        Names of clips.

    Returns
    -------
    dict
        Name to seconds.
    """
    known, table = {}, folder / "clip_durations.tsv"
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as file:
            for clip, milliseconds in list(csv.reader(file, delimiter="\t"))[
                1:
            ]:
                known[clip] = int(milliseconds) / 1000
    unknown = [name for name in names if name not in known]
    with ThreadPoolExecutor() as readers:
        paths = [folder / "clips" / name for name in unknown]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} clips that the tables name are not there, "
                f"such as {missing[0]}: was the archive unpacked completely?"
            )
        for name, info in zip(unknown, readers.map(_info, paths)):
            known[name] = info.num_frames / info.sample_rate
    return known


def _info(path):
    return read_audio_info(str(path))


def first_hours(rows, hours):
    """The first rows that make no more than so many hours, one at least."""
    kept, seconds = [], 0.0
    for row in rows:
        seconds += row[1]
        if kept and seconds > 3600 * hours:
            break
        kept.append(row)
    return kept
