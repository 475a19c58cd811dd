r"""How much worse a model is than its base on sets that it was not trained on.

Fine-tuning on new domains costs accuracy on the old ones, the retention sets.
The forgetting of Plantinga et al. [1] is the relative growth of their word
error rate, in %: 0 keeps everything, 100 makes twice the errors, and below 0 the
model has become better. Over several sets the papers' number is

.. math::
    100 \left(\frac{\sum_s r_s}{\sum_s r^0_s} - 1\right)

with each set's rate r after and r0 before. It is the form "sum" here. The paper
says "test-clean and test-other combined", which read strictly pools the errors
over the words of all sets; that is "pooled", the default. Both agree where the
sets have equally many words. The mean of the relative changes does not: it does
not give the paper's numbers.

Example
-------
LibriSpeech test-clean and test-other before and after averaging experts [1]:

>>> before = {"clean": 1.96, "other": 3.65}
>>> after = {"clean": 1.98, "other": 4.13}
>>> round(forgetting(before, after, form="sum"), 1)
8.9

References
----------
[1] P. Plantinga, J. Yoo, A. Girma, C. Dhir on averages of domain experts, of
which "Continual Learning for End-to-End ASR by Averaging Domain Experts"
(arXiv 2305.09681) is the first version.
[2] D. Lopez-Paz, M. Ranzato, "Gradient Episodic Memory for Continual
Learning", NeurIPS 2017 (backward and forward transfer).

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping, Sequence
from typing import Optional

from speechbrain_merge.evaluation.counts import counts_of, rate_of


def forgetting(
    before: Mapping, after: Mapping, form: str = "pooled"
) -> Optional[float]:
    """Relative growth in % of the error rate on the retention sets.

    Arguments
    ---------
    before : dict
        Retention set to what was measured with the base: ErrorCounts, (errors,
        words), a dict with "errors" and "words", or a rate in %.
    after : dict
        The same sets with the model in question.
    form : str
        "pooled": errors over words of all sets together; needs counts.
        "sum": sum of the rates after, over sum of the rates before.

    Returns
    -------
    float
        In %. None where the base made no errors: there is nothing to relate to.

    Raises
    ------
    ValueError
        Where the sets differ, or counts are missing for "pooled".

    Example
    -------
    >>> before = {"clean": (20, 1000), "other": (80, 1000)}
    >>> after = {"clean": (30, 1000), "other": (80, 1000)}
    >>> round(forgetting(before, after), 6)
    10.0
    >>> round(forgetting({"clean": 2.0}, {"clean": 1.5}, form="sum"), 6)
    -25.0
    """
    if form not in ("pooled", "sum"):
        raise ValueError(f'form is "pooled" or "sum", not {form!r}')
    if not before or set(before) != set(after):
        raise ValueError(
            "forgetting compares the same retention sets, at least one: "
            f"before has {sorted(before)}, after has {sorted(after)}"
        )
    combine = _pooled_rate if form == "pooled" else _summed_rate
    old, new = combine(before), combine(after)
    return 100 * (new / old - 1) if old else None


def backward_transfer(matrix: Sequence[Sequence]) -> float:
    """What learning later domains did to earlier ones, in WER points [2].

    Arguments
    ---------
    matrix : sequence of sequence
        Row i: all T domains measured after i domains were learned, in the
        order of learning; row 0 is the base. So T + 1 rows of T entries, each
        a rate in % or counts.

    Returns
    -------
    float
        Mean over the domains but the last of (rate when just learned - rate in
        the end). Below 0 is forgetting.

    Example
    -------
    >>> base, first, second = [30.0, 40.0], [10.0, 38.0], [16.0, 20.0]
    >>> backward_transfer([base, first, second])
    -6.0
    """
    rates = _transfer_rates(matrix)
    last = len(rates) - 1
    changes = [rates[i + 1][i] - rates[last][i] for i in range(last - 1)]
    return sum(changes) / len(changes)


def forward_transfer(matrix: Sequence[Sequence]) -> float:
    """What learning earlier domains did to later ones, in WER points [2].

    Arguments
    ---------
    matrix : sequence of sequence
        As for ``backward_transfer``.

    Returns
    -------
    float
        Mean over the domains but the first of (rate of the base - rate just
        before learning it). Above 0, the earlier domains helped.

    Example
    -------
    >>> base, first, second = [30.0, 40.0], [10.0, 38.0], [16.0, 20.0]
    >>> forward_transfer([base, first, second])
    2.0
    """
    rates = _transfer_rates(matrix)
    gains = [rates[0][i] - rates[i][i] for i in range(1, len(rates) - 1)]
    return sum(gains) / len(gains)


def _pooled_rate(measured):
    """Errors over words of all sets together."""
    counts = {name: counts_of(value) for name, value in measured.items()}
    bare = [name for name, value in counts.items() if value is None]
    if bare:
        raise ValueError(
            f"{bare} are bare rates, and pooling needs (errors, words): give "
            'counts, or say form="sum"'
        )
    errors = sum(errors for errors, _ in counts.values())
    words = sum(words for _, words in counts.values())
    if not words:
        raise ValueError(f"no reference words in the sets {sorted(measured)}")
    return errors / words


def _summed_rate(measured):
    """Sum of the rates of the sets."""
    rates = {name: rate_of(value) for name, value in measured.items()}
    empty = [name for name, rate in rates.items() if rate is None]
    if empty:
        raise ValueError(f"no reference words in the sets {empty}")
    return sum(rates.values())


def _transfer_rates(matrix):
    """The matrix of a sequence as rates, its shape checked."""
    rates = [[rate_of(entry) for entry in row] for row in matrix]
    domains = len(rates) - 1
    if domains < 2 or any(len(row) != domains for row in rates):
        raise ValueError(
            "a sequence of T >= 2 domains needs T + 1 rows (the base first) "
            f"of T entries, not rows of {[len(row) for row in rates]}"
        )
    if any(None in row for row in rates):
        raise ValueError("a set in the matrix has no reference words")
    return rates
