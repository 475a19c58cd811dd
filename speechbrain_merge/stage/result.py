"""The outcome of a merge stage, and how it is found again.

A ``MergeResult`` is kept in ``result.json`` beside the merged weights, with the
fingerprint of everything that decided it, the digest of the weights and a check
of all that. So the same question is not worked out twice, and neither weights
that were exchanged since nor an error rate that was edited are taken for the
outcome. A record that was changed is made anew, from the trials in the journal.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.pool.on_record import MERGED, RESULT
from speechbrain_merge.records.checked import (
    anything,
    digest_text,
    fields,
    file_name,
    listed,
    mapped,
    number,
    optional,
    plain_float,
    text,
    truth,
)
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import remove_stale, write_whole
from speechbrain_merge.records.folders import remove_stale_folders
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.records.written_check import (
    CHECK,
    with_check,
    without_check,
)
from speechbrain_merge.weights import digest
from speechbrain_merge.weights.replacing import keep_damaged

logger = get_logger(__name__)

_stored = fields(
    {
        "context": digest_text,
        "digest": digest_text,
        "result": fields(
            {
                "path": file_name,
                "name": text(),
                "candidates": listed(text()),
                "selected": listed(text()),
                "method": lambda value, where: fields({"name": text()})(
                    mapped(anything())(value, where), where
                ),
            },
            {
                "value": optional(plain_float),
                "trials": listed(fields({}, {"accepted": optional(truth)})),
                "savings": mapped(anything()),
                "seconds": number(0),
                "reused": truth,
            },
            unknown="refuse",
        ),
    },
    {"about": mapped(text())},
)

_SAID = {
    "candidates": "the candidates",
    "base": "the base",
    "beside": "the weights of modules that are not merged",
    "selection": "the selection set",
    "text": "the code of the recipe",
    "packages": "the versions of installed packages",
    "hparams": "the recipe's hyperparameters, or what its Brain holds",
    "code": "the code of the merging method",
    "files": "the files of the merging method",
}
"""What decided a result, for people; others are keys of the stage."""


def read_result(path: Path) -> dict:
    """The content of ``result.json``.

    Arguments
    ---------
    path : Path
        The file.

    Returns
    -------
    dict
        ``context``, ``digest`` and ``result``, and the ``check`` where there is
        one.

    Raises
    ------
    RecordError
        When it is no such record, or was changed since it was written.
    """
    record = read_json(path)
    without_check(record, str(path))
    return _stored(record, str(path))


@dataclasses.dataclass
class MergeResult:
    """The result of a merge stage.

    Arguments
    ---------
    path : Path
        The merged weights.
    name : str
        Of the stage.
    candidates : list of str
        Names of all that took part.
    selected : list of str
        Names of those merged.
    method : dict
        The method's `name` and its parameters, as the search left them.
    value : float, optional
        Error rate on the selection set in percent, if it was scored.
    trials : list of dict
        Every trial of the search.
    savings : dict
        What racing saved.
    seconds : float
        Wall time of search and merge.
    reused : bool
        Whether an earlier result of the same content was found.
    """

    path: Path
    name: str
    candidates: list
    selected: list
    method: dict
    value: Optional[float] = None
    trials: list = dataclasses.field(default_factory=list)
    savings: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reused: bool = False

    @property
    def coefficients(self):
        """The coefficients that a search has found, or None."""
        best = [trial for trial in self.trials if trial["accepted"]]
        return best[-1].get("parameters") if best else None


def clear_stage(folder: Path):
    """Removes what killed processes left in the folder of a stage.

    Arguments
    ---------
    folder : Path
        Of the stage; perhaps not there yet.
    """
    if folder.is_dir():
        remove_stale(folder)
        remove_stale_folders(folder)


def known_result(job) -> Optional[MergeResult]:
    """An earlier result of the same job, if it is there and whole.

    Arguments
    ---------
    job : MergeJob
        What is asked.

    Returns
    -------
    MergeResult or None
    """
    record, path = job.folder / RESULT, job.folder / MERGED
    if not record.exists():
        return None
    try:
        stored = read_result(record)
        result = MergeResult(**dict(stored["result"], path=path, reused=True))
    except RecordError as error:
        logger.warning(
            f"{record} cannot be read ({error}): the merge is made again."
        )
        return None
    if stored["context"] != job.fingerprint:
        _tell_why(job, stored.get("about"))
        return None
    if not path.exists():
        return None
    if CHECK not in stored:
        logger.warning(
            f"{record} has no check of its content, as those of earlier "
            "versions: the merge is made again."
        )
        return None
    if not {*result.selected} <= {member.name for member in job.members}:
        return None  # the same weights, under other names
    if digest(path) != stored["digest"]:
        logger.warning(
            f"{path} is not what was merged: it is made again{keep_damaged(path)}."
        )
        return None
    return result


def _tell_why(job, known):
    """Says what has changed since an earlier result."""
    now = _about(job)
    changed = [key for key in now if known and known.get(key) != now[key]]
    if {"text", "packages"} & set(changed):
        changed = [key for key in changed if key != "hparams"]  # they hold them
    if changed:
        what = ", ".join(_SAID.get(key, f"`{key}`") for key in changed)
        _say_once(
            f"Merge stage '{job.name}' is made again, as there are changes in: "
            f"{what}.",
            job.fingerprint,
        )


@functools.lru_cache(maxsize=256)
def _say_once(message, fingerprint):
    """As a stage looks for its result twice."""
    logger.info(message)


def _about(job):
    """All that decides the outcome of a job, each by a hash."""
    return {
        key: hashlib.sha256(
            json.dumps(value, sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        for key, value in job.about.items()
    }


def store_result(job, result: MergeResult):
    """Writes down a result, whole or not at all.

    Arguments
    ---------
    job : MergeJob
        What was asked.
    result : MergeResult
        Its outcome; the merged weights are there already.
    """
    stored = dataclasses.asdict(result)
    stored["path"] = result.path.name
    content = {
        "context": job.fingerprint,
        "about": _about(job),
        "digest": digest(result.path),
        "result": stored,
    }
    text = json.dumps(with_check(content), indent=2) + "\n"
    write_whole(job.folder / RESULT, text)
