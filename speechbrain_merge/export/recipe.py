"""A merged model of SpeechBrain's own modules, with its inference YAML written.

``export_recipe`` takes what inference needs out of a recipe's training YAML:
the features, the modules, the search, and what these refer to. No path, no
augmentation and no optimizer comes along. The folder opens by
``EncoderASR`` (CTC), ``EncoderDecoderASR`` (attention, transducer) and
``StreamingASR`` (transducer with chunks), wherever it is moved to.

Weights are stored as safetensors, without pickle. They are in files that end
in ``.ckpt`` because SpeechBrain's pretrainer looks for no others.

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from safetensors.torch import save_file

from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.folder import (
    export_folder,
    module_state,
    stored,
    write_text,
)
from speechbrain_merge.export.loading import check_recipe, door
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.export.tokenizer import copy_file, save_tokenizer
from speechbrain_merge.records.paths import entry_path, plain_name
from speechbrain_merge.records.reading import check_nesting
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.weights import open_weights

logger = get_logger(__name__)

INTERFACES = ("EncoderASR", "EncoderDecoderASR", "StreamingASR")

_TRANSFORMER = "TransformerASR"
_TRANSDUCER = "TransducerBeamSearcher"
_TOKENIZER = "tokenizer"
_NORMALISERS = ("InputNormalization", "GlobalNorm")

_HEAD = """\
# A model merged by speechbrain_merge, for
#   from speechbrain.inference.ASR import INTERFACE
#   model = INTERFACE.from_hparams(source=FOLDER)
# where FOLDER is this folder, wherever it was moved to.

"""
_CTC = """
decoding_function: !name:speechbrain.decoders.ctc.ctc_greedy_decode
    blank_id: {blank_index}
"""
_STREAMING = """
fea_streaming_extractor: !new:speechbrain.lobes.features.StreamingFeatureWrapper
    module: !new:speechbrain.nnet.containers.LengthsCapableSequential
{features}
    # The normalisation is no filter: it works on each frame
    properties: !apply:speechbrain.utils.filter_analysis.stack_filter_properties
        - [{filters}]
make_decoder_streaming_context: !name:{context}
decoding_function: !name:{greedy}
    - !ref <{decoder}>
make_tokenizer_streaming_context: !name:{tokenizer_context}
# Text of a chunk, with the space that it begins with. It does what
# spm_decode_preserve_leading_space does, without the kind of output that
# sentencepiece 0.2.3 has no more.
tokenizer_decode_streaming: !apply:builtins.eval
    - "lambda tokenizer, tokens, context: (
        ' ' * (context.emitted_symbol_count > 0 and len(tokens) > 0
               and tokenizer.id_to_piece(tokens[0])[0] == '\\u2581')
        + tokenizer.decode_ids(tokens),
        setattr(context, 'emitted_symbol_count',
                context.emitted_symbol_count + len(tokens)))[0]"
