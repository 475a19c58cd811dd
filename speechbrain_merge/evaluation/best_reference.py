"""SpeechBrain's ``ErrorRateStats`` for the better of several references.

A speaker who stutters can be transcribed with every repetition, or with what
was meant; a recogniser may do either. The Speech Accessibility Project challenge
[1] scores each utterance against both transcripts and counts the better one,
and no more errors in an utterance than its transcript has words, so that a
single hallucination cannot outweigh a hundred good utterances. Where both
transcripts are equally good, the averages of their errors and of their words
count. It is the rule of ``score_utterances(..., clip=True)``, and here a tracker
that a Brain fills batch by batch. As a YAML step of a recipe::

    error_rate_computer: !name:speechbrain_merge.evaluation.BestReferenceStats
        clip: True

The number of reference words then depends on the hypotheses. So a search over
merges decodes each trial in full (``words_vary``), since racing needs to know
the words of the whole set in advance.

Example
-------
>>> tracker = BestReferenceStats(clip=True)
>>> tracker.append(
...     ids=["u1", "u2"],
...     predict=[["i", "want", "it"], ["no", "no", "no"]],
...     target=[["i", "i", "want", "it"], ["no"]],
...     others=[[["i", "want", "it"], ["no"]]],
... )
>>> tracker.summarize("num_edits"), tracker.summarize("num_scored_tokens")
(1, 4)

References
----------
[1] X. Zheng et al., "The Interspeech 2025 Speech Accessibility Project
Challenge" (arXiv 2507.22047).

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence

from speechbrain.utils.edit_distance import EDIT_SYMBOLS
from speechbrain.utils.metric_stats import ErrorRateStats
from speechbrain_merge.evaluation.error_rates import (
    UtteranceScore,
    score_utterances,
)


class BestReferenceStats(ErrorRateStats):
    """Error rates against the best of several references.

    Arguments
    ---------
    clip : bool
        Count no more errors in an utterance than it has reference words.

    Example
    -------
    See the module.
    """

    words_vary = True

    def __init__(self, clip: bool = False):
        super().__init__()
        self.clip = clip

    def append(
        self,
        ids: Sequence[str],
        predict: Sequence[Sequence[str]],
        target: Sequence[Sequence[str]],
        others: Sequence[Sequence[Sequence[str]]] = (),
    ) -> None:
        """Scores the utterances of a batch.

        Arguments
        ---------
        ids : list of str
            Names of the utterances.
        predict : list of list of str
            The recognised words of each.
        target : list of list of str
            The words of each in the first reference.
        others : list of list of list of str
            The same for each further reference.

        Raises
        ------
        ValueError
            Where these are not of the same utterances.
        """
        self.ids.extend(ids)
        heard = _named(ids, predict, "predict")
        versions = [
            _named(ids, version, "a reference") for version in (target, *others)
        ]
        scores = score_utterances(versions, heard, clip=self.clip)
        self.scores.extend(_details(score) for score in scores)


def _named(ids, texts, what):
    """The texts of a batch by their utterances."""
    if len(texts) != len(ids):
        raise ValueError(
            f"{len(ids)} utterances and {len(texts)} texts in {what}: expected "
            "one for each"
        )
    return {name: list(words) for name, words in zip(ids, texts)}


def _details(score: UtteranceScore):
    """A score in the form of SpeechBrain's edit distance."""
    counts = score.counts
    return {
        "key": score.id,
        "scored": True,
        "hyp_absent": False,
        "hyp_empty": not score.hypothesis,
        "num_edits": _whole(counts.errors),
        "num_ref_tokens": _whole(counts.words),
        "WER": counts.rate if counts.words else 100.0 * bool(counts.errors),
        "insertions": _whole(counts.insertions),
        "deletions": _whole(counts.deletions),
        "substitutions": _whole(counts.substitutions),
        "alignment": _alignment(score.operations),
        "ref_tokens": list(score.reference),
        "hyp_tokens": list(score.hypothesis),
        "references": score.references,
    }


def _whole(count):
    """A count as an int, where it is no average."""
    return int(count) if count == int(count) else count


def _alignment(operations):
    """Steps of an alignment with the places of their words."""
    said = heard = 0
    alignment = []
    for step in operations:
        in_reference = step != EDIT_SYMBOLS["ins"]
        in_hypothesis = step != EDIT_SYMBOLS["del"]
        alignment.append(
            (
                step,
                said if in_reference else None,
                heard if in_hypothesis else None,
            )
        )
        said += in_reference
        heard += in_hypothesis
    return alignment
