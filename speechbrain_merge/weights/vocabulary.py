"""The vocabulary of a model's outputs, read from the files beside its weights.

Row 3 of a head is the letter `c` for one model and `t` for another, if their
label encoders or tokenizers are different. The weights do not tell. What tells
lies beside them: in a checkpoint folder (``tokenizer.ckpt``), in the folder of
the checkpoints or that of the results above it (``save/label_encoder.txt``), in
a Hugging Face folder (``vocab.json``, ``tokenizer.json``).

Vocabularies are compared by what they say, token by token. The order of lines
or keys makes no difference, nor what a tokenizer does besides.

Example
-------
>>> folder = getfixture("tmp_path")
>>> _ = (folder / "label_encoder.txt").write_text("'a' => 0\\n'b' => 1\\n")
>>> (folder / "model.ckpt").touch()
>>> found = vocabularies(folder / "model.ckpt")
>>> found["label encoder"].tokens
{'a': 0, 'b': 1}

Authors
 * The speechbrain_merge authors 2026
"""

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from speechbrain_merge.records.errors import shown
from speechbrain_merge.records.reading import parse_json, read_bytes

# Where a file is looked for: beside the weights and so many folders above
_LEVELS = 2
_FILES = {
    "label encoder": ("label_encoder.txt", "label_encoder.ckpt"),
    "tokenizer": ("tokenizer.ckpt", "tokenizer.json", "tokenizer.model"),
    "SentencePiece model": ("*_unigram.model", "*_bpe.model", "*_char.model"),
    "vocabulary": ("vocab.json", "vocab.txt", "tokens.txt"),
}
_ARROW = " => "
_LONGEST_TOKEN = 1000


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that the numbers of a model's outputs stand for.

    Arguments
    ---------
    path : Path
        The file that says it.
    tokens : dict
        Token to number.
    """

    path: Path
    tokens: dict


def vocabularies(source) -> dict:
    """The vocabularies that lie beside weights.

    Arguments
    ---------
    source : object
        A file or a folder of weights, or anything with a `.path`. What lies
        nowhere has no vocabulary.

    Returns
    -------
    found : dict
        Kind to `Vocabulary`; of each kind the nearest one.
    """
    folder = folder_of(source)
    if folder is None:
        return {}
    found: dict = {}
    for each in (folder, *list(folder.parents)[:_LEVELS]):
        for place in (each, each / "save"):
            for kind, patterns in _FILES.items():
                if kind not in found:
                    files = [file for p in patterns for file in place.glob(p)]
                    if files:
                        found[kind] = Vocabulary(
                            files[0], read_tokens(files[0])
                        )
    return found


def folder_of(source) -> Optional[Path]:
    """The folder that vocabularies are looked for in first.

    Weights in one folder have the same ones.

    Arguments
    ---------
    source : object
        As for `vocabularies`.

    Returns
    -------
    Path or None
        None for what lies nowhere.
    """
    source = getattr(source, "path", source)
    if not isinstance(source, (str, Path)) or not Path(source).exists():
        return None
    path = Path(source).absolute()
    return path if path.is_dir() else path.parent


def read_tokens(path) -> dict:
    """The tokens of a vocabulary's file, with their numbers.

    Arguments
    ---------
    path : str or Path
        SpeechBrain's label encoder, a tokenizer or vocabulary of Hugging Face,
        a SentencePiece model, or lines of tokens.

    Returns
    -------
    tokens : dict
        Token to number. Of a file of another kind, its hash.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8")
        if Path(path).suffix == ".json":
            return _of_json(parse_json(text, str(path)))
        if _ARROW in text:
            return _of_label_encoder(text)
        if Path(path).suffix == ".txt":
            lines = text.splitlines()
            return {line: number for number, line in enumerate(lines)}
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # of another kind
    return _of_sentencepiece(content)


def _of_json(content):
    if "model" not in content:
        return {str(token): number for token, number in content.items()}
    tokens = content["model"]["vocab"]
    if isinstance(tokens, list):
        tokens = {row[0]: number for number, row in enumerate(tokens)}
    added = content.get("added_tokens") or []
    return {**tokens, **{row["content"]: row["id"] for row in added}}


def _of_label_encoder(text):
    tokens = {}
    for line in text.splitlines():
        if _ARROW in line:
            token, _, number = line.rpartition(_ARROW)
            tokens[str(_literal(token))] = _literal(number)
    return tokens


def _literal(text):
    """What Python's `repr` wrote, if it is short and not deeply nested."""
    if len(text) > _LONGEST_TOKEN:
        raise ValueError(f"a token of {len(text)} characters")
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{shown(text)} is no token: {error}") from None


def _of_sentencepiece(content):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(content)
    except RuntimeError:
        return {hashlib.sha256(content).hexdigest(): 0}
    return {
        processor.id_to_piece(number): number
        for number in range(processor.get_piece_size())
    }
