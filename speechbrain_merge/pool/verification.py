"""Whether the candidates of a pool still are what its manifests say.

Example
-------
>>> import torch
>>> from speechbrain_merge.pool.run_folder import RunFolder
>>> run = RunFolder(getfixture("tmp_path") / "seed-1")
>>> record = {"name": "epoch-0001", "epoch": 1, "meta": {"WER": 9.5}}
>>> run.store(record, {"model.weight": torch.ones(2)})
>>> [(row.name, row.fault) for row in verify_pool(run.folder.parent)]
[('seed-1/epoch-0001', '')]

Authors
 * The speechbrain_merge authors 2026
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from speechbrain_merge.pool.manifest import Manifest
from speechbrain_merge.pool.recovery import candidate_in, strays_of
from speechbrain_merge.pool.run_folder import RunFolder, run_folders
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.weights import open_weights, verify


@dataclass(frozen=True)
class Verified:
    """The outcome of checking one file of a pool.

    Arguments
    ---------
    name : str
        Of the candidate; `<run>/base` for the base of a run.
    path : Path
        The file.
    digest : str
        What is on record.
    fault : str
        What is wrong; empty where the content is as recorded.
    """

    name: str
    path: Path
    digest: str
    fault: str


def verify_pool(pool) -> list[Verified]:
    """Reads every file of a pool and compares it with its manifest.

    Arguments
    ---------
    pool : str or Path
        Folder of a pool, or of one run.

    Returns
    -------
    list of Verified
        The base and the candidates of each run, and files that look like
        candidates and are in no manifest.

    Raises
    ------
    ValueError
        Where there is no pool.
    """
    pool = Path(pool)
    if (pool / Manifest.FILE).is_file():
        runs = [RunFolder(pool)]
    else:
        runs = run_folders(pool)
    if not runs:
        raise ValueError(f"{pool} is no pool: it has no <run>/{Manifest.FILE}")
    found = []
    for run in runs:
        base = run.read().base
        if base is not None:
            path = run.folder / base["file"]
            found.append(_verified(f"{run.run}/base", path, base["digest"]))
        records = run.read().candidates.values()
        for each, record in zip(run.candidates(), records):
            one = _verified(each.name, each.path, each.digest)
            fault = one.fault or _difference(each.path, record, run)
            found.append(replace(one, fault=fault))
        for path in strays_of(run):
            fault = f"{path} is in no line of {run.manifest.path}"
            name = f"{run.run}/{path.stem}"
            found.append(Verified(name, path, "", fault))
    return found


def _difference(path, record, run):
    """Where a candidate's own record is not that of the manifest."""
    try:
        own = candidate_in(path)
    except RecordError as error:
        return str(error)
    # as text, since a rate may be no number, which equals nothing
    texts = [
        json.dumps(
            {
                key: each[key]
                for key in sorted(each.keys() - {"event", "run", "digest"})
            }
        )
        for each in (own, record)
    ]
    if texts[0] == texts[1]:
        return ""
    return f"{path}: the record in it is not the line of {run.manifest.path}"


def _verified(name, path, known):
    try:
        with open_weights(path) as weights:
            verify(weights, known, str(path), path)
    except (ValueError, OSError) as error:
        return Verified(name, path, known, str(error))
    return Verified(name, path, known, "")
