"""Changes between two systems, by kind of error and by utterance.

Two systems with nearly the same error rate may make quite different errors.
Two tables tell, as in Sundar et al. (2024, arXiv 2312.14378): how many of the
insertions, deletions and substitutions are gone (their Table 6), and which
utterances changed, the best and the worst of them (their Table 4). Both come
from the scores of utterances that ``speechbrain_merge.evaluation`` keeps, so
nothing is decoded again; ``speechbrain_merge.report.markdown_table`` draws
them.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> said = {"u1": "a b c", "u2": "d e"}
>>> before = score_utterances(said, {"u1": "a x c d", "u2": "d e"})
>>> after = score_utterances(said, {"u1": "a b c d", "u2": "d"})
>>> header, rows = error_change_rows(before, after)
>>> for row in [header, *rows]:
...     print(" | ".join(row))
errors | before | after | change | improved | utterances better | worse
insertions | 1 | 1 | 0 | 0.0 % | 0 | 0
deletions | 0 | 1 | +1 | – | 0 | 1
substitutions | 1 | 0 | -1 | 100.0 % | 1 | 0
all | 2 | 2 | 0 | 0.0 % | 1 | 1

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

from speechbrain_merge.evaluation.error_rates import UtteranceScore, pair_scores

KINDS = ("insertions", "deletions", "substitutions")


class ErrorChange(NamedTuple):
    """How many errors of one kind two systems make.

    Arguments
    ---------
    kind : str
        "insertions", "deletions", "substitutions", or "errors" for all.
    before : float
        How many the first system makes.
    after : float
        How many the second makes.
    better : int
        Utterances in which the second makes fewer.
    worse : int
        Utterances in which it makes more.
    """

    kind: str
    before: float
    after: float
    better: int
    worse: int

    @property
    def improved(self) -> Optional[float]:
        """Percent of the errors that are gone; None where there were none."""
        if not self.before:
            return None
        return 100 * (self.before - self.after) / self.before


def error_changes(
    before: Sequence[UtteranceScore], after: Sequence[UtteranceScore]
) -> list:
    """Compares two systems by kind of error, and by all errors.

    Arguments
    ---------
    before : sequence of UtteranceScore
        Scores of one system.
    after : sequence of UtteranceScore
        Scores of the other, of the same utterances in any order.

    Returns
    -------
    list of ErrorChange
        Insertions, deletions, substitutions, all errors.

    Raises
    ------
    ValueError
        Where the two are not of the same utterances.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u": "a b c d"}
    >>> before = score_utterances(said, {"u": "a x y d"})
    >>> after = score_utterances(said, {"u": "a b x d"})
    >>> error_changes(before, after)[2].improved
    50.0
    """
    pairs = [
        (first.counts, second.counts)
        for first, second in pair_scores(before, after)
    ]
    changes = []
    for kind in (*KINDS, "errors"):
        counts = [
            (getattr(first, kind), getattr(second, kind))
            for first, second in pairs
        ]
        changes.append(
            ErrorChange(
                kind,
                sum(first for first, _ in counts),
                sum(second for _, second in counts),
                sum(second < first for first, second in counts),
                sum(second > first for first, second in counts),
            )
        )
    return changes


def error_change_rows(
    before: Sequence[UtteranceScore], after: Sequence[UtteranceScore]
) -> tuple:
    """Header and cells of the table of kinds of errors.

    Arguments
    ---------
    before, after : sequence of UtteranceScore
        As for ``error_changes``.

    Returns
    -------
    header : list of str
    rows : list of list of str
    """
    header = [
        "errors",
        "before",
        "after",
        "change",
        "improved",
        "utterances better",
        "worse",
    ]
    rows = [
        [
            "all" if change.kind == "errors" else change.kind,
            f"{change.before:g}",
            f"{change.after:g}",
            _signed(change.after - change.before),
            "–" if change.improved is None else f"{change.improved:.1f} %",
            str(change.better),
            str(change.worse),
        ]
        for change in error_changes(before, after)
    ]
    return header, rows


def changed_utterances(
    before: Sequence[UtteranceScore],
    after: Sequence[UtteranceScore],
    best: Optional[int] = None,
    worst: Optional[int] = None,
) -> list:
    """The utterances that one system recognises otherwise than the other.

    Arguments
    ---------
    before, after : sequence of UtteranceScore
        Scores of two systems, of the same utterances.
    best : int, optional
        Only so many of those that gained most.
    worst : int, optional
        Only so many of those that lost most. Without both, all that changed,
        also those with as many errors as before.

    Returns
    -------
    list of (UtteranceScore, UtteranceScore)
        Before and after: from the largest gain to the largest loss, in errors,
        the shorter utterance first where they are equal in gain.

    Raises
    ------
    ValueError
        Where the two are not of the same utterances.
    """
    changed = sorted(
        (
            (first, second)
            for first, second in pair_scores(before, after)
            if first.hypothesis != second.hypothesis
        ),
        key=lambda pair: (_gain(pair), pair[0].words, str(pair[0].id)),
    )
    if best is None and worst is None:
        return changed
    gained = [pair for pair in changed if _gain(pair) < 0]
    lost = [pair for pair in changed if _gain(pair) > 0]
    kept = max(len(lost) - (worst or 0), 0)
    return gained[: best or 0] + lost[kept:]


def changed_utterance_rows(
    before: Sequence[UtteranceScore],
    after: Sequence[UtteranceScore],
    best: Optional[int] = 5,
    worst: Optional[int] = 5,
) -> tuple:
    """Header and cells of the table of utterances.

    Arguments
    ---------
    before, after : sequence of UtteranceScore
        Scores of two systems, of the same utterances.
    best, worst : int, optional
        As for ``changed_utterances``; both None give all.

    Returns
    -------
    header : list of str
    rows : list of list of str
        Words that the alignment has as errors are in bold; ``(…)`` stands for
        a word that was left out.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> said = {"u1": "one two three"}
    >>> before = score_utterances(said, {"u1": "one too"})
    >>> after = score_utterances(said, {"u1": "one two"})
    >>> changed_utterance_rows(before, after)[1]
    [['u1', '-1', 'one two three', 'one **too** (…)', 'one two (…)']]
    """
    header = ["utterance", "errors", "said", "before", "after"]
    rows = [
        [
            str(first.id),
            _signed(_gain((first, second))),
            " ".join(first.reference),
            _marked(first),
            _marked(second),
        ]
        for first, second in changed_utterances(before, after, best, worst)
    ]
    return header, rows


def _gain(pair):
    """Errors after, less errors before: negative where it got better."""
    return pair[1].errors - pair[0].errors


def _signed(number):
    return f"{number:+g}" if number else "0"


def _marked(score):
    """The hypothesis, with its errors marked."""
    words, heard = [], iter(score.hypothesis)
    for step in score.operations:
        if step == "D":
            words.append("(…)")
        else:
            word = next(heard)
            words.append(word if step == "=" else f"**{word}**")
    return " ".join(words)
