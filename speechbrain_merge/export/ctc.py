"""A merged CTC model as a folder of SpeechBrain and of transformers.

wav2vec 2.0, HuBERT and WavLM with a linear layer over characters are what
``transformers`` calls ``Wav2Vec2ForCTC``, ``HubertForCTC`` and
``WavLMForCTC``. ``export_ctc`` writes one folder for

- ``transformers.AutoModelForCTC`` and ``Wav2Vec2Processor``,
- ``speechbrain.inference.ASR.EncoderASR.from_hparams(folder)``,
- a recipe's ``wav2vec2_hub: folder``.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
import yaml

from speechbrain.utils.logger import get_logger
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
from speechbrain_merge.export.loading import check_ctc
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.records.paths import entry_path
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.weights import module_settings, open_weights

logger = get_logger(__name__)

SPACE = " "
WORD_DELIMITER = "|"

_HPARAMS = """\
# A CTC model merged by speechbrain_merge, for
#   from speechbrain.inference.ASR import EncoderASR
#   model = EncoderASR.from_hparams(source=FOLDER)
# where FOLDER is this folder, wherever it was moved to, or its name on the hub.

SETTINGS
# Made from the files beside this one as soon as SpeechBrain says where they
# are: see `pretrainer`
ssl_encoder: !apply:object.__new__
    - !apply:pydoc.locate [!ref <ssl_class>]
ctc_lin: !new:torch.nn.Linear
    in_features: !ref <in_features>
    out_features: !ref <out_features>

encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    ssl_encoder: !ref <ssl_encoder>
    ctc_lin: !ref <ctc_lin>
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True

tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
decoding_function: !name:speechbrain.decoders.ctc.ctc_greedy_decode
    blank_id: !ref <blank_index>

modules:
    encoder: !ref <encoder>

# SpeechBrain hands the place of the model to its pretrainer, and to nothing
# else. This one takes it as the source of the encoder and of the last layer.
pretrainer: !new:types.SimpleNamespace
    set_collect_in: !name:builtins.str   # there is nothing to collect,
    load_collected: !name:builtins.dict  # and nothing more to load
    collect_files: !apply:builtins.eval
        - "lambda default_source, **_: (
            ssl_encoder.__init__(str(default_source), cache),
            ssl_encoder.float(),
            ctc_lin.load_state_dict(
                load(str(default_source)).lm_head.state_dict()),
            tokenizer.update_from_iterable(labels, sequence_input=False))"
        - ssl_encoder: !ref <ssl_encoder>
          ctc_lin: !ref <ctc_lin>
          tokenizer: !ref <tokenizer>
          labels: !ref <labels>
          cache: !name:huggingface_hub.constants.HF_HUB_CACHE
          load: !name:transformers.AutoModelForCTC.from_pretrained
