"""A model of a study that has been made: its weights and their digest.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.pool import Candidate
from speechbrain_merge.study.trainings import without_folder


@dataclasses.dataclass
class Made:
    """A model that has been made.

    Arguments
    ---------
    path : Path
        Its weights.
    digest : str
        The digest of their content, whatever file holds them.
    candidates : list of Candidate
        Of a training: all that its pool holds.
    candidate : Candidate, optional
        Of a training: the one that stands for the model.
    about : dict
        More that results show: steps of a training, the trials of a search.
    seconds : float
        How long making it took.
    interrupted : bool
        Whether it was stopped and went on, so that it took longer.
    base_digest : str, optional
        The digest of the weights that it was fine-tuned from.
    adapter : Candidate, optional
        Of a training with LoRA, whose Brain collects adapters: that of the
        candidate that stands for the model.
    """

    path: Optional[Path]
    digest: str
    candidates: list = dataclasses.field(default_factory=list)
    candidate: Optional[Candidate] = None
    about: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    base_digest: Optional[str] = None
    adapter: Optional[Candidate] = None


def digest_of(value: Any) -> str:
    """A hash of plain data.

    Arguments
    ---------
    value : object
        Plain data.

    Returns
    -------
    str

    Example
    -------
    >>> digest_of({"a": 1}) == digest_of({"a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_rows(
    data: Any, folder, domain: Optional[str] = None
) -> Optional[str]:
    """The digest of the rows of a dataset.

    Arguments
    ---------
    data : DynamicItemDataset
        A dataset.
    folder : str or Path
        The study's folder. Paths in it do not count by where it lies.
    domain : str, optional
        Only rows that are of this domain, or of none.

    Returns
    -------
    str or None
        A SHA-256 in hexadecimal; None for a dataset without rows.

    Example
    -------
    >>> from speechbrain.dataio.dataset import DynamicItemDataset
    >>> rows = {"a": {"wrd": "one", "domain": "digits"}, "b": {"wrd": "two"}}
    >>> first = digest_of_rows(DynamicItemDataset(rows), "results", "read")
    >>> del rows["a"]
    >>> digest_of_rows(DynamicItemDataset(rows), "results", "read") == first
    True
    """
    rows = getattr(data, "data", None)
    if not isinstance(rows, Mapping):
        return None
    chosen = [
        [one, rows[one]]
        for one in getattr(data, "data_ids", rows)
        if domain is None or rows[one].get("domain", domain) == domain
    ]
    plain = json.loads(json.dumps(chosen, default=str))
    return digest_of(without_folder(plain, folder))


def relative_to(path, folder) -> Path:
    """A path as seen from a folder, where it lies in it.

    Arguments
    ---------
    path, folder : str or Path
        The path, and the folder of a study.

    Returns
    -------
    Path

    Example
    -------
    >>> str(relative_to("results/aode/a/b", "results/aode"))
    'a/b'
    """
    path, folder = Path(path).absolute(), Path(folder).absolute()
    return path.relative_to(folder) if folder in path.parents else path