"""
_STREAMING_NAMES = {
    "context": "speechbrain.decoders.transducer."
    "TransducerGreedySearcherStreamingContext",
    "greedy": "speechbrain.decoders.transducer."
    "TransducerBeamSearcher.transducer_greedy_decode_streaming",
    "tokenizer_context": "speechbrain.tokenizers.SentencePiece."
    "SentencePieceDecoderStreamingContext",
}


@steady("source")
def export_recipe(
    source,
    hparams_file,
    folder,
    interface: str,
    encoder: Sequence[str],
    tokenizer,
    decoder: Optional[str] = None,
    files: Optional[Mapping] = None,
    blank_index: int = 0,
    overrides: Union[Mapping, str, None] = None,
    dtype: Optional[torch.dtype] = None,
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
) -> Path:
    """Writes a merged model of a recipe for SpeechBrain's inference.

    Arguments
    ---------
    source : object
        Merged weights, with names ``<module>.<parameter>``. A module is a key
        of the YAML, or of its checkpointer's recoverables.
    hparams_file : str or Path
        The YAML of the training: best the ``hyperparams.yaml`` of its output
        folder, in which what was overridden is replaced.
    folder : str or Path
        The folder to write. An earlier export there is replaced.
    interface : str
        "EncoderASR", "EncoderDecoderASR" or "StreamingASR"; the last also
        opens as the second.
    encoder : list of str
        The keys of the YAML that audio passes through, in order: for instance
        ``[compute_features, normalize, CNN, enc, proj_enc]``. With "EncoderASR"
        the last gives the labels. Of a ``TransformerASR`` the encoder is taken.
    tokenizer : str, Path, CTCTextEncoder or list of str
        A SentencePiece model or a saved ``CTCTextEncoder``, as a file; or the
        labels of CTC in order, the blank's among them.
    decoder : str, optional
        The key of the search, for all but "EncoderASR".
    files : dict, optional
        Key of the YAML to the file that its object loads, as in a checkpoint:
        ``{normalize: CKPT+…/normalizer.ckpt, lm_model: lm.ckpt}``.
    blank_index : int
        CTC's blank.
    overrides : dict or str, optional
        Of the YAML.
    dtype : torch.dtype, optional
        Of the stored weights; by default that of ``source``. The model computes
        in float32.
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
        When the YAML has no such key, a module has no place in it, the YAML
        normalises features or has a blank otherwise than is asked here, or
        ``dtype`` does not hold a weight.
    NotLoadable
        When what was written does not load, or not as what was merged, or with
        other numbers of attention heads than the weights were trained with; or
        when the tokenizer has not the labels of the model.
    """
    folder = entry_path(folder)
    files = {key: Path(path) for key, path in (files or {}).items()}
    _check_asked(interface, encoder, decoder)
    nodes = _nodes(hparams_file, overrides)
    with open_weights(source) as weights:
        modules = sorted({name.partition(".")[0] for name in weights.names()})
    keys = {name: _key_of(name, nodes, hparams_file) for name in modules}
    wanted = [*encoder, *keys.values(), *files]
    if decoder is not None:
        wanted.append(decoder)
    for key in wanted:
        if key not in nodes:
            raise ValueError(
                f"{hparams_file} has no key '{key}' to export; it has "
                f"{', '.join(sorted(nodes))}."
            )
    _check_as_trained(
        nodes,
        interface,
        encoder,
        wanted,
        set(keys.values()) & set(files),
        blank_index,
    )
    chosen = [key for key in nodes if key in wanted]
    if "sample_rate" in nodes:
        chosen.insert(0, "sample_rate")
    states = {name: module_state(source, name) for name in modules}
    for name, state in states.items():
        stored(state, dtype, name)  # raises where the dtype holds no value
    with export_folder(folder, source, texts, sign) as target:
        made = save_tokenizer(tokenizer, target / f"{_TOKENIZER}.ckpt")
        for key, path in files.items():
            copy_file(path, target / f"{plain_name(key, 'files')}.ckpt")
        text = _HEAD.replace("INTERFACE", interface)
        text += _serialized({key: nodes[key] for key in chosen})
        text += _inference(
            nodes, interface, list(encoder), decoder, made, blank_index
        )
        text += _pretrainer(list(keys.values()), list(files))
        write_text(target / "hyperparams.yaml", text)
        objects = _objects(target) if any(map(_ties, states.values())) else {}
        for name, state in states.items():
            path = target / f"{plain_name(keys[name], name)}.ckpt"
            _save(state, objects.get(keys[name]), path, dtype)
        check_recipe(
            target,
            interface,
            {keys[name]: state for name, state in states.items()},
            source,
            keys,
            dtype,
        )
    logger.info(f"Merged model exported to {folder}.")
    return folder


def _check_asked(interface, encoder, decoder):
    if interface not in INTERFACES:
        raise ValueError(
            f"interface is {interface!r}; expected one of "
            f"{', '.join(INTERFACES)}."
        )
    if (decoder is None) != (interface == "EncoderASR"):
        raise ValueError(
            f"{interface} needs "
            + ("no `decoder`" if decoder else "`decoder`, the search's key")
            + " in the YAML."
        )
    if interface == "StreamingASR" and len(encoder) < 3:
        raise ValueError(
            f"encoder is {list(encoder)}; expected the features, the encoder "
            "and its projection."
        )


def _check_as_trained(nodes, interface, encoder, wanted, twice, blank_index):
    """Refuses what would give another model than the YAML has trained."""
    for key in twice:
        raise ValueError(
            f"`files` gives a file for '{key}', which has merged weights. "
            "Leave it out."
        )
    trained = [
        value
        for used in (
            _entry(nodes.get("modules")),
            _entry(_entry(nodes.get("checkpointer")), "recoverables"),
        )
        for _, value in getattr(_entry(used), "value", ())
    ]
    for key, node in nodes.items():
        if _class(nodes, key) not in _NORMALISERS or key in encoder:
            continue
        if any(node is each for each in trained):
            raise ValueError(
                f"the YAML trains with features normalised by '{key}', and "
                f"encoder is {list(encoder)}: put '{key}' in its place there."
            )
    blanks: dict = {}
    for key in {"blank_index", *encoder, *wanted} & set(nodes):
        for place, value in _blanks(nodes[key], key):
            blanks.setdefault(value, place)
    if len(blanks) > 1:
        told = ", ".join(f"`{blanks[each]}: {each}`" for each in sorted(blanks))
        raise ValueError(
            f"the YAML has more than one blank ({told}): give the one that was "
            "trained with."
        )
    known = nodes.get("blank_index")
    if interface == "EncoderASR" and isinstance(known, yaml.ScalarNode):
        if known.value != str(blank_index):
            raise ValueError(
                f"blank_index is {blank_index}, and the YAML has `blank_index: "
                f"{known.value}`: give that."
            )


def _blanks(node, place):
    """Where a part of the YAML says the blank, and which it is."""
    if place.rpartition(".")[2] in ("blank_id", "blank_index"):
        if isinstance(node, yaml.ScalarNode) and node.value.isdigit():
            yield place, int(node.value)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _blanks(value, f"{place}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _blanks(value, place)


def _nodes(hparams_file, overrides):
    """The YAML's entries as nodes: what one refers to is the same node."""
    try:
        check_nesting(hparams_file)
        with open(hparams_file, encoding="utf-8") as stream:
            text = resolve_references(stream, overrides or {})
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError:
        raise
    except Exception as error:
        # the YAML libraries and HyperPyYAML raise many kinds
        raise ValueError(
            f"{hparams_file} cannot be read with these overrides "
            f"({type(error).__name__}: {error}). In the hyperparams.yaml of a "
            "training's output folder, what was overridden is replaced."
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{hparams_file} is no YAML of a recipe.")
    return {key.value: value for key, value in root.value}


def _key_of(module, nodes, hparams_file):
    """The key whose object a module's weights are loaded into."""
    if module in nodes:
        return module
    recoverables = _entry(_entry(nodes.get("checkpointer")), "recoverables")
    node = _entry(recoverables, module)
    for key, value in nodes.items():
        if node is not None and value is node:
            return key
    raise ValueError(
        f"the weights have a module '{module}', and {hparams_file} has no such "
        "key, nor one that its checkpointer saves by that name."
    )


def _entry(node, key=None):
    """A value of a mapping's node; without a key, the node if it is one."""
    if not isinstance(node, yaml.MappingNode):
        return None
    if key is None:
        return node
    return next((v for k, v in node.value if k.value == key), None)


def _serialized(nodes):
    """YAML of some entries; what two share is an anchor and an alias."""
    pairs = [
        (yaml.ScalarNode("tag:yaml.org,2002:str", key), node)
        for key, node in nodes.items()
    ]
    root = yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)
    _in_blocks(root)
    return yaml.serialize(root, Dumper=yaml.SafeDumper, width=1 << 20)


