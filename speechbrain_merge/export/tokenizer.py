"""The tokenizer of an exported model, in the file that SpeechBrain loads.

A SentencePiece model remembers from which files it was trained, by their
whole paths. An exported folder says nothing of the machine that made it: of
each path the last name is kept. What the tokenizer does is not changed.

Authors
 * The speechbrain_merge authors 2026
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from sentencepiece import SentencePieceProcessor

from speechbrain.dataio.encoder import CTCTextEncoder

# Fields of sentencepiece_model.proto: what was trained, and with which files
# (input, model_prefix, seed_sentencepieces_file)
_TRAINER = 2
# A model begins with its first piece
_PIECES = b"\n"
_PATHS = (1, 2, 54)

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def save_tokenizer(tokenizer: Any, path: Path) -> str:
    """Writes a tokenizer's file.

    Arguments
    ---------
    tokenizer : str, Path, CTCTextEncoder or list of str
        A SentencePiece model or a saved ``CTCTextEncoder``, as a file; or the
        labels of CTC in order, the blank's among them.
    path : Path
        The file to write.

    Returns
    -------
    str
        The class that loads it.
    """
    if isinstance(tokenizer, (str, Path)):
        content = Path(tokenizer).read_bytes()
        if content[:1] not in (b"'", b'"'):
            path.write_bytes(without_paths(content))
            return "sentencepiece.SentencePieceProcessor"
        path.write_bytes(content)
    else:
        if not isinstance(tokenizer, CTCTextEncoder):
            labels, tokenizer = list(tokenizer), CTCTextEncoder()
            tokenizer.update_from_iterable(labels, sequence_input=False)
        tokenizer.save(str(path))
    return "speechbrain.dataio.encoder.CTCTextEncoder"


def copy_file(path: Union[str, Path], target: Path) -> None:
    """Copies a file into an export; a SentencePiece model without its paths.

    Arguments
    ---------
    path : str or Path
        What a loadable is loaded from: a tokenizer, a normalizer, weights.
    target : Path
        The file to write.
    """
    with open(path, "rb") as file:
        first = file.read(len(_PIECES))
    if first == _PIECES:
        content = Path(path).read_bytes()
        if _is_sentencepiece(content):
            target.write_bytes(without_paths(content))
            return
    shutil.copyfile(path, target)


def _is_sentencepiece(content):
    """Whether SentencePiece takes it for a model of its own."""
    try:
        SentencePieceProcessor().LoadFromSerializedProto(content)
    except RuntimeError:
        return False
    return True


def without_paths(model: bytes) -> bytes:
    """A SentencePiece model that knows its training files by name alone.

    Arguments
    ---------
    model : bytes
        The content of a SentencePiece model.

    Returns
    -------
    bytes
        What is no such model is given back as it is: SentencePiece says what
        is wrong with it.

    Example
    -------
    >>> piece, trainer = b"\\n\\x01a", b"\\x12\\x09\\n\\x07/me/a.t"
    >>> without_paths(piece + trainer)
    b'\\n\\x01a\\x12\\x05\\n\\x03a.t'
    """
    try:
        return _rewritten(model, (_TRAINER,), _trainer)
    except (IndexError, ValueError):
        return model


def _trainer(spec):
    return _rewritten(spec, _PATHS, _name)


def _name(path):
    return path.replace(b"\\", b"/").rpartition(b"/")[2]


def _rewritten(message, chosen, change):
    """A message of which some fields of bytes are changed."""
    made = bytearray()
    for field, kind, start, content, end in _fields(message):
        if kind == _BYTES and field in chosen:
            value = change(message[content:end])
            made += _varint(field << 3 | kind) + _varint(len(value)) + value
        else:
            made += message[start:end]
    return bytes(made)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, kind, start, start of the content and end of each field."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _read_varint(message, place)
        field, kind = tag >> 3, tag & 7
        content = place
        if kind == _VARINT:
            _, place = _read_varint(message, place)
        elif kind == _BYTES:
            length, content = _read_varint(message, place)
            place = content + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if place > len(message):
            raise ValueError("a field that ends after the message")
        yield field, kind, start, content, place


def _read_varint(message, place):
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varint(value):
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
