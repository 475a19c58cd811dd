"""Exported folders are loaded before they are called exported.

A folder that was written is opened by each door that it is for, in the way a
user opens it: nothing of this package takes part. Every tensor must be the one
that was merged, and a second of noise must come through to a text.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import torch

from speechbrain.dataio import audio_io
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.folder import check_heads
from speechbrain_merge.lineage import CARD
from speechbrain_merge.records.checked import fields, whole
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.weights.folders import ADAPTER_CONFIG

logger = get_logger(__name__)

SECONDS = 1

# Models are laid out by these before a weight is read
_LARGEST = 1 << 20
_whisper_config = fields(
    {
        "d_model": whole(1, _LARGEST),
        "vocab_size": whole(1, _LARGEST),
        "num_mel_bins": whole(1, _LARGEST),
        "max_source_positions": whole(1, _LARGEST),
        "max_target_positions": whole(1, _LARGEST),
        "encoder_layers": whole(1, 1000),
        "decoder_layers": whole(1, 1000),
        "encoder_attention_heads": whole(1, _LARGEST),
        "decoder_attention_heads": whole(1, _LARGEST),
    }
)


class NotLoadable(ValueError):
    """What was written does not load, or not as what was merged."""


def check_whisper(folder, expected: Mapping) -> None:
    """Loads an exported Whisper by SpeechBrain and by transformers.

    Arguments
    ---------
    folder : str or Path
        The folder.
    expected : dict
        Name to tensor, as in ``transformers.WhisperModel``.

    Raises
    ------
    NotLoadable
        Where a door does not open, or another model is behind it.
    """
    from transformers import WhisperForConditionalGeneration

    from speechbrain.inference.ASR import WhisperASR

    with door("speechbrain.inference.ASR.WhisperASR"):
        asr = WhisperASR.from_hparams(
            source=str(folder),
            overrides={"max_decode_ratio": 0.01},
            run_opts={"device": "cpu"},
        )
        compare(asr.mods.whisper.model.state_dict(), expected)
        with noise() as path:
            asr.transcribe_file(path)
    del asr
    with door("transformers.WhisperForConditionalGeneration"):
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True
        )
        refuse_gaps(loaded[1])
        compare(loaded[0].model.state_dict(), expected)


def load_whisper(folder) -> tuple[Any, dict]:
    """A Whisper in a folder of transformers, if all of it is there.

    Where weights are missing, transformers makes them up and says so in its
    log; here that is an error. So is an adapter beside them, which it would
    add to them.

    Arguments
    ---------
    folder : str or Path
        Anyone may have written it.

    Returns
    -------
    model : transformers.WhisperForConditionalGeneration
        In float32.
    config : dict
        The content of ``config.json``.

    Raises
    ------
    ValueError
        Where it holds no Whisper, or only some of one; or it is an export,
        and a file in it is not as it was written.
    """
    from transformers import WhisperForConditionalGeneration

    folder = Path(folder)
    check_unchanged(folder, but=[CARD])
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict) or config.get("model_type") != "whisper":
        raise ValueError(
            f"{folder} holds no Whisper of transformers: there is no "
            "config.json of one. Give a folder that export_whisper wrote."
        )
    config = _whisper_config(config, str(path))
    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}) as well, which "
            "transformers would add. Fold it into the weights "
            "(speechbrain_merge.weights.fold) and export those, or remove it."
        )
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        refuse_gaps(loaded[1])
    except Exception as error:
        # transformers and torch raise whatever comes of a broken file
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"{folder} holds no whole Whisper: {type(error).__name__}: {reason}"
        ) from error
    return loaded[0], config


def check_ctc(folder, expected: Mapping) -> None:
    """Loads an exported CTC model by SpeechBrain and by transformers.

    Of the same noise, both must give the same probabilities, and of these the
    same text. Not of each its own text: before the encoder, transformers scales
    the wave with an ε of 1e-7 and SpeechBrain with 1e-5, so that the best of two
    labels that are equally probable may be another.

    Arguments
    ---------
    folder : str or Path
        The folder.
    expected : dict
        Name to tensor, as in the model for CTC of ``transformers``.

    Raises
    ------
    NotLoadable
        Where a door does not open, another model is behind it, or the
        probabilities or texts differ.
    """
    from transformers import AutoModelForCTC, Wav2Vec2Processor

    from speechbrain.inference.ASR import EncoderASR

    with noise(loudness=0.3) as path:
        with door("transformers.AutoModelForCTC"):
            loaded: Any = AutoModelForCTC.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=torch.float32,
                trust_remote_code=False,
            )
            refuse_gaps(loaded[1])
            compare(loaded[0].state_dict(), expected)
            processor = Wav2Vec2Processor.from_pretrained(folder)
            wave = audio_io.load(path)[0]
            inputs = processor(
                wave.squeeze(0).numpy(),
                sampling_rate=16000,
                return_tensors="pt",
            ).input_values
            with torch.no_grad():
                scores = loaded[0].eval()(inputs).logits.log_softmax(-1)
            (text,) = processor.batch_decode(scores.argmax(-1))
        del loaded
        with door("speechbrain.inference.ASR.EncoderASR"):
            asr = EncoderASR.from_hparams(
                source=str(folder), run_opts={"device": "cpu"}
            )
            asr.transcribe_file(path)
            whole = torch.ones(1)
            known = asr.encode_batch(wave, whole)
            differ = (known.exp() - scores.exp()).abs().max().item()
            if not differ < 0.01:
                raise ValueError(
                    "its probabilities of labels differ from those of "
                    f"transformers by up to {differ:.2g}"
                )
            (labels,) = asr.decoding_function(scores, whole)
            found = "".join(asr.tokenizer.decode_ndim(labels))
            if found.split() != text.split():
                raise ValueError(
                    f"it hears {found!r} where transformers hears {text!r}"
                )


def check_recipe(
    folder,
    interface: str,
    expected: Mapping,
    source: Any,
    keys: Mapping,
    dtype: Optional[torch.dtype] = None,
) -> None:
    """Loads an exported model by the interface that it was written for.

    Arguments
    ---------
    folder : str or Path
        The folder.
    interface : str
        "EncoderASR", "EncoderDecoderASR" or "StreamingASR".
    expected : dict
        Key of the YAML to state dict.
    source : object
        The merged weights, which may know their numbers of heads.
    keys : dict
        Name of a module in the weights to its key in the YAML.
    dtype : torch.dtype, optional
        That the weights were stored in, if not their own.

    Raises
    ------
    NotLoadable
        Where it does not open, or another model is behind it.
    """
    from speechbrain.inference import ASR
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    used: set = set()
    parts: dict = {}
    names = [interface]
    if interface == "StreamingASR":
        names.append("EncoderDecoderASR")
    for name in names:
        with door(f"speechbrain.inference.ASR.{name}"), noise() as path:
            asr = getattr(ASR, name).from_hparams(
                source=str(folder), run_opts={"device": "cpu"}
            )
            objects = {name: getattr(asr.hparams, keys[name]) for name in keys}
            check_heads(source, objects)
            for key, state in expected.items():
                if dtype is not None:
                    state = {
                        each: tensor.to(dtype)
                        if tensor.is_floating_point()
                        else tensor
                        for each, tensor in state.items()
                    }
                compare(getattr(asr.hparams, key).state_dict(), state)
            _refuse_untrained(asr)
            parts = _watched(
                {key: getattr(asr.hparams, key) for key in expected}, used
            )
            with _checked_labels(asr):
                if name == "StreamingASR":
                    asr.transcribe_file(path, DynChunkTrainConfig(8, 2), False)
                else:
                    asr.transcribe_file(path)
    for part, within in parts.items():
        if not within & used:
            logger.warning(
                f"'{part}' has merged weights, and takes no part in what "
                f"{interface} computes here. That is right of a CTC layer that "
                "the search does not ask; else look at `encoder` and `decoder`."
            )


def _watched(objects, used):
    """The parts of merged objects; from now on ``used`` gets those that run."""
    parts: dict = {}
    for key, module in objects.items():
        for path, each in module.named_modules():
            name = f"{key}.{path}" if path else key
            each.register_forward_hook(
                lambda module, given, found, name=name: used.add(name)
            )
        lists = isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict))
        for path, part in module.named_children() if lists else [("", module)]:
            if any(True for _ in part.parameters()):
                name = f"{key}.{path}" if path else key
                below = [
                    name + f".{n}" if n else name
                    for n, _ in part.named_modules()
                ]
                parts[name] = set(below)
    return parts


def check_pretrained(folder, expected: Mapping, source: Any) -> None:
    """Loads an exported model of any kind by SpeechBrain's base interface.

    The interface that it is for is not known here, so nothing is transcribed.

    Arguments
    ---------
    folder : str or Path
        The folder.
    expected : dict
        Key of the pretrainer's loadables to state dict.
    source : object
        The merged weights, which may know their numbers of heads.

    Raises
    ------
    NotLoadable
        Where it does not open, or another model is behind it.
    """
    from speechbrain.inference.interfaces import Pretrained

    with door("speechbrain.inference.interfaces.Pretrained"):
        loaded = Pretrained.from_hparams(
            source=str(folder), run_opts={"device": "cpu"}
        )
        objects = loaded.hparams.pretrainer.loadables
        check_heads(source, {key: objects[key] for key in expected})
        for key, state in expected.items():
            module = objects[key]
            found = module.state_dict()
            compare(
                {f"{key}.{name}": found[name] for name in found},
                {f"{key}.{name}": state[name] for name in state},
            )
            places = {found[name].data_ptr() for name in state}
            for name, weight in module.named_parameters():
                # SpeechBrain leaves what is missing as it was made
                if name not in state and weight.data_ptr() not in places:
                    raise ValueError(
                        f"'{key}.{name}' is not among the merged weights"
                    )


@contextmanager
def _checked_labels(asr):
    """Compares the labels of what is transcribed with those of the tokenizer.

    SpeechBrain would write the text of other labels, or find none on the day
    when a label without a text wins.
    """
    tokenizer = asr.hparams.tokenizer
    decoder = getattr(asr.mods, "decoder", None)
    if decoder is None:
        giving = asr.mods.encoder
        blank = asr.hparams.decoding_function.keywords["blank_id"]
        _check_blank(tokenizer, blank)
    else:
        giving = getattr(decoder, "softmax", None)
    given: set = set()
    if isinstance(giving, torch.nn.Module):
        giving.register_forward_hook(
            lambda module, inputs, scores: given.add(scores.shape[-1])
        )
    try:
        yield
    except KeyError as error:  # a label without a text
        if not given - {_number_of_labels(tokenizer)}:
            raise error
    for number in given - {_number_of_labels(tokenizer)}:
        raise ValueError(
            f"the model has {number} labels, and the tokenizer "
            f"{_number_of_labels(tokenizer)}: give the tokenizer that it was "
            "trained with"
        )


def _number_of_labels(tokenizer):
    """How many labels a CTCTextEncoder or a SentencePiece model has."""
    if isinstance(tokenizer, CTCTextEncoder):
        return len(tokenizer)
    return tokenizer.get_piece_size()


def _check_blank(tokenizer, blank):
    """Refuses another blank of CTC than the labels have."""
    known = getattr(tokenizer, "lab2ind", {})
    label = getattr(tokenizer, "blank_label", "<blank>")
    if known.get(label, blank) != blank:
        raise ValueError(
            f"the tokenizer has the blank {label!r} as label {known[label]}, "
            f"and blank_index is {blank}: give blank_index={known[label]}"
        )


def _refuse_untrained(asr):
    """Refuses modules that take part with what they were made with."""
    from speechbrain.processing.features import InputNormalization

    objects = asr.hparams.pretrainer.loadables.values()
    loaded = [each for each in objects if isinstance(each, torch.nn.Module)]
    whole = {id(part) for each in loaded for part in each.modules()}
    known = {id(weight) for each in loaded for weight in each.parameters()}
    parts: dict = dict(asr.mods.items())
    scorer = getattr(parts.get("decoder"), "scorer", None)
    for name, each in (
        {**scorer.full_scorers, **scorer.partial_scorers} if scorer else {}
    ).items():
        # Scorers are no modules: theirs are not among the decoder's
        for key, value in vars(each).items():
            if isinstance(value, torch.nn.Module):
                parts[f"decoder.{name}.{key}"] = value
    for title, part in parts.items():
        for name, weight in part.named_parameters():
            if id(weight) not in known:
                raise ValueError(
                    f"'{title}.{name}' takes part, and neither the merged "
                    "weights nor `files` have it"
                )
        for name, each in part.named_modules():
            if (
                isinstance(each, InputNormalization)
                and each.norm_type == "global"
                and id(each) not in whole
            ):
                raise ValueError(
                    f"'{title}.{name}' normalises by statistics, and `files` "
                    "does not have its file (normalizer.ckpt)"
                )


@contextmanager
def door(name: str):
    """Says in an error by which class a folder was opened.

    Arguments
    ---------
    name : str
        The class.

    Yields
    ------
    None

    Raises
    ------
    NotLoadable
        For any error within.
    """
    try:
        yield
    except Exception as error:
        raise NotLoadable(
            f"the folder was written, and {name} does not load it: "
            f"{type(error).__name__}: {error}. Nothing was exported."
        ) from error


@contextmanager
def noise(sample_rate: int = 16000, loudness: float = 0.01):
    """A file of noise, of a second, that is removed at the end.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    loudness : float
        The deviation of the samples.

    Yields
    ------
    path : str
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "noise.wav")
        generator = torch.Generator().manual_seed(0)
        wave = torch.randn(1, SECONDS * sample_rate, generator=generator)
        audio_io.save(path, loudness * wave, sample_rate)
        yield path


def compare(found: Mapping, expected: Mapping) -> None:
    """Raises where a loaded model has other tensors than were merged.

    Arguments
    ---------
    found : dict
        The state dict of the loaded model.
    expected : dict
        Name to tensor. A tensor may be stored in another dtype than the model
        computes in.

    Raises
    ------
    ValueError
        With the name of the first tensor that differs.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise ValueError(f"the loaded model has no '{name}'")
        if not torch.equal(found[name].cpu(), tensor.to(found[name].dtype)):
            raise ValueError(f"the loaded '{name}' is not what was merged")


def refuse_gaps(report: Mapping) -> None:
    """Raises where transformers made weights up, or left some out.

    Arguments
    ---------
    report : dict
        The loading info of ``from_pretrained``.

    Raises
    ------
    ValueError
        With the names.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = ", ".join(map(str, sorted(report[kind])[:5]))
            raise ValueError(f"{kind.replace('_', ' ')}: {names}")