"""


@steady("source")
def export_ctc(
    source,
    encoder: Any,
    labels: Union[Sequence[str], Mapping[int, str]],
    folder,
    module: str = "wav2vec2",
    head: str = "ctc_lin",
    blank_index: int = 0,
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
    dtype: Optional[torch.dtype] = None,
    max_shard_size: Union[int, str] = "5GB",
) -> Path:
    """Writes a merged CTC model as a SpeechBrain and Hugging Face folder.

    Before the folder takes its place, ``transformers`` and SpeechBrain's
    ``EncoderASR`` have loaded it and made the same text of the same audio.

    Arguments
    ---------
    source : object
        Merged weights: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>`` and ``<head>.<parameter>``, and no others.
    encoder : torch.nn.Module
        SpeechBrain's ``Wav2Vec2``, ``HuBERT`` or ``WavLM`` of the same
        architecture, for its configuration and feature extractor. Its own
        weights are not changed.
    labels : list of str, or dict
        The label of each output, the blank's among them: a list by index, or
        index to label, as ``CTCTextEncoder.ind2lab``.
    folder : str or Path
        The folder to write. An earlier export there is replaced.
    module, head : str
        Names of the encoder and of its last layer in ``source``.
    blank_index : int
        The output that stands for no label.
    texts : dict, optional
        More files of the folder, name to text.
    sign : Signer, str or Path, optional
        As for ``export_whisper``.
    dtype : torch.dtype, optional
        Of the stored weights; by default that of ``source``.
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
        When ``transformers`` has no such model, or the labels do not fit; when
        there are weights beside it; when ``dtype`` does not hold a weight, or
        ``encoder`` has other numbers of attention heads than the weights were
        trained with.
    NotLoadable
        When what was written does not load, or not as what was merged.
    """
    folder = entry_path(folder)
    _check_encoder(encoder)
    head_state = module_state(source, head)
    state = module_state(source, module)
    prefixes = (f"{module}.", f"{head}.")
    refuse_more(
        source,
        prefixes,
        "models for CTC of transformers have nothing between the encoder and "
        "the last layer",
    )
    weight, bias = _linear(head_state, head)
    labels = _in_order(labels)
    if len(labels) != len(weight):
        raise ValueError(
            f"'{head}' has {len(weight)} outputs, and there are {len(labels)} "
            "labels: give one label an output, the blank's among them."
        )
    if not 0 <= blank_index < len(labels):
        raise ValueError(
            f"blank_index is {blank_index}; expected one of the "
            f"{len(labels)} outputs."
        )
    inner = inner_state(state, encoder, module)
    check_heads(source, {module: encoder})
    with open_weights(source) as weights:
        if not module_settings(weights):
            logger.warning(
                f"{weights.label} does not say whether '{module}' was trained "
                "with `output_norm`. The exported model is one without: where "
                "the recipe has it, it computes something else."
            )
    check_fit(inner, encoder.model.state_dict(), module, "encoder")
    check_fit(
        {"weight": weight, "bias": bias},
        torch.nn.Linear(encoder.config.hidden_size, len(labels)).state_dict(),
        head,
        "encoder",
    )
    model = _model_for_ctc(encoder.config, len(labels), blank_index)
    whole = {
        f"{model.base_model_prefix}.{name}": tensor
        for name, tensor in inner.items()
    }
    whole.update({"lm_head.weight": weight, "lm_head.bias": bias})
    whole = stored(whole, dtype, "the model")
    kind = type(encoder)
    settings = {
        "sample_rate": 16000,
        "ssl_class": f"{kind.__module__}.{kind.__qualname__}",
        "in_features": encoder.config.hidden_size,
        "out_features": len(labels),
        "blank_index": blank_index,
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    # HyperPyYAML drops the quotes where YAML needs none, and takes what is in
    # parentheses for a tuple
    text += "labels: !apply:json.loads\n"
    text += yaml.safe_dump([json.dumps(labels)], default_style='"', width=4096)
    with export_folder(folder, source, texts, sign) as target:
        model.save_pretrained(
            target, state_dict=whole, max_shard_size=max_shard_size
        )
        encoder.feature_extractor.save_pretrained(target)
        _save_tokenizer(labels, blank_index, target)
        text = _HPARAMS.replace("SETTINGS\n", text)
        write_text(target / "hyperparams.yaml", text)
        check_ctc(target, whole)
    logger.info(f"Merged model exported to {folder}.")
    return folder


def _check_encoder(encoder):
    """Refuses what transformers has no model for CTC of."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CTC_MAPPING_NAMES,
    )

    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    # HuBERT and WavLM are subclasses of Wav2Vec2 in SpeechBrain
    if (
        not isinstance(encoder, Wav2Vec2)
        or encoder.config.model_type not in MODEL_FOR_CTC_MAPPING_NAMES
    ):
        raise ValueError(
            f"{type(encoder).__name__}: expected SpeechBrain's Wav2Vec2, "
            "HuBERT or WavLM. Export other encoders with export_pretrained."
        )
    if encoder.output_norm or encoder.output_all_hiddens:
        raise ValueError(
            "An encoder with `output_norm` or `output_all_hiddens` computes "
            "what no model for CTC of transformers does: export it with "
            "export_pretrained."
        )


def _linear(state, head):
    """Weight [labels, width] and bias [labels] of the last layer."""
    state = {name.removeprefix("w."): state[name] for name in state}
    if "weight" not in state or set(state) - {"weight", "bias"}:
        raise ValueError(
            f"'{head}' has {sorted(state)}; expected the weight and bias of a "
            "linear layer."
        )
    weight = state["weight"]
    return weight, state.get("bias", weight.new_zeros(len(weight)))


def _in_order(labels):
    if isinstance(labels, Mapping):
        missing = set(range(len(labels))) - set(labels)
        if missing:
            raise ValueError(f"there is no label of output {min(missing)}.")
        labels = [labels[index] for index in range(len(labels))]
    labels = list(labels)
    for label in labels:
        if not isinstance(label, str) or labels.count(label) > 1:
            raise ValueError(
                f"the label {label!r}: expected texts, each of them once."
            )
    return labels


def _model_for_ctc(config, outputs, blank_index):
    """A model for CTC with random weights."""
    from transformers import AutoModelForCTC

    config = type(config).from_dict(
        {
            **config.to_dict(),
            "vocab_size": outputs,
            "pad_token_id": blank_index,
            "bos_token_id": None,
            "eos_token_id": None,
            # The blank's probabilities are added up as they are
            "ctc_zero_infinity": True,
        }
    )
    return AutoModelForCTC.from_config(config, trust_remote_code=False)


def _save_tokenizer(labels, blank_index, folder):
    """The labels as a tokenizer of transformers."""
    from transformers import Wav2Vec2CTCTokenizer

    known = set(labels)
    vocabulary = {
        WORD_DELIMITER
        if label == SPACE and WORD_DELIMITER not in known
        else label: index
        for index, label in enumerate(labels)
    }
    delimiter = WORD_DELIMITER if WORD_DELIMITER in vocabulary else SPACE
    path = folder / "vocab.json"
    write_text(path, json.dumps(vocabulary, ensure_ascii=False) + "\n")
    blank = labels[blank_index]
    Wav2Vec2CTCTokenizer(
        str(path),
        bos_token=None,
        eos_token=None,
        unk_token=blank,
        pad_token=blank,
        word_delimiter_token=delimiter,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
