"""Search for what to merge and with which coefficients, by error rate.

Searches over candidates (``GreedySearch``, ``PrefixSearch``) get a list of
candidates and ``score(selection, incumbent)``; searches over coefficients
(``GridSearch``, ``GoldenSection``, ``CoordinateSearch``, ``CMAES``) get
``score(parameters, incumbent)``. Which of the two a search is, its attribute
``searches`` says. Both get back a ``Tally`` of exact error counts, which may be
incomplete if the trial had lost early (``racing``), and write each trial to a
``Journal``, so that they can be killed and started again. Nothing here knows a
model, a Brain or an audio file.

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.search.cma_es import CMAES
from speechbrain_merge.search.coefficients import CoefficientResult
from speechbrain_merge.search.coordinate import CoordinateSearch
from speechbrain_merge.search.decoding_order import DecodingOrder
from speechbrain_merge.search.golden_section import GoldenSection
from speechbrain_merge.search.greedy import GreedySearch
from speechbrain_merge.search.grid import GridSearch
from speechbrain_merge.search.journal import Journal, trial_key
from speechbrain_merge.search.layer_similarity import (
    LayerDistances,
    layer_distances,
)
from speechbrain_merge.search.prefix import PrefixSearch
from speechbrain_merge.search.racing import Race, Savings, decisive_first
from speechbrain_merge.search.tally import Tally
from speechbrain_merge.search.trials import SearchResult

__all__ = [
    "CMAES",
    "CoefficientResult",
    "CoordinateSearch",
    "DecodingOrder",
    "GoldenSection",
    "GreedySearch",
    "GridSearch",
    "Journal",
    "LayerDistances",
    "PrefixSearch",
    "Race",
    "Savings",
    "SearchResult",
    "Tally",
    "decisive_first",
    "layer_distances",
    "trial_key",
]
