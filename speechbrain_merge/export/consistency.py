"""Whether the files of a model's folder go together.

What is exported or converted for other programs is made of several files: the
weights and their configuration, the tokenizer, the feature extractor. Each opens
by itself, and nothing compares them: with the tokenizer of another Whisper, say,
a model is converted all the same, and writes nonsense.

Authors
 * The speechbrain_merge authors 2026
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import torch

from speechbrain_merge.records.checked import whole
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.weights import open_weights

START = "<|startoftranscript|>"
END = "<|endoftext|>"

_LAYERS = ("encoder_layers", "decoder_layers", "num_hidden_layers")

_GENERATION = "generation_config.json"
_BESIDE = (
    _GENERATION,
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
)
"""What transformers may read beside the weights and their configuration."""


def check_size(source, model: Union[str, Path]) -> Any:
    """Refuses a configuration of a model much larger than some weights.

    A model is laid out as its configuration says, before a weight is read; one
    line of it may ask for more layers or memory than there are.

    Arguments
    ---------
    source : object
        The weights that are for it: anything that ``open_weights`` opens.
    model : str or Path
        A folder of ``transformers``, or a name on the hub.

    Returns
    -------
    transformers.PretrainedConfig
        Its configuration.

    Raises
    ------
    ValueError
        With both numbers.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    for key in _LAYERS:
        whole(0, 1000)(getattr(config, key, 0), f"its config.json, key '{key}'")
    with open_weights(source) as weights:
        given = sum(math.prod(weights.shape(name)) for name in weights.names())
    with torch.device("meta"):
        described = sum(
            each.numel()
            for each in AutoModel.from_config(
                config, trust_remote_code=False
            ).parameters()
        )
    if described > 2 * given:
        raise ValueError(
            f"its config.json describes a model of {described} weights, and "
            f"{source} has {given}"
        )
    return config


def open_beside(folder) -> tuple[Any, Any]:
    """The feature extractor and the tokenizer of a Whisper's folder.

    Arguments
    ---------
    folder : str or Path
        A folder of ``transformers``.

    Returns
    -------
    extractor : transformers.WhisperFeatureExtractor
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    RecordError
        When one of their files is no JSON; with the file.
    ValueError
        When transformers cannot make them of the files; with the folder.
    """
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    for path in (Path(folder) / name for name in _BESIDE):
        if path.is_file():
            read_json(path)
    try:
        return (
            WhisperFeatureExtractor.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )
    except Exception as error:
        # transformers raises whatever comes of a broken file
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"{folder} has no feature extractor and tokenizer that "
            f"transformers can open: {type(error).__name__}: {reason}"
        ) from error


def check_together(
    folder,
    config: Mapping,
    extractor: Any,
    tokenizer: Any,
    built_in: Optional[Mapping] = None,
) -> None:
    """Refuses a Whisper whose files are not those of one model.

    Arguments
    ---------
    folder : str or Path
        A folder of ``transformers``.
    config : dict
        The content of its ``config.json``.
    extractor : transformers.WhisperFeatureExtractor
        Its feature extractor.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    built_in : dict, optional
        What the program that it is for takes for granted: setting of the
        configuration or of the feature extractor, to its value.

    Raises
    ------
    ValueError
        With all that does not go together.
    """
    faults = _of_features(config, extractor)
    faults += _of_tokens(Path(folder), config, tokenizer)
    for key, wanted in (built_in or {}).items():
        found = config.get(key, getattr(extractor, key, wanted))
        if found != wanted:
            faults.append(
                f"`{key}` is {found}, and the program that it is for has "
                f"{wanted} built in"
            )
    if faults:
        raise ValueError(
            f"{folder} cannot be converted: {'; '.join(faults)}. Take all "
            "files from one model."
        )


def _of_features(config, extractor):
    bands = config["num_mel_bins"]
    if extractor.feature_size == bands:
        return []
    return [
        f"the feature extractor makes {extractor.feature_size} mel bands, and "
        f"config.json has `num_mel_bins` {bands}"
    ]


def _of_tokens(folder, config, tokenizer):
    """Where the tokenizer has another number for a token than the model."""
    faults = []
    if len(tokenizer) > config["vocab_size"]:
        faults.append(
            f"the tokenizer has {len(tokenizer)} tokens, and config.json has "
            f"`vocab_size` {config['vocab_size']}"
        )
    known = [
        ("config.json", "decoder_start_token_id", START, config),
        ("config.json", "eos_token_id", END, config),
    ]
    if (folder / _GENERATION).is_file():
        told = read_json(folder / _GENERATION)
        told = told if isinstance(told, Mapping) else {}
        tasks, languages = told.get("task_to_id"), told.get("lang_to_id")
        numbers = {"<|notimestamps|>": told.get("no_timestamps_token_id")}
        if isinstance(languages, Mapping):
            numbers.update(languages)
        if isinstance(tasks, Mapping):
            numbers.update({f"<|{task}|>": tasks[task] for task in tasks})
        known += [(_GENERATION, token, token, numbers) for token in numbers]
    vocabulary = tokenizer.get_vocab()
    for file, key, token, numbers in known:
        number = numbers.get(key)
        if isinstance(number, int) and vocabulary.get(token) != number:
            faults.append(
                f"the tokenizer has {vocabulary.get(token, 'no number')} for "
                f"{token}, and {file} has {number}"
            )
    return faults[:5]
