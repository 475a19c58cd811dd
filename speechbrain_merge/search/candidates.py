"""Trials of candidates: single ones, merges of several, and their order.

Searches over candidates (greedy, prefix) share how a candidate is scored alone
or in a merge, and in which order candidates are tried. They differ in what they
propose and keep.

Authors
 * The speechbrain_merge authors 2026
"""

import random
from collections.abc import Sequence
from typing import Optional

from speechbrain.utils.logger import get_logger
from speechbrain_merge.search.tally import Tally
from speechbrain_merge.search.trials import (
    SearchResult,
    TrialRunner,
    names_of,
    progress_bar,
)

logger = get_logger(__name__)

ORDERS = ("given", "sorted", "shuffled")
SORT_KEYS = ("selection", "pool")


class CandidateOrder:
    """The order in which candidates are tried.

    Arguments
    ---------
    order : str
        ``"given"``: as they come. ``"sorted"``: best single candidate first.
        ``"shuffled"``: at random.
    seed : int
        Of the shuffle.
    sort_by : str
        What a sorted order compares. ``"selection"``: scores on the selection
        set, so that each candidate is decoded once. ``"pool"``: the score that
        each candidate got in training, lower is better; free, and sound only
        if all of them were scored on the same dev set in the same way.
    """

    def __init__(
        self, order: str = "given", seed: int = 0, sort_by: str = "selection"
    ):
        if order not in ORDERS:
            raise ValueError(f"order={order!r}: expected one of {ORDERS}")
        if sort_by not in SORT_KEYS:
            raise ValueError(
                f"sort_by={sort_by!r}: expected one of {SORT_KEYS}"
            )
        self.order = order
        self.seed = seed
        self.sort_by = sort_by

    @property
    def needs_singles(self) -> bool:
        """Whether each candidate has to be scored alone to know the order."""
        return self.order == "sorted" and self.sort_by == "selection"

    def indices(self, candidates: Sequence, singles: dict) -> list:
        """Indices of the candidates in the order of the trials.

        Arguments
        ---------
        candidates : list
            As given.
        singles : dict
            ``{index: Tally}`` of the candidates alone, if needed.

        Returns
        -------
        list of int
            Equal scores stay in the given order.
        """
        indices = list(range(len(candidates)))
        if self.order == "shuffled":
            random.Random(self.seed).shuffle(indices)
        elif self.needs_singles:
            indices.sort(key=lambda index: singles[index].cost)
        elif self.order == "sorted":
            unscored = [c.name for c in candidates if c.score is None]
            if unscored:
                raise ValueError(
                    f"sort_by='pool': no score in the pool for {unscored}; "
                    "use sort_by='selection' to score each candidate"
                )
            indices.sort(key=lambda index: candidates[index].score)
        return indices


class CandidateTrials:
    """The trials of one search over candidates, and its progress bar.

    A context manager, which closes the bar.

    Arguments
    ---------
    name : str
        Of the search, for messages and the bar.
    candidates : list
        Objects with a ``name``, and a ``digest`` if there is a journal.
    runner : TrialRunner
        Scores the trials.
    order : CandidateOrder
        Order of the trials.
    score_singles : bool
        Whether to score every candidate alone, even if the order does not need
        it.
    progress : bool
        Whether to show a bar.
    """

    def __init__(
        self,
        name: str,
        candidates: Sequence,
        runner: TrialRunner,
        order: CandidateOrder,
        score_singles: bool = False,
        progress: bool = True,
    ):
        self.name = name
        self.candidates = list(candidates)
        if not self.candidates:
            raise ValueError(f"{name}: there are no candidates to search over")
        self.runner = runner
        self.order = order
        self.score_singles = score_singles or order.needs_singles
        count = len(self.candidates)
        singles = count if self.score_singles else 1
        self.bar = progress_bar(singles + count - 1, name, progress)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.bar.close()

    def start(self) -> tuple:
        """Score the first candidate, and the others alone if asked.

        Returns
        -------
        candidates : list
            In the order of the trials.
        tally : Tally
            Of the first of them.
        """
        singles, rows = {}, {}

        def score_single(index):
            if index not in singles:
                singles[index], rows[index] = self._score_single(index)

        if self.order.needs_singles:
            for index in range(len(self.candidates)):
                score_single(index)
        indices = self.order.indices(self.candidates, singles)
        for index in indices if self.score_singles else indices[:1]:
            score_single(index)
        first = indices[0]
        # Which one is the first may be known only now that all are scored.
        rows[first].update(
            accepted=True, step=1, kept=1, best=singles[first].value
        )
        return [self.candidates[index] for index in indices], singles[first]

    def merge(
        self,
        members: Sequence,
        incumbent: Optional[Tally],
        step: int,
        kept: int,
    ) -> tuple:
        """Score the merge of several candidates, the last of which is new.

        Arguments
        ---------
        members : list
            Candidates in the order of the merge.
        incumbent : Tally, optional
            The best so far. None: this trial is accepted whatever its score.
        step : int
            Candidates tried up to and with this trial.
        kept : int
            Candidates selected before the trial.

        Returns
        -------
        tally : Tally
        accepted : bool
        """
        label = f"{self.name}: {len(members)} merged, with {members[-1].name}"
        tally, accepted, trial = self._run(members, label, incumbent)
        self.runner.keep(
            trial,
            tally if accepted else incumbent,
            label,
            kind="merge",
            candidate=members[-1].name,
            members=names_of(members),
            merged=len(members),
            step=step,
            kept=len(members) if accepted else kept,
        )
        self.bar.set_postfix_str(
            f"best {self.runner.trials[-1]['best']:.2f} % of "
            f"{self.runner.trials[-1]['kept']} merged"
        )
        self.bar.update()
        return tally, accepted

    def result(self, members: Sequence, tally: Tally) -> SearchResult:
        """Close the search.

        Arguments
        ---------
        members : list
            The selected candidates.
        tally : Tally
            Of their merge.

        Returns
        -------
        SearchResult
        """
        result = SearchResult(
            selected=names_of(members),
            tally=tally,
            trials=self.runner.trials,
            members=list(members),
            savings=self.runner.savings,
        )
        logger.info(
            f"{self.name}: {len(members)} of {len(self.candidates)} candidates "
            f"give {tally.value:.2f} % ({result.evaluations} evaluations); "
            f"{self.runner.savings}"
        )
        return result

    def _score_single(self, index: int) -> tuple:
        candidate = self.candidates[index]
        label = f"{self.name}: {candidate.name} alone"
        tally, _, trial = self._run([candidate], label)
        row = self.runner.keep(
            dict(trial, accepted=None),
            None,
            label,
            kind="single",
            candidate=candidate.name,
            members=[candidate.name],
            merged=1,
            step=None,
            kept=None,
        )
        self.bar.update()
        return tally, row

    def _run(self, members, label, incumbent=None) -> tuple:
        digests = []
        if self.runner.journal is not None:
            digests = [member.digest for member in members]
        return self.runner.run(list(members), label, incumbent, digests=digests)
