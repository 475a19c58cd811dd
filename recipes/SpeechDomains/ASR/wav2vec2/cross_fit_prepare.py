"""Splits for cross-fitting: λ is chosen on one half of what a target has not heard.

A few dozen development utterances are too few to choose λ on, and small test
sets too few to tell models apart. Here all utterances of a domain, of its
training, development and test sets, are drawn anew into four parts of equal
size: by speaker, or by sentence where there are fewer speakers than
``FEWEST_SPEAKERS``. Of a fold, two parts are held out, and the target is trained on
the other two. λ is chosen on one part that was held out and tested on the
other, and the other way round, so that each is tested once, by a target and a λ
that do not know it. The second fold holds out the parts that the first is
trained on.

The halves of a domain that are held out are domains of their own for a study,
``DOMAIN-1`` and ``DOMAIN-2``: the test set of each is the selection set of the
other. ``DOMAIN`` itself has the training and selection sets of the target.

Example
-------
>>> rows = [{"spk_id": f"s{i % 12}", "wrd": str(i)} for i in range(96)]
>>> parts = draw_parts(rows, seed=0)
>>> [len(part) for part in parts]
[24, 24, 24, 24]
>>> speakers = [{row["spk_id"] for row in part} for part in parts]
>>> set.intersection(*speakers)
set()

Authors
 * The speechbrain_merge authors 2026
"""

from pathlib import Path

import numpy as np
from speech_domains_prepare import read_domain, write_manifest
from speechbrain_merge.records.files import write_whole

FEWEST_SPEAKERS = 8  # with fewer, sentences are drawn
SPLITS = ("train", "valid", "test")


def prepare_cross_fit(
    data_folder: str,
    save_folder: str,
    domains=("child_l2", "telephony"),
    fold: int = 1,
    valid: float = 0.1,
    seed: int = 1986,
) -> str:
    """Draws the splits of a fold, and lists the other domains beside them.

    Arguments
    ---------
    data_folder : str
        Holds ``csv/DOMAIN_{train,valid,test}.csv``.
    save_folder : str
        The data folder to write: ``csv`` with ``DOMAIN_{train,valid}.csv``,
        ``DOMAIN-1_{train,valid,test}.csv`` and ``DOMAIN-2_…`` of ``domains``.
        The lists of all others are copied.
    domains : list of str
        The domains to draw anew.
    fold : int
        1 or 2: which parts are held out.
    valid : float
        The share of the training parts that the target is selected on.
    seed : int
        Decides the parts; both folds need the same.

    Returns
    -------
    str
        ``save_folder``.

    Raises
    ------
    FileNotFoundError
        If a domain has no file for a split.
    ValueError
        If ``fold`` is neither 1 nor 2.
    """
    if fold not in (1, 2):
        raise ValueError(f"`fold` is {fold!r}, expected 1 or 2.")
    source, target = Path(data_folder).resolve(), Path(save_folder)
    home = target / "csv"
    home.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "csv").glob("*_*.csv")):
        if path.stem.rpartition("_")[0] not in domains:
            text = path.read_text(encoding="utf-8")
            text = text.replace("$data_root", str(source))
            write_whole(home / path.name, text)
    for domain in domains:
        rows = [
            row
            for split in SPLITS
            for row in read_domain(source / "csv" / f"{domain}_{split}.csv")
        ]
        for row in rows:
            row["wav"] = row["wav"].replace("$data_root", str(source))
        parts = draw_parts(rows, seed)
        if fold == 2:
            parts = parts[2:] + parts[:2]
        first, second, *heard = parts
        kept, chosen = _share(heard[0] + heard[1], valid, seed)
        for name, half in (("1", first), ("2", second)):
            for row in half:
                row["domain"] = f"{domain}-{name}"
        for name, test, other in (("1", first, second), ("2", second, first)):
            # Nothing is trained on these, but a study's data have three sets
            # of each domain, and no utterance twice
            train = kept[int(name) - 1 :: 2]
            write_manifest(home / f"{domain}-{name}_train.csv", train)
            write_manifest(home / f"{domain}-{name}_valid.csv", other)
            write_manifest(home / f"{domain}-{name}_test.csv", test)
        write_manifest(home / f"{domain}_train.csv", kept)
        write_manifest(home / f"{domain}_valid.csv", chosen)
    return str(target)


def draw_parts(rows: list, seed: int, number: int = 4) -> list:
    """Parts of as equal size as their speakers, or sentences, allow.

    Arguments
    ---------
    rows : list of dict
        Utterances, with ``spk_id`` and ``wrd``.
    seed : int
        Decides the order in which they are dealt out.
    number : int
        How many parts.

    Returns
    -------
    list of list of dict
    """
    parts: list = [[] for _ in range(number)]
    for group in _groups(rows, seed):
        min(parts, key=len).extend(group)
    return parts


def _groups(rows, seed):
    """Utterances that belong together, shuffled; the largest come first."""
    speakers = {row["spk_id"] for row in rows}
    key = "spk_id" if len(speakers) >= FEWEST_SPEAKERS else "wrd"
    groups: dict = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [groups[names[index]] for index in order]
    return sorted(shuffled, key=len, reverse=True)


def _share(rows, share, seed):
    """Some rows, and the others, which are a share of whole groups."""
    kept, chosen = [], []
    for group in _groups(rows, [seed, 1]):
        enough = len(chosen) >= share * len(rows)
        (kept if enough else chosen).extend(group)
    return kept, chosen
