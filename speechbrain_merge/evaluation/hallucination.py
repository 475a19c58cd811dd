"""Find the utterances in which a recogniser hallucinates.

A merged or fine-tuned Whisper may loop over one phrase, or go on after the
speech has ended. A handful of such utterances can carry half of the errors of a
set, and a mean hides them. These flags name them.

Example
-------
>>> from speechbrain_merge.evaluation import score_utterances
>>> scores = score_utterances(
...     {"calm": "thank you", "loop": "good night to all of you"},
...     {"calm": "thank you", "loop": "good night good night good night"},
... )
>>> hallucinations(scores)
{'over_100': [], 'insertions': [], 'loops': ['loop']}

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterable, Sequence

from speechbrain_merge.evaluation.error_rates import UtteranceScore


def hallucinations(
    scores: Iterable[UtteranceScore],
    insertion_share: float = 0.5,
    minimum_insertions: int = 3,
    repeats: int = 3,
) -> dict[str, list[str]]:
    """Names of the utterances that look hallucinated, by kind of sign.

    Arguments
    ---------
    scores : iterable of UtteranceScore
        Scores of utterances, not clipped.
    insertion_share : float
        Flag an utterance with at least this many insertions a reference word,
    minimum_insertions : int
        and at least this many insertions.
    repeats : int
        Flag an utterance in which some phrase is said this many times in a
        row, more often in a row than in the reference.

    Returns
    -------
    dict
        "over_100": more errors than words; "insertions": words without speech;
        "loops": a phrase over and over. An utterance may be in several.

    Example
    -------
    >>> from speechbrain_merge.evaluation import score_utterances
    >>> scores = score_utterances({"u": ""}, {"u": "thanks for watching"})
    >>> hallucinations(scores)
    {'over_100': ['u'], 'insertions': ['u'], 'loops': []}
    """
    if repeats < 2:
        raise ValueError(f"repeats is at least 2, not {repeats}")
    flags = {"over_100": [], "insertions": [], "loops": []}
    for score in scores:
        inserted = score.counts.insertions
        if score.errors > score.words:
            flags["over_100"].append(score.id)
        if (
            inserted >= minimum_insertions
            and inserted >= insertion_share * score.words
        ):
            flags["insertions"].append(score.id)
        loop = longest_loop(score.hypothesis)
        if loop >= repeats and loop > longest_loop(score.reference):
            flags["loops"].append(score.id)
    return flags


def longest_loop(words: Sequence[str], longest_phrase: int = 8) -> int:
    """How many times in a row some phrase is said at most.

    Arguments
    ---------
    words : sequence of str
        What was said.
    longest_phrase : int
        Phrases of one to this many words are looked for.

    Returns
    -------
    int
        1 where no phrase is repeated, 0 where there are no words.

    Example
    -------
    >>> longest_loop("no no no i said no".split())
    3
    >>> longest_loop("and then and then we left".split())
    2
    """
    most = 1 if words else 0
    for size in range(1, min(longest_phrase, len(words) // 2) + 1):
        # a run of k words that equal the word `size` places before them is
        # the tail of k // size + 1 repetitions
        run = 0
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            most = max(most, run // size + 1)
    return most
