"""Speech domains in small, and recipes as modules, for tests of recipes.

Example
-------
>>> folder = make_domains(getfixture("tmp_path"), ["read"], utterances=2)
>>> sorted(path.name for path in (folder / "csv").iterdir())
['read_test.csv', 'read_train.csv', 'read_valid.csv']

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from tiny_recipe import make_speech

COLUMNS = ("ID", "duration", "wav", "spk_id", "domain", "wrd")


def make_domains(folder, domains, utterances: int = 4) -> Path:
    """Writes ``csv/DOMAIN_SPLIT.csv`` and their audio, as recipes read them.

    Arguments
    ---------
    folder : str or Path
        The data folder.
    domains : list of str
        Names of the domains.
    utterances : int
        In each split of each domain.

    Returns
    -------
    Path
        The folder.
    """
    folder = Path(folder)
    (folder / "csv").mkdir(parents=True)
    for seed, domain in enumerate(domains):
        for part, split in enumerate(("train", "valid", "test")):
            made = make_speech(
                folder / domain / split, utterances, 10 * seed + part
            )
            with open(made, newline="") as file:
                rows = list(csv.DictReader(file))
            target = folder / "csv" / f"{domain}_{split}.csv"
            with open(target, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                for row in rows:
                    row["domain"], row["wrd"] = domain, row["wrd"].upper()
                    row["wav"] = row["wav"].replace(str(folder), "$data_root")
                    writer.writerow(row)
    return folder


@contextmanager
def same_stat(path):
    """Gives a file that is changed meanwhile the time that it had.

    Arguments
    ---------
    path : Path
        A file, which has to keep its size.
    """
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@contextmanager
def recipe_module(folder, script: str = "train"):
    """A script of a recipe as a module, beside others of the same name.

    Arguments
    ---------
    folder : str or Path
        The recipe's folder.
    script : str
        Name of the script.

    Yields
    ------
    module
    """
    folder = Path(folder)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(
            f"{folder.name}_{script}", folder / f"{script}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
