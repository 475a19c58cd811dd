"""Whether the files of a Whisper's folder go together.

What is converted for other programs is made of several files: the weights and
their configuration, the tokenizer, the feature extractor. Each opens by itself,
and nothing compares them: with the tokenizer of another Whisper, say, a model
is converted all the same, and writes nonsense.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain_merge.records.reading import read_json

START = "<|startoftranscript|>"
END = "<|endoftext|>"

_GENERATION = "generation_config.json"


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
