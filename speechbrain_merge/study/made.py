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
from speechbrain_merge.records.contents import by_content
from speechbrain_merge.study.trainings import without_folder
from speechbrain_merge.weights import open_weights, verify


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

    def verified(self, name: str) -> Path:
        """The file of its weights, after a look at what is in it.

        Whatever reads the weights of a model that was made takes them from
        here, or as a candidate with this digest, which the engine and the
        Brain check. A file that was read before, and not written to since, is
        not read again.

        Arguments
        ---------
        name : str
            The model's name, for the message.

        Returns
        -------
        Path

        Raises
        ------
        ChangedContent
            Where the file holds other weights than those that were made.
        """
        if self.path is None:
            raise ValueError(f"Model '{name}' has no weights of its own.")
        return checked(
            Candidate(name, self.path, name, known_digest=self.digest)
        )


def checked(candidate: Candidate) -> Path:
    """The file of a candidate, which holds what is on record of it.

    Arguments
    ---------
    candidate : Candidate
        With a digest on record, or without one: then all is right.

    Returns
    -------
    Path

    Raises
    ------
    ChangedContent
        Where it holds other weights: the file was damaged or replaced.

    Example
    -------
    >>> import torch
    >>> from speechbrain_merge.weights import digest, write_weights
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> _ = write_weights(path, {"x": torch.ones(2)})
    >>> known = digest({"x": torch.ones(2)})
    >>> checked(Candidate("a", path, "a", known_digest=known)) == path
    True
    >>> _ = write_weights(path, {"x": torch.zeros(2)})
    >>> checked(Candidate("a", path, "a", known_digest=known))
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_merge.weights.changed_content.ChangedContent: a (...
    """
    known = candidate.known_digest
    if known is not None:
        label = f"{candidate.name} ({candidate.path})"
        with open_weights(candidate.path) as weights:
            verify(weights, known, label, candidate.path)
    return candidate.path


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
    """The digest of the rows of a dataset, and of the files that they name.

    Arguments
    ---------
    data : DynamicItemDataset
        A dataset.
    folder : str or Path
        The study's folder. Paths in it do not count by where it lies, even
        of files that are gone.
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
        [one, by_content(rows[one])]
        for one in getattr(data, "data_ids", rows)
        if domain is None or rows[one].get("domain", domain) == domain
    ]
    text = json.dumps(chosen, default=str)
    return digest_of(without_folder(json.loads(text), folder))


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
