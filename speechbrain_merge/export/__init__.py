"""A merged model that loads anywhere.

``export_whisper`` writes one folder that three doors open, all with the merged
weights and nothing of this package needed:

- ``speechbrain.inference.ASR.WhisperASR.from_hparams(folder)``,
- ``transformers.WhisperForConditionalGeneration.from_pretrained(folder)``,
- a recipe's ``whisper_hub: folder``.

``export_ctc`` writes one of a wav2vec 2.0, HuBERT or WavLM with CTC, for
``EncoderASR`` and ``transformers``; see ``export/ctc.py``.

``export_ctranslate2`` and ``export_ggml`` turn an exported Whisper into what
faster-whisper and whisper.cpp load.

``export_recipe`` writes one of SpeechBrain's own modules (Conformer,
transducer), with the YAML for inference; see ``export/recipe.py``.

``export_pretrained`` writes a SpeechBrain pretrained folder of any other
recipe: its ``hyperparams.yaml`` for inference, with the merged weights of each
module as the ``.ckpt`` files that its ``pretrainer`` loads.

A folder appears under its name when it is whole. What it was merged from is in
its ``merge.json``, and for a person in its card, ``README.md``; with ``sign``
there is a signature of all its files. A folder that is there already is replaced
in one step if it is an earlier export that no one has touched since; any other
is left alone.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional, Union

import torch
import yaml

from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.ctc import export_ctc
from speechbrain_merge.export.ctranslate2 import export_ctranslate2
from speechbrain_merge.export.folder import (
    check_fit,
    check_heads,
    export_folder,
    inner_state,
    module_state,
    refuse_more,
    stored,
    write_text,
)
from speechbrain_merge.export.ggml import export_ggml
from speechbrain_merge.export.loading import NotLoadable, check_whisper
from speechbrain_merge.export.pretrained import export_pretrained
from speechbrain_merge.export.recipe import export_recipe
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.records.paths import entry_path
from speechbrain_merge.records.reading import read_json
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.weights import open_weights

logger = get_logger(__name__)

__all__ = [
    "NotLoadable",
    "export_ctc",
    "export_ctranslate2",
    "export_ggml",
    "export_pretrained",
    "export_recipe",
    "export_whisper",
]

_ALONE = "SpeechBrain's Whisper and that of transformers have nothing else"
_EMBEDDING = "decoder.embed_tokens.weight"

_WHISPER_HPARAMS = """\
# A Whisper merged by speechbrain_merge, for
#   from speechbrain.inference.ASR import WhisperASR
#   model = WhisperASR.from_hparams(source=FOLDER)
# where FOLDER is this folder, wherever it was moved to, or its name on the hub.

SETTINGS
sample_rate: 16000
normalized_transcripts: False
min_decode_ratio: 0.0
max_decode_ratio: 1.0

# Made from the files beside this one as soon as SpeechBrain says where they
# are: see `pretrainer`
whisper: !apply:object.__new__
    - !apply:pydoc.locate
        - speechbrain.integrations.huggingface.whisper.Whisper
decoder: !apply:object.__new__
    - !apply:pydoc.locate
        - speechbrain.decoders.seq2seq.S2SWhisperGreedySearcher

modules:
    whisper: !ref <whisper>
    decoder: !ref <decoder>

# SpeechBrain hands the place of the model to its pretrainer, and to nothing
# else. This one takes it as the source of the Whisper.
pretrainer: !new:types.SimpleNamespace
    set_collect_in: !name:builtins.str   # there is nothing to collect,
    load_collected: !name:builtins.dict  # and nothing more to load
    collect_files: !apply:builtins.eval
        - "lambda default_source, **_: (
            whisper.__init__(str(default_source), cache, sample_rate,
                             language=language, task=task),
            whisper.float(),
            decoder.__init__(whisper, min_decode_ratio=min_decode_ratio,
                             max_decode_ratio=max_decode_ratio))"
        - whisper: !ref <whisper>
          decoder: !ref <decoder>
          sample_rate: !ref <sample_rate>
          language: !ref <language>
          task: !ref <task>
          min_decode_ratio: !ref <min_decode_ratio>
          max_decode_ratio: !ref <max_decode_ratio>
          cache: !name:huggingface_hub.constants.HF_HUB_CACHE
