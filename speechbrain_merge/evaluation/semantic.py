r"""The semantic score of the Speech Accessibility Project challenge.

A word error rate counts every word the same. Whether somebody is understood
depends on which words are wrong: "the medicine should be taken" for "should not
be taken" is one error in five. The semantic score [1, 2] adds up three parts,
each brought to the range from 0 to 1 and weighed as fits the judgments of human
listeners best:

============================================ ======== ==============================
part                                         weight   range brought to 0 … 1
============================================ ======== ==============================
entailment, the mean of both directions      0.4012   0.0028752246871590614 to
                                                      0.9661698341369629
phonetic: Jaro-Winkler of Soundex codes      0.3201   0.5 to 1
BERTScore, F against its baseline            0.2785   -0.1180 to 1
============================================ ======== ==============================

.. math::
    S = \sum_p w_p \min\Big(1, \max\Big(0, \frac{x_p - l_p}{u_p - l_p}
    \Big)\Big)

Weights and ranges are those of the authors' implementation [1]. The Soundex code
is taken of the whole transcript, and so tells of its first sounds alone.
Ducorroy and Riad [3] report the mean over all utterances, times 100.

A study shows it beside the error rate::

    study: !new:speechbrain_merge.study.Study
        measures:
            SemScore: !new:speechbrain_merge.evaluation.SemanticScore

References
----------
[1] B. Phukon, X. Zheng, M. Hasegawa-Johnson, "Aligning ASR Evaluation with
Human and LLM Judgments: Intelligibility Metrics Using Phonetic, Semantic, and
NLI Approaches", Interspeech 2025 (arXiv 2506.16528), and the code of its
repository.
[2] X. Zheng et al., "The Interspeech 2025 Speech Accessibility Project
Challenge" (arXiv 2507.22047).
[3] M. Ducorroy, R. Riad, arXiv 2505.20477.

Authors
 * The speechbrain_merge authors 2026
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Optional

from speechbrain_merge.evaluation.bert_score import BERTScore
from speechbrain_merge.evaluation.entailment import Entailment

WEIGHTS = {"entailment": 0.4012, "bert_score": 0.2785, "phonetic": 0.3201}

RANGES = {
    "entailment": (0.0028752246871590614, 0.9661698341369629),
    "bert_score": (-0.1180, 1.0),
    "phonetic": (0.5, 1.0),
}


@dataclasses.dataclass(frozen=True)
class SemanticParts:
    """What the semantic score of one utterance is made of.

    Arguments
    ---------
    entailment : float
        Mean probability that one text entails the other.
    bert_score : float
        F of BERTScore.
    phonetic : float
        Likeness of the Soundex codes.

    Example
    -------
    >>> SemanticParts(entailment=0.9, bert_score=1.0, phonetic=1.0).phonetic
    1.0
    """

    entailment: float
    bert_score: float
    phonetic: float


class SemanticScore:
    """How well the meaning of utterances was recognised.

    Arguments
    ---------
    bert_score : callable, optional
        ``(references, hypotheses) -> list of float``; by default ``BERTScore()``,
        which needs roberta-large.
    entailment : callable, optional
        ``(premises, hypotheses) -> list of float``; by default
        ``Entailment()``, which needs the challenge's model.
    weights : dict, optional
        Part to its weight; by default the challenge's.

    Raises
    ------
    ValueError
        Where weights are wrong, or, at the first texts, a model is not found.

    Example
    -------
    >>> score = SemanticScore(
    ...     bert_score=lambda said, heard: [1.0],
    ...     entailment=lambda said, heard: [0.5],
    ... )
    >>> score(["open the door"], ["open the door"])
    [0.8056461704020412]
    """

    def __init__(
        self,
        bert_score: Optional[Callable] = None,
        entailment: Optional[Callable] = None,
        weights: Optional[Mapping[str, float]] = None,
    ):
        self.bert_score = bert_score or BERTScore()
        self.entailment = entailment or Entailment()
        self.weights = dict(WEIGHTS if weights is None else weights)
        if set(self.weights) != set(WEIGHTS):
            raise ValueError(
                f"`weights` name {', '.join(sorted(self.weights)) or 'nothing'}"
                f"; expected {', '.join(sorted(WEIGHTS))}"
            )
        if min(self.weights.values()) < 0:
            raise ValueError(f"`weights` are negative: {self.weights}")

    def require(self) -> None:
        """Raises where something that the parts need is not there.

        Raises
        ------
        ImportError, ValueError
            Saying what to do.
        """
        phonetic_similarity("", "")
        for part in (self.bert_score, self.entailment):
            if hasattr(part, "require"):
                part.require()

    def __call__(
        self, references: Sequence[str], hypotheses: Sequence[str]
    ) -> list[float]:
        """Scores utterances.

        Arguments
        ---------
        references : list of str
            What was said.
        hypotheses : list of str
            What was recognised.

        Returns
        -------
        list of float
            From 0 to the sum of the weights, which is 0.9998 for the
            challenge's; higher is better.
        """
        return [
            sum(
                weight * scaled(getattr(parts, name), *RANGES[name])
                for name, weight in self.weights.items()
            )
            for parts in self.parts(references, hypotheses)
        ]

    def parts(
        self, references: Sequence[str], hypotheses: Sequence[str]
    ) -> list[SemanticParts]:
        """The parts before they are scaled and weighed.

        Arguments
        ---------
        references : list of str
            What was said.
        hypotheses : list of str
            What was recognised.

        Returns
        -------
        list of SemanticParts

        Raises
        ------
        ValueError
            Where there are not as many of one as of the other.
        """
        if len(references) != len(hypotheses):
            raise ValueError(
                f"{len(references)} references and {len(hypotheses)} "
                "hypotheses: expected as many of both"
            )
        if not references:
            return []
        alike = self.bert_score(references, hypotheses)
        forwards = self.entailment(references, hypotheses)
        backwards = self.entailment(hypotheses, references)
        return [
            SemanticParts(
                entailment=(forward + backward) / 2,
                bert_score=same,
                phonetic=phonetic_similarity(said, heard),
            )
            for said, heard, same, forward, backward in zip(
                references, hypotheses, alike, forwards, backwards
            )
        ]


def scaled(value: float, low: float, high: float) -> float:
    """A value brought from a range to 0 … 1, and cut off there.

    Arguments
    ---------
    value : float
        The value.
    low, high : float
        What becomes 0 and 1.

    Returns
    -------
    float

    Example
    -------
    >>> scaled(0.75, 0.5, 1.0), scaled(0.2, 0.5, 1.0)
    (0.5, 0.0)
    """
    return max(0.0, min(1.0, (value - low) / (high - low)))


def phonetic_similarity(reference: str, hypothesis: str) -> float:
    """The Jaro-Winkler similarity of the Soundex codes of two texts.

    Arguments
    ---------
    reference : str
        What was said.
    hypothesis : str
        What was recognised.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ImportError
        Where jellyfish, the library that the challenge uses, is not installed.

    Example
    -------
    >>> phonetic_similarity("call Rupert", "call Robert")
    1.0
    >>> round(phonetic_similarity("Robert", "Rubin"), 4)
    0.6667
    """
    try:
        import jellyfish
    except ImportError as error:
        raise ImportError(
            "the semantic score needs jellyfish: pip install "
            "'speechbrain_merge[semantic]'"
        ) from error
    return jellyfish.jaro_winkler_similarity(
        jellyfish.soundex(hypothesis), jellyfish.soundex(reference)
    )
