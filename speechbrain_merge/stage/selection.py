"""Which candidates take part in a merge, and how a merge of them is scored.

Both are small plain data. In the YAML of a merge stage they are written apart::

    merge_stage: !new:speechbrain_merge.MergeStage
        method: average
        candidates: [!ref <pool_folder>]
        select: {per_run: best, without: [noisy]}
        score: {decode: test, average: macro}
        search: !new:speechbrain_merge.search.GreedySearch

or each of their entries as one of the stage itself, which is the same.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from typing import Optional, Union

import speechbrain as sb
from speechbrain_merge.pool import select
from speechbrain_merge.records.checked import is_finite


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which candidates take part.

    Arguments
    ---------
    per_run : str
        Of each run: ``"all"``, ``"best"`` or ``"last"``.
    last, best : int, optional
        Only so many of the last, or of the best.
    metric : str
        The entry of the checkpoints' meta by which single candidates are
        ranked.
    mode : str
        ``"min"`` or ``"max"``: which way the metric is better.
    runs, without : list of str, optional
        Only these runs take part; these do not.

    Example
    -------
    >>> from speechbrain_merge.pool import Candidate
    >>> pool = [
    ...     Candidate("run/1", "a", "run", meta={"WER": 9.0, "epoch": 1}),
    ...     Candidate("run/2", "b", "run", meta={"WER": 7.5, "epoch": 2}),
    ... ]
    >>> [candidate.name for candidate in Selection(best=1).of(pool)]
    ['run/2']
    """

    per_run: str = "all"
    last: Optional[int] = None
    best: Optional[int] = None
    metric: str = "WER"
    mode: str = "min"
    runs: Union[str, list, None] = None
    without: Union[str, list, None] = None

    def of(self, candidates) -> list:
        """Those that take part, of all there are.

        Arguments
        ---------
        candidates : list of Candidate
            Of one or several pools.

        Returns
        -------
        list of Candidate

        Raises
        ------
        ValueError
            When there is none, or a run that is named is missing.
        """
        return select(candidates, **vars(self))

    @property
    def left_out(self) -> list:
        """Names of the runs that do not take part."""
        if isinstance(self.without, str):
            return [self.without]
        return list(self.without or [])


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a merge is scored on the selection set.

    Arguments
    ---------
    tracker : str, optional
        The Brain's attribute that holds the ``ErrorRateStats``; by default the
        metric's name in lower case with ``_metric``.
    decode : str
        ``"valid"`` scores with the recipe's validation search, ``"test"`` with
        its test search.
    average : str
        Over several domains: ``"micro"`` pools errors, ``"macro"`` averages
        the domains' error rates.
    racing : bool or str
        Stop scoring a trial once it has lost, which never changes the outcome.
        With ``"statistical"`` also once it will hardly win, which may
        (``speechbrain_merge.search.curtailment``).
    racing_error : float
        With ``racing="statistical"``: the probability at which a trial hardly
        wins.

    Raises
    ------
    ValueError
        When `decode` is neither, or `racing` is none of the three.

    Example
    -------
    >>> Scoring(decode="test").stage
    <Stage.TEST: 3>
    """

    tracker: Optional[str] = None
    decode: str = "valid"
    average: str = "micro"
    racing: Union[bool, str] = True
    racing_error: float = 0.01

    def __post_init__(self):
        if self.decode not in ("valid", "test"):
            raise ValueError(
                f"`decode` is 'valid' or 'test', got {self.decode!r}."
            )
        if self.racing not in (True, False, "statistical"):
            raise ValueError(
                "`racing` is True, False or 'statistical', got "
                f"{self.racing!r}."
            )
        number = is_finite(self.racing_error)
        if not (number and 0 < self.racing_error < 0.5):
            raise ValueError(
                "`racing_error` is a probability above 0 and below 0.5, got "
                f"{self.racing_error!r}."
            )

    @property
    def racing_rule(self) -> Union[bool, float]:
        """What a search takes: whether to race, or the error it may make."""
        if self.racing == "statistical":
            return float(self.racing_error)
        return self.racing is True

    @property
    def stage(self) -> sb.Stage:
        """The stage that the Brain decodes in."""
        return sb.Stage[self.decode.upper()]


def given_in_parts(kinds, given, flat) -> list:
    """Objects of small classes, given whole, as a dict, or entry by entry.

    Arguments
    ---------
    kinds : dict
        Keyword (`select`) to dataclass (`Selection`).
    given : dict
        Keyword to an object of its class, a dict of its entries, or None.
    flat : dict
        Entries of any of the classes.

    Returns
    -------
    list
        An object of each class.

    Raises
    ------
    TypeError
        Where an entry is of none of the classes.
    ValueError
        Where an entry is given in both ways.
    """
    found = []
    unknown = dict(flat)
    for keyword, kind in kinds.items():
        names = [field.name for field in dataclasses.fields(kind)]
        own = {name: unknown.pop(name) for name in names if name in unknown}
        whole = given[keyword]
        if whole is not None and own:
            raise ValueError(
                f"`{keyword}` is given, and {_listed(own)} beside it: write "
                f"{'it' if len(own) == 1 else 'them'} into `{keyword}`."
            )
        if isinstance(whole, kind):
            found.append(whole)
            continue
        entries = own if whole is None else dict(whole)
        strangers = [name for name in entries if name not in names]
        if strangers:
            raise TypeError(
                f"`{keyword}` has {_listed(strangers)}; it takes "
                f"{_listed(names)}."
            )
        found.append(kind(**entries))
    if unknown:
        taken = [
            field.name
            for kind in kinds.values()
            for field in dataclasses.fields(kind)
        ]
        raise TypeError(
            f"a merge stage has no {_listed(unknown)}; beside its own "
            f"parameters it takes {_listed(taken)}."
        )
    return found


def _listed(names):
    return ", ".join(f"`{name}`" for name in names)