"""


@steady("source")
def export_whisper(
    source,
    whisper,
    folder,
    module="whisper",
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
    dtype: Optional[torch.dtype] = None,
    max_shard_size: Union[int, str] = "5GB",
) -> Path:
    """Writes a merged Whisper as a SpeechBrain and Hugging Face folder.

    Before the folder takes its place, SpeechBrain's ``WhisperASR`` and
    ``transformers`` have loaded it, and transcribed with the merged weights.

    Arguments
    ---------
    source : object
        Merged weights: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``; or a merged folder of ``transformers``.
    whisper : speechbrain.integrations.huggingface.whisper.Whisper
        A model of the same architecture, for its configuration, tokenizer and
        feature extractor. Its own weights are not changed.
    folder : str or Path
        The folder to write. An earlier export there is replaced.
    module : str
        Name of the module in ``source``.
    texts : dict, optional
        More files of the folder, name to text: a card as ``README.md``.
    sign : Signer, str or Path, optional
        Signs the folder: with a private key in a file, or as the signer says,
        see ``speechbrain_merge.records.signing``.
    dtype : torch.dtype, optional
        Of the stored weights; by default that of ``source``. The model is
        loaded as float32 whatever is stored: SpeechBrain's Whisper does not
        run in half precision on a CPU.
    max_shard_size : int or str
        The largest file of weights, in bytes or as "2GB".

    Returns
    -------
    folder : Path

    Raises
    ------
    IncompatibleWeights
        When the weights are not those of this architecture.
    ValueError
        When a model of ``transformers`` has an output layer of its own, which
        SpeechBrain's Whisper has not; when there are weights beside it; when
        ``dtype`` does not hold a weight, or ``whisper`` has other numbers of
        attention heads than the weights were trained with.
    NotLoadable
        When what was written does not load, or not as what was merged.
        Nothing is left of it then.
    FileExistsError
        When the folder has something in it that no export wrote there.
    """
    if whisper.tokenizer is None:
        raise ValueError(
            "This Whisper is an encoder without decoder and tokenizer "
            "(`encoder_only`): export it with export_pretrained."
        )
    folder = entry_path(folder)
    inner = _whisper_state(source, whisper, module)
    check_fit(inner, whisper.model.state_dict(), module)
    check_heads(source, {module: whisper})
    inner = stored(inner, dtype, module)
    with export_folder(folder, source, texts, sign) as target:
        whisper.model.save_pretrained(
            target, state_dict=inner, max_shard_size=max_shard_size
        )
        whisper.tokenizer.save_pretrained(target)
        whisper.feature_extractor.save_pretrained(target)
        _save_what_transformers_forgets(whisper, target)
        settings = {
            "language": _language(whisper),
            "task": whisper.task,
        }
        text = _WHISPER_HPARAMS.replace(
            "SETTINGS\n",
            yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        )
        write_text(target / "hyperparams.yaml", text)
        check_whisper(target, inner)
    logger.info(f"Merged model exported to {folder}.")
    return folder


def _whisper_state(source, whisper, module):
    """The weights by the names of ``transformers.WhisperModel``."""
    with open_weights(source) as weights:
        names, label = weights.names(), weights.label
    outside = any(name.startswith(f"{module}.") for name in names)
    if outside or not any(name.startswith("model.encoder.") for name in names):
        state = module_state(source, module)
        refuse_more(source, (f"{module}.",), _ALONE)
        return inner_state(state, whisper, module)
    refuse_more(source, ("model.", "proj_out."), _ALONE)
    state = module_state(source, "model")
    if "proj_out.weight" in names:
        output = module_state(source, "proj_out")["weight"]
        if not torch.equal(output, state[_EMBEDDING]):
            raise ValueError(
                f"{label} has an output layer of its own (proj_out.weight), "
                "and SpeechBrain's Whisper multiplies by the embedding: it "
                "would write something else. transformers loads the model as "
                "it is, and `export ctranslate2` takes the output layer along."
            )
    return state


def _language(whisper):
    """The language that an inference interface is told.

    Of an English-only Whisper it is English, though the model has no token for
    it: for None, ``WhisperASR`` asks the model to tell the language, which it
    cannot.
    """
    return whisper.language if whisper.is_multilingual else "en"


def _save_what_transformers_forgets(whisper, folder):
    """Makes a whole Hugging Face Whisper out of what was saved.

    SpeechBrain's wrapper holds the model without its output layer, which is
    the tied embedding; Hugging Face's pipeline wants the class that has it,
    and how to generate with it, and SpeechBrain's recipes the spelling that
    the tokenizer normalises by. None of these is saved by itself.
    """
    from transformers import GenerationConfig

    path = folder / "config.json"
    config = read_json(path)
    config["architectures"] = ["WhisperForConditionalGeneration"]
    # SpeechBrain multiplies by the embedding, whatever the model was before
    config["tie_word_embeddings"] = True
    write_text(path, json.dumps(config, indent=2) + "\n")
    spelling = getattr(whisper.tokenizer, "english_spelling_normalizer", None)
    if spelling is not None:
        text = json.dumps(spelling, indent=2, ensure_ascii=False)
        write_text(folder / "normalizer.json", text + "\n")
    source = whisper.model.name_or_path
    try:
        with _naming_generation(source):
            generation = GenerationConfig.from_pretrained(source)
    except OSError:
        logger.warning(
            f"{source} has no generation_config.json that could be read: the "
            "exported model generates by its config.json."
        )
        return
    with _naming_generation(source):
        generation.save_pretrained(folder)


@contextmanager
def _naming_generation(source):
    """Names a generation configuration that transformers cannot take."""
    try:
        yield
    except OSError:
        raise  # there is none, or the disk is full
    except Exception as error:
        # transformers raises whatever comes of a broken file
        reason = " ".join(str(error).split())[:500]
        raise ValueError(
            f"the generation_config.json of {source} cannot be exported: "
            f"{type(error).__name__}: {reason}"
        ) from error
