"""A merged Whisper for whisper.cpp, as its ggml file.

``export_ggml`` converts a folder that ``export_whisper`` wrote into
``ggml-model.bin``, which ``whisper-cli -m ggml-model.bin`` and the bindings of
whisper.cpp load. Matrices are stored as float16, which its convolutions need
(1.8.5); biases, norms and positions as float32.

The file, all integers being int32 and little-endian:

1. the magic number 0x67676d6c;
2. the sizes: vocabulary, audio context, width, heads and layers of the
   encoder; text context, width, heads and layers of the decoder; mel bands;
   and 1 where matrices are float16;
3. the mel filters: rows, columns, float32 values;
4. the tokens below the end of text: how many, then each as length and bytes;
5. the tensors: rank, length of the name, 0 (float32) or 1 (float16), the
   shape from the last dimension to the first, the name, the values.

Names are those of OpenAI's Whisper. Before the folder takes its place the file
is read back by these rules and every tensor compared.

Authors
 * The speechbrain_merge authors 2026
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.consistency import check_together, open_beside
from speechbrain_merge.export.folder import export_folder
from speechbrain_merge.export.loading import NotLoadable, load_whisper
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.records.paths import entry_path
from speechbrain_merge.records.signing import Signer

logger = get_logger(__name__)

GGML_FILE = "ggml-model.bin"
MAGIC = 0x67676D6C
_SIZES = (
    "vocab_size",
    "max_source_positions",
    "d_model",
    "encoder_attention_heads",
    "encoder_layers",
    "max_target_positions",
    "d_model",
    "decoder_attention_heads",
    "decoder_layers",
    "num_mel_bins",
)
# What whisper.cpp computes, whatever the file says
_BUILT_IN = {
    "sampling_rate": 16000,
    "n_fft": 400,
    "hop_length": 160,
    "activation_function": "gelu",
    "scale_embedding": False,
}
_DTYPES = (np.dtype("<f4"), np.dtype("<f2"))

# Hugging Face's names, and OpenAI's
_OF_LAYER = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_OUTSIDE = {
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens.weight": "decoder.token_embedding.weight",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
}


@steady("whisper")
def export_ggml(
    whisper,
    folder,
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
) -> Path:
    """Writes an exported Whisper for whisper.cpp.

    Arguments
    ---------
    whisper : str or Path
        A folder that ``export_whisper`` wrote, or any Whisper of
        ``transformers`` in a folder with its tokenizer.
    folder : str or Path
        The folder to write, with ``ggml-model.bin``. An earlier export there
        is replaced.
    texts : dict, optional
        More files of the folder, name to text.
    sign : Signer, str or Path, optional
        As for ``export_whisper``.

    Returns
    -------
    folder : Path

    Raises
    ------
    ValueError
        When the folder holds no Whisper, only some of one, or one that the
        format cannot hold: a weight that is too large for float16, an output
        layer that is not the embedding, features or an activation that
        whisper.cpp does not compute. When the tokenizer or the feature
        extractor is another model's.
    NotLoadable
        When what was written does not read back as it was.
    """
    whisper, folder = Path(whisper), entry_path(folder)
    loaded, config = load_whisper(whisper)
    embedding = loaded.model.decoder.embed_tokens.weight
    if not torch.equal(loaded.proj_out.weight, embedding):
        raise ValueError(
            f"{whisper} has an output layer of its own (proj_out.weight), and "
            "whisper.cpp knows only the embedding for it."
        )
    tensors = {
        ggml_name(name): _array(name, tensor)
        for name, tensor in loaded.model.state_dict().items()
    }
    extractor, tokenizer = open_beside(whisper)
    filters = extractor.mel_filters
    check_together(whisper, config, extractor, tokenizer, _BUILT_IN)
    tokens = _tokens(tokenizer)
    with export_folder(folder, str(whisper), texts, sign) as target:
        with open(target / GGML_FILE, "wb") as file:
            _integers(file, MAGIC, *(config[size] for size in _SIZES), 1)
            _integers(file, *filters.T.shape)
            file.write(filters.T.astype("<f4").tobytes())
            _integers(file, len(tokens))
            for token in tokens:
                _integers(file, len(token))
                file.write(token)
            for name, array in tensors.items():
                _write_tensor(file, name, array)
        _check(target / GGML_FILE, tensors, tokens)
    logger.info(f"Merged model exported to {folder}, for whisper.cpp.")
    return folder


def ggml_name(name: str) -> str:
    """The name of a tensor in whisper.cpp.

    Arguments
    ---------
    name : str
        In ``transformers.WhisperModel``.

    Returns
    -------
    str

    Example
    -------
    >>> ggml_name("decoder.layers.3.encoder_attn.k_proj.weight")
    'decoder.blocks.3.cross_attn.key.weight'
    >>> ggml_name("encoder.layer_norm.bias")
    'encoder.ln_post.bias'
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    stem, _, kind = name.rpartition(".")
    side, _, rest = stem.partition(".layers.")
    if not rest:
        return f"{_OUTSIDE.get(stem, stem)}.{kind}"
    number, _, part = rest.partition(".")
    return f"{side}.blocks.{number}.{_OF_LAYER[part]}.{kind}"


