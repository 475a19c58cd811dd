"""Whether one text follows from another, by a model of natural language
inference.

A classifier of pairs gives the probabilities of entailment, neutrality and
contradiction. Which of its outputs is entailment stands in its configuration,
and differs from model to model.

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


class Entailment:
    """The probability that a premise entails a hypothesis.

    Arguments
    ---------
    model : str
        A classifier of pairs of texts: a name at the Hugging Face hub, or a
        folder.
    label : str
        The name of the label, as the model's ``config.json`` has it in
        ``id2label``; capitals do not matter.
    device : str, optional
        By default the first GPU where there is one.
    batch_size : int
        Pairs that are classified at once.

    Raises
    ------
    ValueError
        At the first texts, where the model is not found or has no such label.

    Example
    -------
    >>> entails = Entailment()
    >>> entails(["a dog barks"], ["an animal barks"])  # doctest: +SKIP
    [0.99]
    """

    def __init__(
        self,
        model: str = "ynie/roberta-large-snli_mnli_fever_anli_R1_R2_R3-nli",
        label: str = "entailment",
        device: Optional[str] = None,
        batch_size: int = 32,
    ):
        self.model, self.label = str(model), label
        self.device, self.batch_size = device, batch_size
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
        self, premises: Sequence[str], hypotheses: Sequence[str]
    ) -> list[float]:
        """Classifies pairs of texts.

        Arguments
        ---------
        premises : list of str
            What is known.
        hypotheses : list of str
            What may follow from it.

        Returns
        -------
        list of float
            Probabilities.
        """
        if self._loaded is None:
            self._loaded = self._load()
        model, tokenizer, place = self._loaded
        found = []
        pairs = list(zip(premises, hypotheses))
        for start in range(0, len(pairs), self.batch_size):
            firsts, seconds = zip(*pairs[start : start + self.batch_size])
            inputs = tokenizer(
                list(firsts),
                list(seconds),
                padding=True,
                truncation=True,
                max_length=longest_input(model, tokenizer),
                return_tensors="pt",
            ).to(model.device)
            with torch.no_grad():
                logits = model(**inputs).logits
            found += logits.float().softmax(dim=1)[:, place].tolist()
        return found

    def _load(self):
        """The classifier, and the place of the label in its output."""
        model, tokenizer = load_text_model(
            self.model, "classifier", "model", self.device
        )
        labels = model.config.id2label
        places = [
            int(place)
            for place, name in labels.items()
            if str(name).casefold() == self.label.casefold()
        ]
        if len(places) != 1:
            raise ValueError(
                f"{self.model} has the labels "
                f"{', '.join(map(str, labels.values()))}, and not one called "
                f"{self.label!r}: name its label of entailment with `label`"
            )
        return model, tokenizer, places[0]
