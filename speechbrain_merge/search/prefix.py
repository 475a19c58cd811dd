"""Error rate against the number of merged candidates.

Merges the first candidate, the first two, and so on to all of them: the curve
of MAST (all checkpoints of one run) and MAcT (the best checkpoint of each run)
in Ducorroy and Riad, 2025, arXiv:2505.20477, Figure 2. The papers merge all;
``pick="best"`` keeps the shortest prefix with the lowest error rate instead.

Example
-------
>>> from collections import namedtuple
>>> from speechbrain_merge.search import PrefixSearch, Tally
>>> Candidate = namedtuple("Candidate", "name")
>>> errors = {1: 20, 2: 14, 3: 15}
>>> def score(selection, incumbent):
...     return Tally(errors[len(selection)], words=100)
>>> pool = [Candidate(name) for name in "abc"]
>>> PrefixSearch().run(pool, score, progress=False).selected
['a', 'b', 'c']
>>> result = PrefixSearch(pick="best").run(pool, score, progress=False)
>>> result.selected, [trial["value"] for trial in result.trials]
(['a', 'b'], [20.0, 14.0, 15.0])

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Callable, Sequence
from typing import Optional, Union

from speechbrain_merge.search.candidates import CandidateOrder, CandidateTrials
from speechbrain_merge.search.journal import Journal
from speechbrain_merge.search.trials import SearchResult, TrialRunner

PICKS = ("all", "best")


class PrefixSearch:
    """Scores the merge of the first k candidates for every k.

    Arguments
    ---------
    pick : str
        ``"all"``: keep all candidates, the curve is a report; nothing is raced,
        as the curve wants every value. ``"best"``: keep the shortest prefix
        with the lowest error rate; longer ones race against it.
    order : str
        ``"given"``, ``"sorted"`` or ``"shuffled"``, see ``GreedySearch``.
    seed : int
        Of the shuffle.
    sort_by : str
        ``"selection"`` or ``"pool"``.
    score_singles : bool
        Score every candidate alone as well.
    """

    searches = "candidates"
    accept = "lt"

    def __init__(
        self,
        pick: str = "all",
        order: str = "given",
        seed: int = 0,
        sort_by: str = "selection",
        score_singles: bool = False,
    ):
        if pick not in PICKS:
            raise ValueError(f"pick={pick!r}: expected one of {PICKS}")
        self.pick = pick
        self.order = CandidateOrder(order, seed, sort_by)
        self.score_singles = score_singles

    def run(
        self,
        candidates: Sequence,
        score: Callable,
        journal: Optional[Journal] = None,
        progress: bool = True,
        racing: Union[bool, float] = True,
    ) -> SearchResult:
        """Score every prefix.

        Arguments
        ---------
        candidates : list
            Objects with a ``name``, and a ``digest`` if there is a journal.
        score : callable
            ``score(selection, incumbent) -> Tally``, see ``GreedySearch.run``.
        journal : Journal, optional
            Makes the search resumable.
        progress : bool
            Whether to show a bar.
        racing : bool or float
            If False, every prefix is scored in full also with ``pick="best"``.

        Returns
        -------
        SearchResult
        """
        runner = TrialRunner(score, journal, self.accept, racing)
        with CandidateTrials(
            "prefix search",
            candidates,
            runner,
            self.order,
            self.score_singles,
            progress,
        ) as trials:
            ordered, best = trials.start()
            members = ordered[:1]
            for count in range(2, len(ordered) + 1):
                proposal = ordered[:count]
                tally, accepted = trials.merge(
                    proposal,
                    best if self.pick == "best" else None,
                    step=count,
                    kept=len(members),
                )
                if accepted:
                    members, best = proposal, tally
            return trials.result(members, best)
