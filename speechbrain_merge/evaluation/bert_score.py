r"""BERTScore: how alike two texts are, by the embeddings of their tokens [1].

Each token of a text is matched with the token of the other text whose
contextual embedding is the nearest in angle. With the unit vectors
:math:`x_i` of the reference and :math:`\hat x_j` of the hypothesis,

.. math::
    R = \frac{1}{|x|} \sum_i \max_j x_i^\top \hat x_j, \quad
    P = \frac{1}{|\hat x|} \sum_j \max_i x_i^\top \hat x_j, \quad
    F = \frac{2 P R}{P + R}.

As in the authors' package ``bert-score``, the tokens that begin and end a text
can be matched, and are not counted in the means. ``baseline`` rescales: what
unrelated sentences reach becomes 0, so that the scores spread over the whole
range, :math:`(F - b) / (1 - b)`.

``tests/evaluation/references/make_bert_score.py`` compares the two on the same
encoder.

References
----------
[1] T. Zhang, V. Kishore, F. Wu, K. Q. Weinberger, Y. Artzi, "BERTScore:
Evaluating Text Generation with BERT", ICLR 2020 (arXiv 1904.09675).

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Sequence
from typing import Optional

import torch

from speechbrain_merge.evaluation.text_models import (
    load_text_model,
    longest_input,
    require_text_model,
)

ROBERTA_LARGE_BASELINE = 0.83122575
"""F of unrelated English sentences by the 17th layer of roberta-large, as
``bert-score`` 0.3.13 has it."""


class BERTScore:
    """The F of BERTScore for pairs of texts.

    Arguments
    ---------
    model : str
        A text encoder: a name at the Hugging Face hub, or a folder.
    layer : int
        Whose output embeds the tokens; 0 are the embeddings before the first
        layer. ``bert-score`` lists the best layer of many models.
    baseline : float, optional
        F of unrelated texts, by which scores are rescaled. None leaves them.
    device : str, optional
        By default the first GPU where there is one.
    batch_size : int
        Texts that are encoded at once.

    Raises
    ------
    ValueError
        At the first texts, where the model is not found or has fewer layers.

    Example
    -------
    >>> score = BERTScore()
    >>> score(["sit down"], ["please sit down"])  # doctest: +SKIP
    [0.79]
    """

    def __init__(
        self,
        model: str = "roberta-large",
        layer: int = 17,
        baseline: Optional[float] = ROBERTA_LARGE_BASELINE,
        device: Optional[str] = None,
        batch_size: int = 64,
    ):
        if baseline is not None and not 0 <= baseline < 1:
            raise ValueError(
                f"`baseline` is {baseline}; expected an F from 0 to below 1, "
                "or None"
            )
        self.model, self.layer = str(model), layer
        self.baseline, self.device = baseline, device
        self.batch_size = batch_size
        self._loaded: Optional[tuple] = None

    def require(self) -> None:
        """Raises where the model is not there, without loading its weights.

        Raises
        ------
        ImportError, ValueError
            Saying what to do.
        """
        require_text_model(self.model, "model")

    def __call__(
        self, references: Sequence[str], hypotheses: Sequence[str]
    ) -> list[float]:
        """Scores pairs of texts.

        Arguments
        ---------
        references : list of str
            What was said.
        hypotheses : list of str
            What was recognised.

        Returns
        -------
        list of float
            1 for equal texts, and about 0 for unrelated ones where there is a
            baseline. Where one of two texts is empty, F is 0 (before the
            baseline, under which it becomes negative).
        """
        embedded = self._embed({*references, *hypotheses})
        return [
            self._rescaled(matched_f(embedded[said], embedded[heard]))
            for said, heard in zip(references, hypotheses)
        ]

    def _rescaled(self, score):
        if self.baseline is None:
            return score
        return (score - self.baseline) / (1 - self.baseline)

    def _embed(self, texts):
        """Unit vectors of the tokens of each text, [tokens, width]."""
        if self._loaded is None:
            self._loaded = self._load()
        model, tokenizer = self._loaded
        limit = longest_input(model, tokenizer)
        # RoBERTa's and GPT's words have the space before them; at the start of
        # a text it has to be written
        spaced = type(tokenizer).__name__.startswith(("Roberta", "GPT2"))
        # long ones first, so that a batch has little padding
        order = sorted(texts, key=lambda text: (-len(text.split()), text))
        embedded = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            stripped = [text.strip() for text in batch]
            inputs = tokenizer(
                [f" {text}" if spaced and text else text for text in stripped],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(model.device)
            with torch.no_grad():
                states = model(**inputs, output_hidden_states=True)
            states = states.hidden_states[self.layer].float().cpu()
            states = torch.nn.functional.normalize(states, dim=-1)
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            for text, state, mask, length in zip(
                batch, states, inputs["attention_mask"].cpu(), lengths
            ):
                embedded[text] = state[mask.bool()][:length]
        return embedded

    def _load(self):
        """The encoder, which must have the layer."""
        model, tokenizer = load_text_model(
            self.model, "encoder", "model", self.device
        )
        layers = model.config.num_hidden_layers
        if not 0 <= self.layer <= layers:
            raise ValueError(
                f"`layer` is {self.layer}, and {self.model} has {layers} "
                f"layers: expected 0 to {layers}"
            )
        return model, tokenizer


def matched_f(reference: torch.Tensor, hypothesis: torch.Tensor) -> float:
    """F of the greedy matching of two texts' tokens.

    Arguments
    ---------
    reference : torch.Tensor
        Unit vectors [tokens, width] of what was said. The first and the last
        token, which mark the ends, are matched and not counted.
    hypothesis : torch.Tensor
        The same of what was recognised.

    Returns
    -------
    float
        0 where a text has no tokens.

    Example
    -------
    >>> east, north = torch.eye(2)
    >>> matched_f(
    ...     torch.stack([-east, east, north, -east]),
    ...     torch.stack([-east, east, -east]),
    ... )
    0.6666666865348816
    """
    if len(reference) < 3 or len(hypothesis) < 3:
        return 0.0
    likeness = hypothesis @ reference.T
    precision = likeness.max(dim=1).values[1:-1].mean()
    recall = likeness.max(dim=0).values[1:-1].mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0
