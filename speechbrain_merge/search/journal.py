"""A journal of scored trials, so that a killed search resumes where it was.

Scoring a trial is the expensive step of a search: a merge and a decoding of the
selection set. Each one is written down, one JSON line a trial, synced to disk
before the search goes on. A search started again finds its old trials by what
they were, not by when they ran or who asked: the key of a trial is a hash over
what was merged (the digests of the candidates, the method with the parameters
that it had in this trial, the base where the method uses one) and over how that
was scored (the selection set, the settings of decoding). It does not know the
search nor the other candidates. So a longer pool, another order or another
search use whatever was scored already, as do all searches that share a file,
and a changed dev set or method uses nothing.

What was merged is known to the caller, who gives ``content``, a function from a
proposal of the search to plain data (``speechbrain_merge.stage.job`` has
that of a merge stage). Without it, what the search says of its trials counts:
digests, or coefficients.

A kill in the middle of a line leaves a line without its end. It is ignored when
the journal is read, and cut off before the next line is written; the trial is
scored again. A finished line that cannot be read is damage from elsewhere, and
is an error. So is one whose tally is not what was written with this key: each
carries a check of both (those of earlier versions have none).

A trial stopped by racing has no error rate, only a floor. It answers a later
question only if that floor loses against the incumbent of that question, which
is checked for each use (``Journal.find``): a trial that lost with 12 errors so
far has also lost against an incumbent of 10, but says nothing against one of
15. The old incumbent is written beside it, for people to read.

Example
-------
>>> path = getfixture("tmpdir") / "journal.jsonl"
>>> context = {"method": "average", "selection_set": "dev-clean"}
>>> journal = Journal(path, context)
>>> key = journal.key(digests=["5e1f", "08ab"])
>>> journal.record(key, Tally(12, 200), candidates=["CKPT+1", "CKPT+2"])
>>> Journal(path, context).find(key).value
6.0
>>> Journal(path, {"method": "ties"}).key(digests=["5e1f", "08ab"]) == key
False

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import fields, text
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.log import Log
from speechbrain_merge.records.written_check import CHECK, check_of
from speechbrain_merge.search.racing import Race
from speechbrain_merge.search.tally import Tally

logger = get_logger(__name__)


def trial_key(
    context: Optional[Mapping] = None,
    digests: Sequence[str] = (),
    weights: Optional[Sequence] = None,
    parameters: Optional[Mapping] = None,
    ordered: bool = False,
) -> str:
    """The content key of a trial.

    Arguments
    ---------
    context : dict, optional
        What all trials of the search share and what decides their scores:
        method and its fixed parameters, digest of the base, selection set,
        decoding settings. Plain JSON values.
    digests : list of str
        Content digests of the candidates in the merge.
    weights : list of float, optional
        One per candidate.
    parameters : dict, optional
        Coefficients of this trial.
    ordered : bool
        Whether the order of the candidates matters to the method (SLERP, or
        parameters listed one per candidate). If not, a merge of the same
        candidates has the same key in any order.

    Returns
    -------
    str
        A SHA-256 in hexadecimal.

    Example
    -------
    >>> trial_key(digests=["a", "b"]) == trial_key(digests=["b", "a"])
    True
    >>> trial_key(digests=["a", "b"], weights=[0.3, 0.7]) == trial_key(
    ...     digests=["b", "a"], weights=[0.3, 0.7]
    ... )
    False
    """
    if weights is None:
        weights = [None] * len(digests)
    if len(weights) != len(digests):
        raise ValueError(
            f"{len(digests)} candidates but {len(weights)} weights"
        )
    members = [[digest, weight] for digest, weight in zip(digests, weights)]
    if not ordered:
        # By text: weights may be None beside numbers, which do not compare.
        members.sort(key=_canonical)
    content = {
        "context": dict(context or {}),
        "members": members,
        "ordered": ordered,
        "parameters": dict(parameters or {}),
    }
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


class Journal:
    """Trials on disk, found by content, appended and never changed.

    Under DDP the main process reads and writes the file, and every process
    gets the same lines, so that all of them decide alike. Make the journal on
    all processes.

    Arguments
    ---------
    path : str or Path
        The JSONL file; made at the first record.
    context : dict, optional
        Goes into every key, see ``trial_key``.
    ordered : bool
        See ``trial_key``.
    content : callable, optional
        ``content(proposal) -> dict``: the content of a search's proposal, as
        plain JSON values. It replaces the content that the search gives.

    Raises
    ------
    ValueError
        If a finished line of the file cannot be read.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike],
        context: Optional[Mapping] = None,
        ordered: bool = False,
        content: Optional[Callable] = None,
    ):
        self.path = Path(path)
        self._log = Log(
            self.path,
            _trial,
            "Remove that line to go on; its trial is then scored again.",
        )
        self.context = dict(context or {})
        self.content = content
        self.ordered = ordered
        self._tallies: dict[str, list[Tally]] = {}
        self._details: dict[str, dict] = {}
        lines = ddp_broadcast(self._read() if if_main_process() else None)
        for key, tally, details in lines:
            self._keep(key, tally, details)

    def __len__(self):
        return sum(len(tallies) for tallies in self._tallies.values())

    def key(
        self,
        digests: Sequence[str] = (),
        weights: Optional[Sequence] = None,
        parameters: Optional[Mapping] = None,
    ) -> str:
        """The key of a trial in this journal's context.

        Arguments
        ---------
        digests : list of str
            Of the candidates in the merge.
        weights : list of float, optional
            One per candidate.
        parameters : dict, optional
            Coefficients of this trial.

        Returns
        -------
        str
        """
        return trial_key(
            self.context, digests, weights, parameters, self.ordered
        )

    def key_of(self, proposal: Any, **content: Any) -> str:
        """The key of what a search proposes.

        Arguments
        ---------
        proposal : object
            What the search would have scored.
        **content : dict
            What the search says of it, as for ``key``.

        Returns
        -------
        str
        """
        if self.content is None:
            return self.key(**content)
        about = {"context": self.context, "trial": self.content(proposal)}
        return hashlib.sha256(_canonical(about).encode()).hexdigest()

    def find(
        self,
        key: str,
        incumbent: Optional[Tally] = None,
        accept: str = "lt",
        error: Optional[float] = None,
    ) -> Optional[Tally]:
        """The tally of a trial, if it suffices for this comparison.

        Arguments
        ---------
        key : str
            Of the trial.
        incumbent : Tally, optional
            What the trial would have to beat. None: a complete tally is wanted.
        accept : str
            The rule of the search, ``"lt"`` or ``"le"``.
        error : float, optional
            As of ``Race``.

        Returns
        -------
        Tally or None
            A complete tally if there is one; else an incomplete one whose
            errors so far lose against this incumbent; else None.
        """
        known = self._tallies.get(key, [])
        for tally in known:
            if tally.complete:
                return tally
        if incumbent is not None:
            race = Race(incumbent, accept, error)
            for tally in known:
                if race.lost(tally):
                    return tally
        return None

    def details(self, key: str) -> dict:
        """The details recorded with the complete tally of a trial.

        Arguments
        ---------
        key : str
            Of the trial.

        Returns
        -------
        dict
            Empty if the trial was not scored in full.
        """
        details = dict(self._details.get(key, {}))
        details.pop("incumbent", None)
        return details

    def record(
        self,
        key: str,
        tally: Tally,
        incumbent: Optional[Tally] = None,
        **details: Any,
    ):
        """Append a trial, and return once it is on the disk.

        Arguments
        ---------
        key : str
            Of the trial.
        tally : Tally
            Its score.
        incumbent : Tally, optional
            What it was raced against.
        **details : dict
            For people: candidates, parameters, wall time. Plain JSON values.
        """
        self._keep(key, tally, details)
        if not if_main_process():
            return
        line = {
            "key": key,
            **details,
            "tally": tally.to_dict(),
            "incumbent": None if incumbent is None else incumbent.to_dict(),
        }
        # what JSON cannot hold is refused before a byte is written
        self._log.append(json.loads(json.dumps(line, allow_nan=False)))

    def _keep(self, key, tally, details):
        self._tallies.setdefault(key, []).append(tally)
        if tally.complete:
            self._details[key] = details

    def _read(self) -> list:
        return [
            (trial.pop("key"), trial.pop("tally"), trial)
            for trial in self._log.records()
        ]


_fields = fields({"key": text(1000), "tally": Tally.from_dict})


def _trial(value, where):
    """A line of a journal; what else is in it is for people."""
    tally = value.get("tally")
    if isinstance(tally, dict) and CHECK in tally:
        # earlier versions had a check in the tally, of it and of the key
        tally = {key: tally[key] for key in tally if key != CHECK}
        if value["tally"][CHECK] != check_of([value.get("key"), tally]):
            raise RecordError(
                f"{where}, key 'tally': it is not what was written there"
            )
        value = {**value, "tally": tally}
    return _fields(value, where)


def _canonical(content: Any) -> str:
    try:
        return json.dumps(content, sort_keys=True, allow_nan=False)
    except TypeError as error:
        raise TypeError(
            f"a trial key needs plain JSON values (numbers, strings, lists, "
            f"dicts), got {content!r}: {error}"
        ) from None
