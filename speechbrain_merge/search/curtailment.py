r"""Early rejection by chance: stop scoring a trial that will hardly win.

Exact racing (``speechbrain_merge.search.racing``) stops a trial when it has lost
even if it made no further error. In clinical trials that is *deterministic
curtailment*; *stochastic curtailment* (Lan, Simon and Halperin, "Stochastically
curtailed tests in long-term clinical trials", Sequential Analysis 1, 1982) stops
when, given what was seen, the probability of the other outcome is at most
``error``. That may be asked after each batch: the probability of winning, given
all that was seen so far, is a martingale, and where it is at most ``error`` at
the moment of stopping, whenever that is, no more than a part ``error`` of the
stopped trials would have won.

This holds as far as the model of the errors does. It is made from the earlier
trials of the search, and errs on the side of going on:

- An utterance ``u`` that had ``e_u`` errors in ``n_u`` trials is expected to have
  ``m_u = e_u / (n_u + 1)``, which is less than it had: as if there had been one
  more trial, without an error.
- The errors of the new trial are Poisson with means ``ρ m_u``. How good it is
  beside the earlier ones, ``ρ``, is not known: it is Gamma distributed with mean
  1, and a standard deviation of 0.3, before anything was decoded, and becomes
  known as its errors are: with ``E`` errors where ``M`` were expected, its shape
  is ``a + E`` and its rate is ``a + M``, ``a = 10``. (Here expected means
  ``e_u / n_u``, so that it counts as better rather than worse.)
- The trial wins if what is not decoded yet costs at most ``g``, the gap to the
  incumbent. The number of errors there is then negative binomial, each of them
  costs what one in its domain does, and the distribution of their sum is
  computed by Panjer's recursion ("Recursive evaluation of a family of compound
  distributions", ASTIN Bulletin 12, 1981), with costs rounded down.

The outcome of a search may therefore differ from that of full scoring, with a
stated probability for each trial. Results say so.

Example
-------
>>> [
...     round(chance_of_fewer(gap, [0.5] * 40, [1.0] * 40, 30, 30.0), 4)
...     for gap in (2.0, 8.0, 14.0)
... ]
[0.0, 0.0081, 0.156]

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence

LEVEL = 10.0
"""``a``: the earlier trials tell as much about how good the next one is as so
many of its own errors."""

GRID = 8
"""Costs are rounded down to such a part of the smallest of them."""


def chance_of_fewer(
    gap: float,
    expected: Sequence[float],
    costs: Sequence[float],
    errors: float,
    foreseen: float,
) -> float:
    """How likely the rest of a trial costs no more than it may.

    Arguments
    ---------
    gap : float
        What it may cost.
    expected : list of float
        Errors expected of each utterance that is not decoded yet.
    costs : list of float
        The cost of one error in each of them, above zero.
    errors : float
        Errors in what was decoded.
    foreseen : float
        Errors that were expected there.

    Returns
    -------
    float
        The probability, not less than it is; 1 where it is not small.
    """
    if gap < 0:
        return 0.0
    by_cost: dict[float, float] = {}
    for cost, mean in zip(costs, expected):
        by_cost[cost] = by_cost.get(cost, 0.0) + mean
    shape, rate = LEVEL + errors, LEVEL + foreseen
    foretold = sum(by_cost.values())
    likely = sum(cost * mean for cost, mean in by_cost.items()) * shape / rate
    if gap >= likely:
        return 1.0  # about one half, or more
    unit = min(by_cost) / (GRID if len(by_cost) > 1 else 1)
    share = foretold / (rate + foretold)
    severity = [
        (int(cost / unit * (1 + 1e-9)), share * mean / foretold)
        for cost, mean in by_cost.items()
    ]
    # the distribution of the sum, in units of exp(scale)
    sums, scale = [1.0], shape * math.log1p(-share)
    for cell in range(1, int(gap / unit * (1 + 1e-9)) + 1):
        sums.append(
            sum(
                (1 + (shape - 1) * lag / cell) * part * sums[cell - lag]
                for lag, part in severity
                if lag <= cell
            )
        )
        if sums[-1] > 1e200:
            sums = [each * 1e-200 for each in sums]
            scale += 200 * math.log(10)
    return min(1.0, math.exp(min(0.0, scale + math.log(math.fsum(sums)))))
