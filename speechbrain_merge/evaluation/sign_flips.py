r"""The exact distribution of a sum when each term's sign is random.

Where two systems are equally good, each of the differences between them might
as well have gone the other way: all ``2ⁿ`` choices of signs are equally likely.
The p-value of their sum is the share of the choices that give one at least as
far from zero (Fisher's permutation test for pairs [1]). It needs no assumption
on how differences are distributed, and holds for two of them as for two
thousand. Errors are whole numbers (or halves, where two references are equally
good, which are doubled), so that the choices need not be listed: their
distribution is built up by one difference at a time.

Example
-------
>>> sign_flip_p_value([1, 1])  # both better: as likely as both worse
0.5
>>> sign_flip_p_value([1, 0, 1, 1, 1, 1, 1])  # 2 of 64; the zero has no sign
0.03125

References
----------
[1] R. A. Fisher, "The Design of Experiments", 1935, section 21.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """The share of all sign patterns whose sum is at least as far from zero.

    Arguments
    ---------
    differences : sequence of float
        Whole numbers, or fractions of small denominators where counts are
        averages over equally good references; zeros change nothing.

    Returns
    -------
    p_value : float
        Two-tailed, at least ``2 / 2ⁿ`` for ``n`` differences that are not zero,
        and 1 without any.

    Raises
    ------
    TypeError
        If a difference is neither.

    Example
    -------
    >>> sign_flip_p_value([3, -1, 2])
    0.5
    """
    differences = _in_whole_numbers(differences)
    sizes = [abs(int(difference)) for difference in differences if difference]
    reach = sum(sizes)
    # chances[s + reach] is the probability of the sum s
    chances = numpy.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in sizes:
        flipped = numpy.zeros_like(chances)
        flipped[size:] += chances[:-size]
        flipped[:-size] += chances[size:]
        chances = flipped / 2
    observed = abs(sum(int(difference) for difference in differences))
    sums = numpy.arange(-reach, reach + 1)
    return min(1.0, float(chances[numpy.abs(sums) >= observed].sum()))


LARGEST_DENOMINATOR = 12
"""Of differences of counts that are averages of up to four."""


def _in_whole_numbers(differences):
    """The differences times what makes all of them whole."""
    exact = []
    for difference in differences:
        close = Fraction(difference).limit_denominator(LARGEST_DENOMINATOR)
        if abs(close - Fraction(difference)) > 1e-9:
            raise TypeError(
                f"{difference!r} is not a whole number of errors, nor an "
                "average of a few: the exact test counts sums of whole numbers"
            )
        exact.append(close)
    factor = math.lcm(*(each.denominator for each in exact))
    return [int(each * factor) for each in exact]
