"""Tiny encoders and classifiers of text whose weights are formulas.

They need no random generator, so that their outputs can be stored: the same
folder comes out wherever it is made.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from pathlib import Path

import torch

LETTERS = [chr(ord("a") + index) for index in range(26)]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def letter_bert(folder, letters=LETTERS) -> str:
    """Saves an encoder of texts such as "a b c", whose tokens are letters.

    Arguments
    ---------
    folder : str or Path
        Where to write. Created when missing.
    letters : list of str
        The tokens; they may be words, too.

    Returns
    -------
    str
        The folder.
    """
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    _bert_tokenizer(folder, words)
    return _save(BertModel(BertConfig(vocab_size=len(words), **SIZES)), folder)


def letter_roberta(folder) -> str:
    """The same as a RoBERTa, whose tokens have the space before them."""
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces += sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"Ġ{letter}" for letter in LETTERS]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", *(f"Ġ {letter}" for letter in LETTERS)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    RobertaTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)
    sizes = {**SIZES, "max_position_embeddings": 34}
    config = RobertaConfig(vocab_size=len(pieces), **sizes)
    config.pad_token_id = 1
    return _save(RobertaModel(config), folder)


def letter_classifier(folder, labels, letters=LETTERS) -> str:
    """Saves a classifier of pairs of such texts.

    Arguments
    ---------
    folder : str or Path
        Where to write.
    labels : list of str
        The names of its outputs.
    letters : list of str
        The tokens.

    Returns
    -------
    str
        The folder.
    """
    from transformers import BertConfig, BertForSequenceClassification

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    _bert_tokenizer(folder, words)
    config = BertConfig(
        vocab_size=len(words), id2label=dict(enumerate(labels)), **SIZES
    )
    return _save(BertForSequenceClassification(config), folder)


def _bert_tokenizer(folder, words):
    """A tokenizer of whole words."""
    from transformers import BertTokenizerFast

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    # transformers 5 takes the words themselves, and before it a file
    try:
        made = BertTokenizerFast(
            vocab={word: index for index, word in enumerate(words)}
        )
        assert made.vocab_size == len(words)
    except Exception:
        made = BertTokenizerFast(str(folder / "vocab.txt"))
    made.save_pretrained(folder)


def _save(model, folder):
    """Saves a model with weights from a formula."""
    with torch.no_grad():
        # versions of transformers register them in different orders
        named = sorted(model.named_parameters())
        for number, (name, weights) in enumerate(named):
            places = torch.arange(weights.numel(), dtype=torch.float64)
            # of the square, as of the place itself the rank would be two
            values = torch.sin(0.37 * places**2 + number)
            if weights.ndim == 1:
                values = values / 10 + name.endswith("LayerNorm.weight")
            weights.copy_(values.reshape(weights.shape).to(weights.dtype))
    model.save_pretrained(folder)
    return str(folder)
