"""The recipes that `tests/recipes/*.csv` list, and how a row is run.

There is a table for each corpus, with the columns of SpeechBrain's own tables,
and a row for each YAML. A row says with which flags the recipe runs on a
miniature of the corpus (`test_debug_flags`) and what it must leave behind
(`test_debug_checks`). Flags name everything under `tests/tmp`, as upstream's
do; a test puts a folder of its own there.

The miniature is made by `tests/corpora/CORPUS.py`, the name of the table in
lower case with `_` for `-`. Its function `make(folder)` writes what the flags
look for in `tests/tmp`: the corpus in exactly its layout, and tiny models. If it
has a function `check(row, output)`, that looks at the results of each run.

Example
-------
>>> "LibriSpeech" in {row["Dataset"] for row in rows()}
True
>>> checks_of("file_exists=[a.txt,b/c.txt]")
(['a.txt', 'b/c.txt'], [])
>>> checks_of("performance_check=[log.txt, train loss, <3.5, epoch: 2]")
([], [['log.txt', 'train loss', '<3.5', 'epoch: 2']])

Authors
 * The speechbrain_merge authors 2026
"""

import csv
import importlib
import operator
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = sorted((ROOT / "tests/recipes").glob("*.csv"))

COLUMNS = [
    "Task",
    "Dataset",
    "Script_file",
    "Hparam_file",
    "Data_prep_file",
    "Readme_file",
    "Result_url",
    "HF_repo",
    "test_debug_flags",
    "test_debug_checks",
    "performance",
]
"""The columns of SpeechBrain's tests/recipes/*.csv, in their order."""

COMPARED = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def rows(table=None):
    """The rows of a table, or of all, as dicts.

    Arguments
    ---------
    table : Path, optional
        One of `TABLES`.

    Yields
    ------
    dict
    """
    for path in TABLES if table is None else [table]:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def corpus_of(name: str):
    """The module that makes a corpus in miniature, or None.

    Arguments
    ---------
    name : str
        Name of a table, which is that of the corpus.

    Returns
    -------
    module or None
        With a function `make(folder)`.
    """
    module = name.lower().replace("-", "_")
    if not (ROOT / "tests/corpora" / f"{module}.py").is_file():
        return None
    return importlib.import_module(f"corpora.{module}")


def flags_of(row: dict, folder: Path) -> tuple:
    """The flags of a row with a folder in the place of `tests/tmp`.

    Arguments
    ---------
    row : dict
        Of a table.
    folder : Path
        Where `make` wrote to.

    Returns
    -------
    flags : list of str
    output : Path
        The folder of results. A row without `--output_folder` gets one.
    """
    given = row["test_debug_flags"].replace("tests/tmp", str(folder))
    flags = shlex.split(given)
    for flag in flags:
        if flag.startswith("--output_folder="):
            return flags, Path(flag.partition("=")[2])
    output = folder / row["Hparam_file"].replace("/", "-")
    return [*flags, f"--output_folder={output}"], output


def checks_of(text: str) -> tuple:
    """What a row's checks ask for.

    Arguments
    ---------
    text : str
        `file_exists=[FILE,…] performance_check=[FILE, VALUE, <N, epoch: N]`,
        either of them or both.

    Returns
    -------
    files : list of str
        Have to be there.
    values : list of list of str
        File, name of the value, bound, and what its line holds.

    Raises
    ------
    ValueError
        When something else is written there.
    """
    found = re.findall(r"(\w+)=\[(.*?)\]", text)
    rest = re.sub(r"(\w+)=\[(.*?)\]", "", text).strip()
    unknown = {key for key, _ in found} - {"file_exists", "performance_check"}
    if rest or unknown or not found:
        raise ValueError(f"checks {text!r}: {rest or unknown or 'none'}")
    listed = [(key, [x.strip() for x in v.split(",")]) for key, v in found]
    files = [x for key, each in listed if key == "file_exists" for x in each]
    return files, [each for key, each in listed if key == "performance_check"]


def failed_checks(row: dict, output: Path) -> list:
    """What a finished run lacks of what its row asks for.

    Arguments
    ---------
    row : dict
        Of a table.
    output : Path
        The folder of results.

    Returns
    -------
    list of str
        A sentence for each.
    """
    files, values = checks_of(row["test_debug_checks"])
    failed = [f"{x} is missing" for x in files if not (output / x).is_file()]
    for file, name, bound, where in values:
        lines = (output / file).read_text(encoding="utf-8").splitlines()
        line = next((line for line in lines if where in line), "")
        value = re.search(rf"{re.escape(name)}: *([-+.\de]+)", line)
        sign, limit = re.fullmatch(r"([<>=]+)(.*)", bound).groups()
        if value is None:
            failed.append(f"{file}: no {name!r} in a line with {where!r}")
        elif not COMPARED[sign](float(value[1]), float(limit)):
            failed.append(f"{file}, {where}: {name} is {value[1]}, not {bound}")
    return failed