def _in_blocks(node):
    """Has all of a tree written in lines of their own.

    HyperPyYAML does not read a mapping with a tag and one key within brackets.
    """
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        node.flow_style = False
        for each in node.value:
            waiting += each if isinstance(each, tuple) else [each]


def _class(nodes, key):
    """The name of the class of a key's object; empty where it is none."""
    tag = nodes[key].tag
    return tag.rpartition(".")[2] if tag.startswith("!new:") else ""


def _inference(nodes, interface, encoder, decoder, tokenizer, blank_index):
    """The entries that SpeechBrain's interface asks for."""
    text, chain = "", []
    for key in encoder:
        if _class(nodes, key) == _TRANSFORMER:
            text += (
                f"\ninference_{key}: !new:speechbrain.lobes.models.transformer."
                f"TransformerASR.EncoderWrapper\n    transformer: !ref <{key}>\n"
            )
            key = f"inference_{key}"
        chain.append(key)
    modules = {"encoder": "inference_encoder"}
    text += (
        "\ninference_encoder: "
        "!new:speechbrain.nnet.containers.LengthsCapableSequential\n"
    )
    text += "".join(f"    {key}: !ref <{key}>\n" for key in chain)
    if interface == "EncoderASR":
        text += (
            "    inference_log_softmax: "
            "!new:speechbrain.nnet.activations.Softmax\n"
            "        apply_log: True\n"
        )
        text += _CTC.format(blank_index=blank_index)
    else:
        modules["decoder"] = decoder
        if _class(nodes, decoder) == _TRANSDUCER:
            text += "\ntransducer_beam_search: True\n"
    if interface == "StreamingASR":
        modules.update(enc=chain[-2], proj_enc=chain[-1])
        filters = [
            key
            for key in chain[:-2]
            if _class(nodes, key) != "InputNormalization"
        ]
        text += _STREAMING.format(
            features="\n".join(f"        - !ref <{k}>" for k in chain[:-2]),
            filters=", ".join(f"!ref <{key}>" for key in filters),
            decoder=decoder,
            **_STREAMING_NAMES,
        )
    text += f"\n{_TOKENIZER}: !new:{tokenizer}\n\nmodules:\n"
    return text + "".join(f"    {k}: !ref <{v}>\n" for k, v in modules.items())


