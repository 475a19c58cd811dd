"""Text encoders and classifiers from the Hugging Face hub, for metrics.

Authors
 * The speechbrain_merge authors 2026
"""

import contextlib
from typing import Any, Optional

import torch


def load_text_model(
    source: str, kind: str, role: str, device: Optional[str] = None
) -> tuple[Any, Any]:
    """Loads a model and its tokenizer for evaluation.

    Arguments
    ---------
    source : str
        A name at the Hugging Face hub, or a folder.
    kind : str
        ``"encoder"``, or ``"classifier"`` of a text or a pair of texts.
    role : str
        The argument that named it, for the message.
    device : str, optional
        By default the first GPU where there is one, else the CPU.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    ImportError
        Where transformers is not installed.
    ValueError
        Where the model is neither a folder nor found by that name.
    """
    transformers = require_text_model(source, role)
    classes = {
        "encoder": transformers.AutoModel,
        "classifier": transformers.AutoModelForSequenceClassification,
    }
    with _named(source, role):
        # code that comes with a model is not run, and not asked about
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
        model = classes[kind].from_pretrained(source, trust_remote_code=False)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), tokenizer


def require_text_model(source: str, role: str) -> Any:
    """Raises where a model is not there, without loading its weights.

    Arguments
    ---------
    source : str
        A name at the Hugging Face hub, or a folder.
    role : str
        The argument that named it, for the message.

    Returns
    -------
    module
        transformers.

    Raises
    ------
    ImportError, ValueError
        As ``load_text_model``.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "a metric that reads text with a language model needs "
            "transformers: pip install 'speechbrain_merge[semantic]'"
        ) from error
    with _named(source, role):
        transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    return transformers


@contextlib.contextmanager
def _named(source, role):
    """Says which model was not found, and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"`{role}` is {source!r}, which is neither a folder with a model "
            "and its tokenizer nor a name found at the Hugging Face hub or in "
            f"its cache ({reason}). Name a folder, or run once with a network."
        ) from error


def longest_input(model: Any, tokenizer: Any) -> int:
    """The most tokens that a model reads, special tokens among them.

    Arguments
    ---------
    model : torch.nn.Module
        As from ``load_text_model``.
    tokenizer : transformers.PreTrainedTokenizerBase
        As from ``load_text_model``.

    Returns
    -------
    int
        What the tokenizer says, or the positions of the model where a
        tokenizer knows no limit. RoBERTa and its kind leave their first two
        positions unused.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return tokenizer.model_max_length
    if "roberta" in str(getattr(model.config, "model_type", "")):
        positions -= 2
    return min(tokenizer.model_max_length, positions)
