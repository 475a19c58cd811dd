"""Transcripts by the names of their utterances, checked before they are scored.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping, Sequence
from typing import Union


def tokens(text: Union[str, Sequence], unit: str = "word") -> list:
    """Words or characters; empty strings, as " ".split(" ") gives, are none.

    Arguments
    ---------
    text : str or list
        A transcript, or its words.
    unit : str
        "word" or "character".

    Returns
    -------
    list

    Example
    -------
    >>> tokens("a  be"), tokens(["a", ""]), tokens("a be", "character")
    (['a', 'be'], ['a'], ['a', ' ', 'b', 'e'])
    """
    words = text.split() if isinstance(text, str) else text
    words = [word for word in words if word != ""]
    return list(" ".join(words)) if unit == "character" else words


def require_texts(what: str, texts: Mapping) -> None:
    """Raise unless these are texts by the name of their utterance.

    Arguments
    ---------
    what : str
        What they are, for the message.
    texts : dict
        Utterance to a string, or to a list of words.

    Raises
    ------
    ValueError
        Naming the utterance.
    """
    if not isinstance(texts, Mapping):
        raise ValueError(
            f"{what} must be a dict from utterance to words, not "
            f"{type(texts).__name__}"
        )
    for name, text in texts.items():
        words = [text] if isinstance(text, str) else text
        if not isinstance(words, (list, tuple)) or not all(
            isinstance(word, (str, int)) for word in words
        ):
            raise ValueError(
                f"{what}: utterance {name!r} has {text!r}; expected a string, "
                "or a list of words. An utterance in which nothing was "
                'recognised has the empty string ""'
            )


def require_same_utterances(references: Mapping, hypotheses: Mapping) -> None:
    """Raise where one side lacks utterances of the other.

    Arguments
    ---------
    references, hypotheses : dict
        By the names of utterances.

    Raises
    ------
    ValueError
        Naming some of them.
    """
    for what, lacking, names in (
        ("hypotheses", "references", references.keys() - hypotheses.keys()),
        ("references", "hypotheses", hypotheses.keys() - references.keys()),
    ):
        if names:
            examples = ", ".join(sorted(map(str, names))[:3])
            raise ValueError(
                f"{len(names)} utterances of the {lacking} are missing in the "
                f"{what} (such as {examples}): both must be of the same set"
            )
