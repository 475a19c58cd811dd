"""Greedy selection of the candidates to merge, by error rate.

SMAcT (Ducorroy and Riad, 2025, arXiv:2505.20477, Algorithm 1): start from the
first candidate and go through the others in an arbitrary order; a candidate
joins the merge if the merge with it has a strictly lower word error rate on the
selection set than the merge without it::

    E = {M_0};  best = WER(M_0)
    for M_i in M_1 ... M_(N-1):
        trial = WER(merge(E + {M_i}))
        if trial < best:
            E = E + {M_i};  best = trial

N candidates cost N evaluations, one of them of the first candidate alone. The
merge that comes out is never worse on the selection set than the first
candidate.

The defaults are SMAcT's. Greedy soup (Wortsman et al., 2022, arXiv:2203.05482)
is another search, and needs two options: it sorts the candidates first, best
first, and a candidate joins when the merge does not get worse::

    search: !new:speechbrain_merge.search.GreedySearch
        order: sorted
        accept: le

(The published code of greedy soup asks for strictly better, against its paper:
``order: sorted`` alone.)

Example
-------
>>> from collections import namedtuple
>>> from speechbrain_merge.search import GreedySearch, Tally
>>> Candidate = namedtuple("Candidate", "name")
>>> errors = {"a": 20, "a+b": 15, "a+b+c": 16, "a+b+d": 14}
>>> def score(selection, incumbent):
...     return Tally(errors["+".join(c.name for c in selection)], words=100)
>>> pool = [Candidate(name) for name in "abcd"]
>>> result = GreedySearch().run(pool, score, progress=False)
>>> result.selected, result.tally.value
(['a', 'b', 'd'], 14.0)
>>> [trial["accepted"] for trial in result.trials]
[True, True, False, True]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Sequence
from typing import Optional, Union

from speechbrain_merge.search.candidates import CandidateOrder, CandidateTrials
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.racing import check_accept
from speechbrain_merge.search.trials import (
    SearchResult,
    TrialRunner,
    check_count,
)


class GreedySearch:
    """Adds candidates one at a time and keeps those that lower the error rate.

    The defaults are SMAcT's, whose paper leaves the order open ("arbitrary").
    Greedy soup is ``order="sorted", accept="le"``.

    Arguments
    ---------
    order : str
        ``"given"``, ``"sorted"`` (best single candidate first) or
        ``"shuffled"``.
    accept : str
        ``"lt"``: strictly better. ``"le"``: not worse.
    limit : int, optional
        Largest number of candidates in the merge.
    patience : int, optional
        Stop after this many rejections in a row.
    seed : int
        Of the shuffle.
    sort_by : str
        For the sorted order: ``"selection"`` decodes the selection set with
        each candidate, in full; ``"pool"`` trusts the scores from training.
    score_singles : bool
        Score every candidate alone as well, for the picture of error rate
        against number of merged candidates.

    Example
    -------
    >>> GreedySearch(order="sorted", accept="le", patience=5).accept
    'le'
    """

    searches = "candidates"

    def __init__(
        self,
        order: str = "given",
        accept: str = "lt",
        limit: Optional[int] = None,
        patience: Optional[int] = None,
        seed: int = 0,
        sort_by: str = "selection",
        score_singles: bool = False,
    ):
        check_accept(accept)
        check_count(limit, "limit")
        check_count(patience, "patience")
        self.order = CandidateOrder(order, seed, sort_by)
        self.accept = accept
        self.limit = limit
        self.patience = patience
        self.score_singles = score_singles

    def run(
        self,
        candidates: Sequence,
        score: Callable,
        journal: Optional[Journal] = None,
        progress: bool = True,
        racing: Union[bool, float] = True,
    ) -> SearchResult:
        """Search.

        Arguments
        ---------
        candidates : list
            Objects with a ``name``, and a ``digest`` if there is a journal.
        score : callable
            ``score(selection, incumbent) -> Tally``: merge the selected
            candidates and count the errors of the merge on the selection set.
            With an incumbent, it may stop as soon as
            ``Race(incumbent, accept=search.accept).lost(errors so far)``.
        journal : Journal, optional
            Makes the search resumable.
        progress : bool
            Whether to show a bar.
        racing : bool or float
            If False, ``score`` never gets an incumbent: same outcome, and every
            trial has its full error rate.

        Returns
        -------
        SearchResult
        """
        runner = TrialRunner(score, journal, self.accept, racing)
        with CandidateTrials(
            "greedy search",
            candidates,
            runner,
            self.order,
            self.score_singles,
            progress,
        ) as trials:
            (first, *others), best = trials.start()
            members = [first]
            rejections = 0
            for step, candidate in enumerate(others, start=2):
                if len(members) == self.limit or rejections == self.patience:
                    break
                proposal = [*members, candidate]
                tally, accepted = trials.merge(
                    proposal, best, step, kept=len(members)
                )
                if accepted:
                    members, best = proposal, tally
                    rejections = 0
                else:
                    rejections += 1
            return trials.result(members, best)
