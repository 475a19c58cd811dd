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
  ``m_u = e_u / (n_u + 2)``, which is less than it had: as if there had been two
  more trials without an error.
- The errors of the new trial are Poisson with means ``ρ m_u``. How good it is
  beside the earlier ones, ``ρ``, is not known: it is Gamma distributed with mean
  1, and a standard deviation of 0.3, before anything was decoded, and becomes
  known as its errors are: with ``E`` errors where ``M`` were expected, its shape
  is ``a + E`` and its rate is ``a + M``, ``a = 10``. (Here expected means
  ``e_u / n_u``, so that it counts as better rather than worse.)
- The trial wins if what is not decoded yet costs at most ``g``, the gap to the
  incumbent. With ``c_u`` for the cost of an error, Chernoff's bound of that is

  ``P(Σ c_u x_u ≤ g) ≤ min_s e^{sg} (1 + Σ m_u (1 − e^{−s c_u}) / (a + M))^{−(a+E)}``

The outcome of a search may therefore differ from that of full scoring, with a
stated probability for each trial. Results say so.

Example
-------
>>> [
...     round(chance_of_fewer(gap, [0.5] * 40, [1.0] * 40, 30, 30.0), 4)
...     for gap in (2.0, 8.0, 14.0)
... ]
[0.0, 0.0342, 0.4991]

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence

import numpy

LEVEL = 10.0
"""``a``: the earlier trials tell as much about how good the next one is as so
many of its own errors."""

STEPS = numpy.geomspace(0.01, 100, 80)
"""Where ``s`` is looked for, in units of one error. Any ``s`` gives a bound."""


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
        An upper bound of the probability, at most 1.
    """
    if gap < 0:
        return 0.0
    if len(expected) == 0:
        return 1.0
    unit = float(numpy.mean(costs))
    weights = numpy.asarray(costs) / unit
    falls = -numpy.expm1(-STEPS[:, None] * weights)
    rates = falls @ numpy.asarray(expected, dtype=float)
    logarithms = STEPS * (gap / unit) - (LEVEL + errors) * numpy.log1p(
        rates / (LEVEL + foreseen)
    )
    return float(numpy.exp(min(0.0, logarithms.min())))
