"""Scoring, recording and reporting the trials of a search.

A search proposes trials and decides; everything else that each of them needs is
here: ask the journal before the scorer, check that an early stop was justified,
write the trial down, count what racing saved, and keep one plain dict a trial
for tables and pictures.

Keys of a trial's dict, whatever the search:

``errors``, ``total``
    Errors and reference words decoded.
``value``
    The error rate in percent; of an incomplete trial, the one that it is sure
    to reach on the whole set (a floor).
``complete``, ``accepted``
    Whether the whole set was decoded; whether the trial became the best so far.
``chance``
    Of a trial that was stopped because it would hardly win: the probability
    that it would have, at most.
``best``
    The error rate of what is kept after this trial, in percent.
``decoded_utterances``, ``decoded_seconds``
    Utterances and seconds of audio decoded.
``seconds``, ``reused``
    Wall time of the scoring; whether the journal knew it (then 0 s).

Searches over candidates add ``kind`` (``"single"`` or ``"merge"``),
``candidate`` (the one that was tried), ``members`` (names of all in the merge),
``merged`` (their number), ``step`` (candidates tried up to here) and ``kept``
(candidates selected after the trial). ``accepted`` is None for a single
candidate that was scored for the order or the picture alone. Searches over
coefficients add ``parameters``.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Optional, Union

from tqdm import tqdm

from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.logger import get_logger
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.racing import Race, Savings, check_accept
from speechbrain_merge.search.tally import Tally

logger = get_logger(__name__)


@dataclasses.dataclass
class SearchResult:
    """The result of a search over candidates.

    Arguments
    ---------
    selected : list of str
        Names of the candidates to merge, in the order of the merge.
    tally : Tally
        Score of their merge on the selection set.
    trials : list of dict
        Every trial in order, see the module docstring.
    members : list
        The selected candidates themselves.
    savings : Savings
        What racing saved.
    """

    selected: list
    tally: Tally
    trials: list
    members: list
    savings: Savings

    @property
    def evaluations(self) -> int:
        """Trials scored in this run; the others came from the journal."""
        return sum(not trial["reused"] for trial in self.trials)

    def to_dict(self) -> dict:
        """Plain data for JSON, without the candidate objects."""
        return {
            "selected": list(self.selected),
            "value": self.tally.value,
            "tally": self.tally.to_dict(),
            "evaluations": self.evaluations,
            "savings": self.savings.to_dict(),
            "trials": self.trials,
        }


class TrialRunner:
    """Scores the trials of one search.

    Arguments
    ---------
    score : callable
        ``score(proposal, incumbent) -> Tally``. It may stop decoding once
        ``Race(incumbent, accept).lost(...)``, with the search's ``accept``, and
        then gives an incomplete tally.
    journal : Journal, optional
        Where trials are looked up and recorded.
    accept : str
        ``"lt"`` or ``"le"``.
    racing : bool or float
        If False, every trial is scored in full. A number also stops trials
        that win with at most this probability
        (``speechbrain_merge.search.curtailment``).
    """

    def __init__(
        self,
        score: Callable,
        journal: Optional[Journal] = None,
        accept: str = "lt",
        racing: Union[bool, float] = True,
    ):
        check_accept(accept)
        self.error = error_of(racing)
        self.score = score
        self.journal = journal
        self.accept = accept
        self.racing = racing
        self.trials = []
        self.savings = Savings(error=self.error)

    def run(
        self,
        proposal: Any,
        label: str,
        incumbent: Optional[Tally] = None,
        **content: Any,
    ) -> tuple:
        """Score one proposal, or find it in the journal.

        Arguments
        ---------
        proposal : object
            First argument of ``score``.
        label : str
            Names the trial in messages.
        incumbent : Tally, optional
            The best so far. None: the trial is scored in full.
        **content : dict
            What goes into the trial's key: ``digests``, ``weights``,
            ``parameters``, as the search knows them. A journal with a
            function ``content`` uses that instead.

        Returns
        -------
        tally : Tally
            Incomplete only if it lost.
        accepted : bool
            Whether it beats the incumbent (always, if there is none).
        trial : dict
            The part of the trial's dict known here, without ``best``.
        """
        against = incumbent if self.racing else None
        known, key = None, ""
        if self.journal is not None:
            key = self.journal.key_of(proposal, **content)
            # Of all processes the main one decides whether to score
            find = main_process_only(self.journal.find)
            known = find(key, against, self.accept, self.error)
        seconds = 0.0
        if known is not None:
            tally = known
        else:
            started = time.perf_counter()
            tally = self.score(proposal, against)
            seconds = time.perf_counter() - started
        self._check(tally, against, label)
        accepted = not Race(incumbent, self.accept, self.error).lost(tally)
        if known is None:
            whole = tally
            if incumbent is not None and not tally.complete:
                whole = incumbent
            self.savings.add(tally, whole, accepted)
            if self.journal is not None:
                self.journal.record(
                    key, tally, against, trial=label, seconds=round(seconds, 3)
                )
        floor = Race(incumbent).floor(tally)
        trial = {
            "errors": _number(tally.errors),
            "total": _number(tally.words),
            "value": float(100 * floor),
            "complete": tally.complete,
            "accepted": accepted,
            **({} if tally.chance is None else {"chance": tally.chance}),
            "decoded_utterances": tally.utterances,
            "decoded_seconds": tally.seconds,
            "seconds": seconds,
            "reused": known is not None,
        }
        return tally, accepted, trial

    def keep(
        self, trial: dict, best: Optional[Tally], label: str, **others
    ) -> dict:
        """Put a finished trial on the list and in the log.

        Arguments
        ---------
        trial : dict
            What ``run`` gave.
        best : Tally, optional
            The best after the decision; None if nothing is selected yet.
        label : str
            Names the trial in the log.
        **others : dict
            Further keys of the trial, put before the counts.

        Returns
        -------
        dict
            The trial as listed.
        """
        trial = {
            **others,
            **trial,
            "best": None if best is None else best.value,
        }
        self.trials.append(trial)
        verdict = {True: "accepted", False: "rejected", None: "scored"}
        stopped = "" if trial["complete"] else "at least "
        logger.info(
            f"{label}: {stopped}{trial['value']:.2f} % "
            f"({trial['errors']} errors in {trial['decoded_utterances']} "
            f"utterances), {verdict[trial['accepted']]}"
            + ("" if best is None else f"; best {best.value:.2f} %")
            + (" [journal]" if trial["reused"] else "")
        )
        return trial

    def _check(self, tally: Any, against: Optional[Tally], label: str):
        if not isinstance(tally, Tally):
            raise TypeError(
                f"{label}: score() gave a {type(tally).__name__}; expected a "
                "speechbrain_merge.search.Tally of exact counts"
            )
        if tally.complete:
            return
        race = Race(against, self.accept, self.error)
        if against is None or not race.lost(tally):
            raise ValueError(
                f"{label}: score() stopped early, with {tally.errors} errors, "
                "before the trial had lost"
                + (
                    "; no incumbent was given, so it has to be scored in full"
                    if against is None
                    else f" against {against.errors}; race with "
                    f"Race(incumbent, accept={self.accept!r}), the rule of "
                    "the search"
                )
            )


def progress_bar(total: Optional[int], name: str, progress: bool) -> tqdm:
    """A bar for the trials of a search, on the main process alone."""
    return tqdm(
        total=total,
        desc=name,
        unit="trial",
        dynamic_ncols=True,
        disable=not (progress and if_main_process()),
    )


def error_of(racing: Union[bool, float]) -> Optional[float]:
    """The error probability that racing allows.

    Arguments
    ---------
    racing : bool or float
        As of ``TrialRunner``.

    Returns
    -------
    float or None
        None where only trials that are sure to lose are stopped.

    Raises
    ------
    ValueError
        Where it is no probability.

    Example
    -------
    >>> error_of(True), error_of(False), error_of(0.01)
    (None, None, 0.01)
    """
    if isinstance(racing, bool):
        return None
    if not (isinstance(racing, float) and 0 < racing < 0.5):
        raise ValueError(
            f"racing={racing!r}: expected True, False, or the probability "
            "that a trial which is stopped would have won, above 0 and below "
            "0.5"
        )
    return racing


def check_count(count: Optional[int], name: str):
    """Raise ValueError unless ``count`` is None or a positive whole number."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(
            f"{name}={count!r}: expected a whole number from 1, or None for "
            "no bound"
        )


def names_of(members: Sequence) -> list:
    """Names of candidates."""
    return [member.name for member in members]


def _number(count) -> Any:
    # For tables and pictures; the exact count is in the journal.
    return float(count) if isinstance(count, Fraction) else count
