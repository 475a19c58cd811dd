"""A candidate: one set of weights that might go into a merge.

Candidates are light. They name a file or a folder and say what is known of it;
the weights are read when a merge opens them. `select` narrows a list of them
by what is known, without reading any.

Example
-------
>>> candidates = [
...     Candidate("a/1", "a/1.safetensors", "a", epoch=1, meta={"WER": 9.0}),
...     Candidate("a/2", "a/2.safetensors", "a", epoch=2, meta={"WER": 7.0}),
...     Candidate("b/1", "b/1.safetensors", "b", epoch=1, meta={"WER": 8.0}),
... ]
>>> [candidate.name for candidate in select(candidates, per_run="best")]
['a/2', 'b/1']
>>> [candidate.name for candidate in select(candidates, best=2)]
['a/2', 'b/1']

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Optional

from speechbrain_merge.pool.meta import finite_number
from speechbrain_merge.weights import digest, open_weights

PER_RUN = ("all", "best", "last")
MODES = ("min", "max")
BASE = "base"
"""Name of the original among the members of a merge, and of its weight."""


@dataclass(frozen=True)
class Candidate:
    """One set of weights, and what is known of it.

    `open_weights(candidate)` opens its weights.

    Arguments
    ---------
    name : str
        `<run>/<what>`, e.g. `seed-1/epoch-0003-step-000120`. Unique in a list
        of candidates.
    path : Path
        A file, a `CKPT+…` folder, or a Hugging Face folder.
    run : str
        The training run it comes from.
    epoch : int, optional
        Epochs trained.
    step : int, optional
        Optimizer steps trained.
    meta : dict
        What the recipe saved with the checkpoint, e.g. {"WER": 12.5}.
    metric : str
        The entry of the meta that `score` gives.
    hyperparameters : dict
        Of the run.
    time : float, optional
        When it was saved, in seconds since 1970.
    tags : tuple of str
        Whatever the run was tagged with.
    base : Path, optional
        The weights that the run started from, where the pool has them.
    base_digest : str, optional
        Their digest.
    known_digest : str, optional
        Its digest, where that has been computed before.

    Example
    -------
    >>> Candidate("a/1", Path("a"), "a", meta={"WER": 9}).score
    9.0
    """

    name: str
    path: Path
    run: str
    epoch: Optional[int] = None
    step: Optional[int] = None
    meta: dict = field(default_factory=dict, compare=False)
    metric: str = "WER"
    hyperparameters: dict = field(default_factory=dict, compare=False)
    time: Optional[float] = None
    tags: tuple = ()
    base: Optional[Path] = None
    base_digest: Optional[str] = field(default=None, repr=False)
    known_digest: Optional[str] = field(default=None, repr=False)

    @property
    def score(self) -> Optional[float]:
        """The metric in training; None where there is none, or not finite."""
        return finite_number(self.meta.get(self.metric))

    @cached_property
    def digest(self) -> str:
        """Fingerprint of names and values, whatever file holds them.

        Candidates of a pool know it; for others the weights are read once.
        """
        if self.known_digest is not None:
            return self.known_digest
        with open_weights(self.path) as weights:
            return digest(weights)


def rank(
    candidates: Sequence, metric: str = "WER", mode: str = "min"
) -> list[Candidate]:
    """Candidates with a finite metric, the best first.

    Arguments
    ---------
    candidates : list of Candidate
        In the order as collected.
    metric : str
        Entry of their meta.
    mode : str
        "min" where lower is better, else "max".

    Returns
    -------
    list of Candidate
        Of two equal ones the newer comes first, as in SpeechBrain.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {MODES}")
    sign = 1 if mode == "min" else -1
    scores = {
        index: finite_number(candidate.meta.get(metric))
        for index, candidate in enumerate(candidates)
    }
    finite = [
        (sign * score, -index)
        for index, score in scores.items()
        if score is not None
    ]
    return [candidates[-index] for _, index in sorted(finite)]


def select(
    candidates: Sequence,
    per_run: str = "all",
    last: Optional[int] = None,
    best: Optional[int] = None,
    metric: str = "WER",
    mode: str = "min",
    runs: Optional[Sequence] = None,
    without: Optional[Sequence] = None,
) -> list[Candidate]:
    """Narrows a list of candidates by what is known of them.

    The ways apply one after the other: `runs`, `without`, `last`, `per_run`,
    then `best`. A candidate whose metric is missing or not finite is never
    best.

    Arguments
    ---------
    candidates : list of Candidate
        In the order as collected.
    per_run : str
        "all" keeps all candidates of a run; "best" (as MAcT) or "last" one.
    last : int, optional
        Keeps the last so many of each run (as MAST).
    best : int, optional
        Keeps the best so many of all that remain.
    metric : str
        Entry of their meta that `best` compares.
    mode : str
        "min" where lower is better, else "max".
    runs : list of str, optional
        Keeps these runs.
    without : list of str, optional
        Leaves these runs out.

    Returns
    -------
    list of Candidate
        In the given order.

    Raises
    ------
    ValueError
        Where the best are asked for and no metric tells which, or a run is
        named that there is not.
    """
    if per_run not in PER_RUN:
        raise ValueError(f"per_run={per_run!r}: expected one of {PER_RUN}")
    for name, count in (("last", last), ("best", best)):
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: expected 1 or more, or None")
    trajectories = {}
    for candidate in candidates:
        trajectories.setdefault(candidate.run, []).append(candidate)
    wanted = set(_known(runs, "runs", trajectories) or trajectories)
    wanted -= set(_known(without, "without", trajectories))
    if trajectories and not wanted:
        raise ValueError(
            f"without={list(without or [])} leaves none of the runs "
            f"{', '.join(trajectories)}"
        )
    chosen = []
    for run, members in trajectories.items():
        if run not in wanted:
            continue
        members = members[-last:] if last is not None else members
        if per_run == "best":
            members = _best(members, 1, metric, mode, f"run '{run}'")
        elif per_run == "last":
            members = members[-1:]
        chosen.extend(members)
    if best is not None and chosen:
        chosen = _best(chosen, best, metric, mode, "the candidates")
    kept = {id(candidate) for candidate in chosen}
    return [candidate for candidate in candidates if id(candidate) in kept]


def _known(asked, name, there):
    """The runs that are asked for, which have to be there."""
    asked = [asked] if isinstance(asked, str) else list(asked or [])
    missing = [run for run in asked if run not in there]
    if missing:
        raise ValueError(
            f"{name}={asked}: there is no run {', '.join(map(str, missing))}. "
            f"There is: {', '.join(there) or 'none'}."
        )
    return asked


def _best(members, count, metric, mode, where):
    ranked = rank(members, metric, mode)
    if not ranked:
        known = sorted({key for member in members for key in member.meta})
        raise ValueError(
            f"no candidate of {where} has a finite '{metric}', so none is the "
            f"best. Their metas have: {', '.join(known) or 'nothing'}. Choose "
            "another metric=, or last= instead."
        )
    return ranked[:count]
