"""Reads a Whisper out of a CTranslate2 file.

CTranslate2 keeps a model in one binary file; version 6 is a list of named
tensors, little-endian, followed by a list of aliases. This file reads it and
renames the tensors as Hugging Face's ``WhisperForConditionalGeneration`` names
them. Quantised weights and tensors that have no place in Whisper are refused.

Example
-------
>>> import struct
>>> content = struct.pack("<I", 6) + struct.pack("<H", 12) + b"WhisperSpec\\0"
>>> content += struct.pack("<III", 3, 0, 0)  # revision, tensors, aliases
>>> read_ctranslate2(content)
({}, {})

Authors
 * The speechbrain_merge authors 2026
"""

import struct

import numpy as np
import torch

# The float types of CTranslate2; every other type is an integer, which is a
# setting when it is a scalar, and a quantised weight when it is not.
FLOAT_TYPES = {0: np.float32, 4: np.float16}
INTEGER_TYPES = {1: np.int8, 2: np.int16, 3: np.int32}

MODULES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
STACKED = {
    "self_attention/linear_0": ("self_attn", "qkv"),
    "attention/linear_1": ("encoder_attn", "kv"),
}
PARAMETERS = {
    "gamma": "weight",
    "beta": "bias",
    "weight": "weight",
    "bias": "bias",
}
PLAIN = {
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
}
FRONT_END = ("conv1", "conv2", "layer_norm")
SETTINGS = {
    "num_heads",
    "activation",
    "alibi",
    "alignment_heads",
    "alignment_layer",
    "pre_norm",
    "scale_embeddings",
    "start_from_zero_embedding",
}
GELU = 3  # CTranslate2's number of the exact GELU


def read_ctranslate2(content: bytes) -> tuple:
    """Reads a CTranslate2 model of binary version 6 (little-endian).

    Arguments
    ---------
    content : bytes
        The content of a ``model.bin``.

    Returns
    -------
    tensors : dict
        Name to float array.
    settings : dict
        Name to integer: the scalars of the file.

    Raises
    ------
    ValueError
        If the version is another, a weight is quantised, or the file does
        not end where it should.
    """
    place = 0

    def take(form):
        nonlocal place
        value = struct.unpack_from("<" + form, content, place)[0]
        place += struct.calcsize("<" + form)
        return value

    def take_string():
        nonlocal place
        length = take("H")
        text = content[place : place + length - 1].decode()  # a NUL ends it
        place += length
        return text

    version = take("I")
    if version != 6:
        raise ValueError(f"CTranslate2 binary version {version}, expected 6.")
    take_string(), take("I")  # the specification's name and revision
    tensors, settings = {}, {}
    for _ in range(take("I")):
        name = take_string()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        data, place = content[place : place + size], place + size
        if kind in FLOAT_TYPES:
            tensors[name] = np.frombuffer(data, FLOAT_TYPES[kind]).reshape(
                shape
            )
        elif kind in INTEGER_TYPES and not shape:
            settings[name] = int(np.frombuffer(data, INTEGER_TYPES[kind])[0])
        else:
            raise ValueError(
                f"{name} {shape} is stored as integers (type {kind}): a "
                "quantised model cannot be trained or merged. Expected float16 "
                "or float32 weights."
            )
    for _ in range(take("I")):
        take_string(), take_string()  # aliases: the tied output projection
    if place != len(content):
        raise ValueError(
            f"The CTranslate2 file has {len(content)} bytes and should have "
            f"ended after {place}: it is damaged or of another format."
        )
    return tensors, settings


def to_hugging_face(tensors: dict) -> dict:
    """Renames CTranslate2's Whisper tensors as Hugging Face names them.

    Stacked projections are split; the key projection has no bias in Whisper,
    so the stored one must be zero.

    Arguments
    ---------
    tensors : dict
        Name to float array, as from ``read_ctranslate2``.

    Returns
    -------
    dict
        The state dict of ``WhisperModel`` in float32, prefixed ``model.``.

    Raises
    ------
    ValueError
        If a tensor has no place in Whisper.
    """
    state = {}
    for name, array in tensors.items():
        # float() copies float16; clone() makes a float32 view writable
        tensor = torch.tensor(array, dtype=torch.float32)
        if name in PLAIN:
            state["model." + PLAIN[name]] = tensor
            continue
        stack, _, rest = name.partition("/")
        path, _, parameter = rest.rpartition("/")
        parameter = PARAMETERS.get(parameter)
        if path in FRONT_END and parameter:
            state[f"model.{stack}.{path}.{parameter}"] = tensor
            continue
        layer, _, module = path.partition("/")
        if not layer.startswith("layer_") or not parameter:
            raise ValueError(f"{name} has no place in Whisper.")
        prefix = f"model.{stack}.layers.{layer[len('layer_') :]}"
        if module in MODULES:
            state[f"{prefix}.{MODULES[module]}.{parameter}"] = tensor
        elif module in STACKED:
            attention, projections = STACKED[module]
            parts = tensor.chunk(len(projections))
            for projection, part in zip(projections, parts):
                if projection == "k" and parameter == "bias":
                    if part.any():
                        raise ValueError(
                            f"{name}: the key projection has a bias that is "
                            "not zero, which Whisper does not have."
                        )
                    continue
                key = f"{prefix}.{attention}.{projection}_proj.{parameter}"
                state[key] = part.contiguous()
        else:
            raise ValueError(f"{name} has no place in Whisper.")
    return state


def whisper_config(state: dict, settings: dict, tokens: dict) -> dict:
    """Reads the sizes of a Whisper from its tensors.

    Arguments
    ---------
    state : dict
        Hugging Face state dict.
    settings : dict
        The scalars of the CTranslate2 file (number of heads, activation).
    tokens : dict
        Special token to index.

    Returns
    -------
    dict
        The content of ``config.json``.
    """
    for name, value in settings.items():
        if name.split("/")[-1] not in SETTINGS:
            raise ValueError(f"The setting {name} = {value} is not understood.")
    for stack in ("encoder", "decoder"):
        if settings.get(f"{stack}/activation", GELU) != GELU:
            raise ValueError(f"The activation of the {stack} is not GELU.")
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    start, end = tokens["<|startoftranscript|>"], tokens["<|endoftext|>"]
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": state["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": len(
            state["model.encoder.embed_positions.weight"]
        ),
        "max_target_positions": len(
            state["model.decoder.embed_positions.weight"]
        ),
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    for stack in ("encoder", "decoder"):
        layers = {
            int(name.split(".")[3])
            for name in state
            if name.startswith(f"model.{stack}.layers.")
        }
        feed_forward = state[f"model.{stack}.layers.0.fc1.weight"]
        config[f"{stack}_layers"] = len(layers)
        config[f"{stack}_ffn_dim"] = len(feed_forward)
        config[f"{stack}_attention_heads"] = settings[f"{stack}/num_heads"]
    config["num_hidden_layers"] = config["encoder_layers"]
    return config