def _pretrainer(weights, files):
    """The entry that loads the files."""
    text = (
        "\npretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        "    loadables:\n"
    )
    for key in [*weights, *files, _TOKENIZER]:
        text += f"        {key}: !ref <{key}>\n"
    text += (
        "    custom_hooks:  # of safetensors: no pickle, and nothing missing\n"
    )
    for key in weights:
        text += f"        {key}: !name:safetensors.torch.load_model\n"
    return text


def _objects(folder):
    """What the exported YAML makes, with weights drawn at random."""
    with door("hyperpyyaml"), open(folder / "hyperparams.yaml") as stream:
        return load_hyperpyyaml(stream)


def _ties(state):
    """Whether two names of a state dict have one tensor."""
    places = [each.data_ptr() for each in state.values() if each.numel()]
    return len(set(places)) < len(places)


def _save(state, module, path, dtype):
    """One module's weights as safetensors.

    Of the names that the module itself ties, the first is stored. What a
    training script tied, the YAML does not tie: it is stored under each name.
    """
    places = {}
    if module is not None:
        tensors = module.state_dict().items()
        places = {name: each.data_ptr() for name, each in tensors}
    seen, stored, kept = set(), set(), {}
    for name, tensor in state.items():
        place = places.get(name, name)
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.contiguous()
        # safetensors refuses memory that two names share
        if tensor.data_ptr() in stored:
            tensor = tensor.clone()
        stored.add(tensor.data_ptr())
        kept[name] = tensor
    save_file(kept, path)
