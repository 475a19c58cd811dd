"""Whether models of a study were trained on the data that there are now.

A training is known by its YAML and by the weights that it starts from (see
``study/trained.py``). Its data are known by their content: when a training
begins, the SHA-256 of each file that it reads its data from is written to
``data.json`` in its folder. These are

- what ``domain_files`` of the YAML names, for each of its lists of domains,
- every CSV, TSV, JSON or JSONL file whose path is a value of the YAML,
  outside the study's folder.

Keys that begin with ``test`` or ``retention`` do not count, as a training does
not read them. Audio is not read: a file of audio that is replaced under its
name is not noticed. Trainings of versions that left no ``data.json`` are taken
as they are.

A study looks before it trains anything. A training that was stopped does not
go on with other data either.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain_merge.records.checked import digest_text, fields, mapped
from speechbrain_merge.records.contents import changed_files, contents_of
from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.written_check import read_written, with_check
from speechbrain_merge.study.axes import DOMAIN
from speechbrain_merge.study.listed_domains import domains_of
from speechbrain_merge.study.nodes import Train
from speechbrain_merge.study.trainings import FILES, STUDY

FILE = "data.json"
"""In the folder of a training: the files of its data, and their content."""

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
"""Of files of data that a YAML may name."""

_TESTED = ("test", "retention")
_record = fields({"files": mapped(digest_text)})


def check_data(study) -> None:
    """Raises where data have changed since models were trained on them.

    Arguments
    ---------
    study : Study
        The study.

    Raises
    ------
    ValueError
        Naming the files, the models, and what to do.
    """
    run_on_main(_check_all, args=[study])


def keep_data(study, home: Path, training, overrides: Mapping, run) -> None:
    """Writes down what data a training begins with.

    Arguments
    ---------
    study : Study
        The study.
    home : Path
        The training's folder.
    training : Training
        The training.
    overrides : dict
        Of its YAML.
    run : Run
        Prepared by the recipe, so that its data are there.

    Raises
    ------
    ValueError
        Where the training was begun with other data.
    """
    made = getattr(run.brain.hparams, "data_folder", None)
    paths = data_files(training, overrides, study.folder, made)
    run_on_main(_keep, args=[study, home, paths])


def data_files(
    training, overrides: Mapping, study_folder, data_folder: Any = None
) -> list[str]:
    """The files that a training reads its data from.

    Arguments
    ---------
    training : Training
        The training.
    overrides : dict
        Overrides of its YAML.
    study_folder : str or Path
        The study's folder. What the YAML names there are results.
    data_folder : str, optional
        The data folder, where the YAML itself makes it.

    Returns
    -------
    list of str
        Their paths; some may not be there.
    """
    tree = training.tree(overrides)
    paths = []
    if FILES in tree:
        folder = data_folder if isinstance(data_folder, str) else None
        paths = [
            pattern.replace(DOMAIN, domain)
            for key, pattern, domain in domains_of(training, tree, folder)
            if not _is_tested(key) and key != training.key("tests")
        ]
    paths += [
        text
        for text in _texts(tree)
        if text.lower().endswith(SUFFIXES)
        and os.path.isfile(text)
        and _movable(text, study_folder) == text
    ]
    return list(dict.fromkeys(paths))


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data, but for those of tests."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            if not _is_tested(key):
                yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)


def _movable(path, folder):
    """A path that begins with a word for the study's folder if it is there."""
    absolute, root = os.path.abspath(path), os.path.abspath(folder)
    if not absolute.startswith(root + os.sep):
        return path
    return f"{STUDY}/{os.path.relpath(absolute, root)}"


def _is_tested(key):
    """Whether a key of the YAML is of tests alone."""
    return str(key).startswith(_TESTED)


def _check_all(study):
    """Raises for all trainings of the study together."""
    homes: dict[str, list[Path]] = {}
    known: dict[str, Optional[str]] = {}
    for seed, nodes in study.wanted().items():
        for node in nodes:
            if not isinstance(node, Train):
                continue
            home = study.folder / f"seed-{seed}" / "models" / node.name
            for path, content in _known(study, home).items():
                if path not in known:
                    known[path] = contents_of([path]).get(path)
                if known[path] not in (None, content):
                    homes.setdefault(path, []).append(home)
    _refuse(homes)


def _keep(study, home, paths):
    """Writes the record, or compares with the one that there is."""
    path = home / FILE
    if path.is_file():
        changed = changed_files(_known(study, home))
        _refuse({file: [home] for file in changed})
    elif paths:
        files = {
            _movable(file, study.folder): content
            for file, content in contents_of(paths).items()
        }
        text = json.dumps(with_check({"files": files}), indent=1)
        write_whole(path, text + "\n")


def _known(study, home):
    """The files of a training's data, and the content that they had."""
    path = home / FILE
    if not path.is_file():
        return {}
    files = _record(read_written(path), str(path))["files"]
    return {
        os.path.join(study.folder, file.removeprefix(f"{STUDY}/"))
        if file.startswith(f"{STUDY}/")
        else file: content
        for file, content in files.items()
    }


def _refuse(homes):
    """Raises where there are changed files, with the models of each."""
    if not homes:
        return
    described = "; ".join(
        f"{path} ({', '.join(dict.fromkeys(home.name for home in of))})"
        for path, of in homes.items()
    )
    folders = dict.fromkeys(str(home) for of in homes.values() for home in of)
    raise ValueError(
        "Data have changed since models were trained on them, which the "
        f"brackets name: {printable(described)}. Put back what the files were, choose "
        "another folder for the study, or train these models again: delete "
        f"{', '.join(folders)}."
    )
