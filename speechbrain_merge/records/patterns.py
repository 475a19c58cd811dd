r"""Regular expressions from files, bounded in time.

Python's ``re`` tries one way to match after another. For ``(a+)+b`` their
number doubles with each letter of the text, so that a pattern of six characters
in someone's YAML may run for years, and nothing can interrupt it. So patterns
that others wrote are looked at first, and what might need too many ways is
refused.

The number of ways is estimated from above: each quantifier may end at any letter
of the text, each alternative doubles them, and a quantifier on a group, which
multiplies them in ways that cannot be told from its text, is refused.

Example
-------
>>> find(r"layers\.(0|1)\.", "encoder.layers.1.bias", "plan.yaml").group(1)
'1'
>>> find("(a+)+b", "aaaa", "plan.yaml, key 'include'")
Traceback (most recent call last):
...
speechbrain_merge.records.errors.RecordError: plan.yaml, key 'include': '(a+)+b' may take for ever to match. Expected few of * + ? | {}, and none after a group, as in layers\.(0|1)\.

Authors
 * The speechbrain_merge authors 2026
"""

import math
import re
from functools import lru_cache
from typing import Optional

from speechbrain_merge.records.errors import RecordError, shown

MOST_WAYS = 10**7
"""Ways to match that are tried at most: about a second."""

LONGEST_PATTERN = 1000


def find(
    pattern: str, text: str, where: str, most: float = MOST_WAYS
) -> Optional[re.Match]:
    """What ``re.search`` gives, if it is sure to end soon.

    Arguments
    ---------
    pattern : str
        A regular expression.
    text : str
        What is searched in.
    where : str
        The file and the entry of the pattern, for the error.
    most : float
        Ways that may be tried.

    Returns
    -------
    re.Match or None

    Raises
    ------
    RecordError
        Where it is no regular expression, or may take too long.
    """
    if ways(pattern, len(text)) > most:
        raise RecordError(
            f"{where}: {shown(pattern)} may take for ever to match. Expected "
            "few of * + ? | {}, and none after a group, as in "
            r"layers\.(0|1)\."
        )
    return compiled(pattern, where).search(text)


@lru_cache(maxsize=4096)
def compiled(pattern: str, where: str) -> re.Pattern:
    """A regular expression that was written by someone else.

    Arguments
    ---------
    pattern : str
        The expression.
    where : str
        The file and the entry, for the error.

    Returns
    -------
    re.Pattern

    Raises
    ------
    RecordError
        Where it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        reason = str(error) or "it is nested too deeply"
    raise RecordError(
        f"{where}: {shown(pattern)} is no regular expression: {reason}"
    )


def ways(pattern: str, length: int) -> float:
    """How many ways a search in a text may try, at most.

    Arguments
    ---------
    pattern : str
        A regular expression.
    length : int
        Characters of the text.

    Returns
    -------
    float
        Infinite where nothing is known.

    Example
    -------
    >>> ways("weight", 50), ways(".*weight", 50), ways("(a|b)*", 50)
    (51, 1326, inf)
    """
    found = _quantifiers(pattern)
    if found is None:
        return math.inf
    repeats, choices = found
    # One more: a search may begin at each letter
    return math.comb(length + repeats + 1, repeats + 1) << choices


@lru_cache(maxsize=4096)
def _quantifiers(pattern):
    """Quantifiers and alternatives in a pattern; None where it is refused."""
    if len(pattern) > LONGEST_PATTERN:
        return None
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern, flags=re.DOTALL)
    # (?:…), (?=…) and the like begin a group, and repeat nothing. (?x) lets
    # blanks stand between a group and its quantifier
    verbose = re.search(r"\(\?[a-zA-Z]*x", plain)
    # A bracket in a comment would begin no class, and hide what comes after
    if "(?#" in pattern:
        return None
    plain = plain.replace("(?", "(")
    choices = len(re.findall(r"[?|]", plain))
    if verbose or re.search(r"\)[*+{]", plain) or choices > 100:
        return None
    return len(re.findall(r"[*+{]", plain)), choices
