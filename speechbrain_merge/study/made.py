"""A model of a study that has been made: its weights and their digest.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.pool import Candidate


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