def read_ggml(path) -> tuple[dict, list[bytes], dict]:
    """Reads a Whisper in whisper.cpp's file.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    sizes : dict
        As in the configuration of ``transformers``.
    tokens : list of bytes
        Those below the end of text, by id.
    tensors : dict
        Name to array.

    Raises
    ------
    ValueError
        When it is no such file, or was cut short.
    """
    with open(path, "rb") as file:
        if _read(file, 1)[0] != MAGIC:
            raise ValueError(f"{path} does not begin as a file of ggml.")
        sizes = dict(zip(_SIZES, _read(file, len(_SIZES))))
        _read(file, 1)  # float16 or not, as each tensor says again
        rows, columns = _read(file, 2)
        _take(file, 4 * rows * columns)
        tokens = [
            _take(file, _read(file, 1)[0]) for _ in range(_read(file, 1)[0])
        ]
        tensors = {}
        while start := file.read(4):
            (rank,) = struct.unpack("<i", start)
            length, kind = _read(file, 2)
            shape = _read(file, rank)[::-1]
            name = _take(file, length).decode()
            dtype = _DTYPES[kind]
            values = _take(file, dtype.itemsize * int(np.prod(shape)))
            tensors[name] = np.frombuffer(values, dtype).reshape(shape)
    return sizes, tokens, tensors


def _array(name, tensor):
    """The values of a tensor, as they are stored."""
    array = tensor.numpy()
    if name.startswith("encoder.conv") and name.endswith("bias"):
        array = array[:, None]
    elif array.ndim > 1 and "embed_positions" not in name:
        with np.errstate(over="ignore"):
            array = array.astype(_DTYPES[1])
        if not np.isfinite(array).all():
            raise ValueError(
                f"'{name}' has values that float16 does not hold: whisper.cpp "
                "cannot run this model."
            )
    return array


def _tokens(tokenizer):
    """The bytes of each token below the end of text."""
    byte_of = _byte_letters()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    special = set(tokenizer.get_added_vocab())
    texts = {
        index: text
        for text, index in tokenizer.get_vocab().items()
        if index < end or text not in special
    }
    return [
        bytes(byte_of[letter] for letter in texts[index])
        for index in sorted(texts)
        if index != end
    ]


def _byte_letters():
    """The letter that stands for a byte in byte-level BPE, to the byte.

    What can be seen stands for itself; the other bytes have the letters from
    256 on, in their order.
    """
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = {chr(byte): byte for byte in seen}
    hidden = [byte for byte in range(256) if byte not in seen]
    letters.update((chr(256 + n), byte) for n, byte in enumerate(hidden))
    return letters


def _write_tensor(file, name, array):
    encoded = name.encode()
    kind = 1 if array.dtype == _DTYPES[1] else 0
    _integers(file, array.ndim, len(encoded), kind, *array.shape[::-1])
    file.write(encoded)
    file.write(np.ascontiguousarray(array).astype(_DTYPES[kind]).tobytes())


def _check(path, tensors, tokens):
    """Compares a file that was written with what it should hold."""
    _, found_tokens, found = read_ggml(path)
    same = found_tokens == tokens and list(found) == list(tensors)
    if not same or not all(
        np.array_equal(found[name], tensors[name]) for name in tensors
    ):
        raise NotLoadable(
            f"{path.name} was written, and does not read back as it was. "
            "Nothing was exported."
        )


def _integers(file, *numbers):
    file.write(struct.pack(f"<{len(numbers)}i", *numbers))


def _read(file, count):
    return struct.unpack(f"<{count}i", _take(file, 4 * count))


def _take(file, length):
    data = file.read(length)
    if len(data) != length:
        raise ValueError(f"{file.name} was cut short.")
    return data
