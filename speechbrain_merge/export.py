"""A merged model that loads anywhere.

``export_whisper`` writes one folder that three doors open, all with the merged
weights and nothing of this package needed:

- ``speechbrain.inference.ASR.WhisperASR.from_hparams(folder)``,
- ``transformers.WhisperForConditionalGeneration.from_pretrained(folder)``,
- a recipe's ``whisper_hub: folder``.

``export_pretrained`` writes a SpeechBrain pretrained folder of any other
recipe: its ``hyperparams.yaml`` for inference, with the merged weights of each
module as the ``.ckpt`` files that its ``pretrainer`` loads.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import shutil
from pathlib import Path

import torch
import yaml
from speechbrain.utils.logger import get_logger

from speechbrain_merge.weights import open_weights

logger = get_logger(__name__)

_WHISPER_HPARAMS = """\
# A Whisper merged by speechbrain_merge, for
#   from speechbrain.inference.ASR import WhisperASR
#   model = WhisperASR.from_hparams(source=folder, savedir=folder)
# Moved it? Change `whisper_folder`, or pass overrides={{"whisper_folder": ...}}.

whisper_folder: {folder}
language: {language}
sample_rate: 16000
min_decode_ratio: 0.0
max_decode_ratio: 1.0

whisper: !new:speechbrain.integrations.huggingface.whisper.Whisper
    source: !ref <whisper_folder>
    save_path: !ref <whisper_folder>
    language: !ref <language>
    task: transcribe
    freeze: True

decoder: !new:speechbrain.decoders.seq2seq.S2SWhisperGreedySearcher
    model: !ref <whisper>
    min_decode_ratio: !ref <min_decode_ratio>
    max_decode_ratio: !ref <max_decode_ratio>

modules:
    whisper: !ref <whisper>
    decoder: !ref <decoder>

# The weights come with whisper_folder, so there is nothing else to load.
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables: {{}}
"""


def export_whisper(source, whisper, folder, module="whisper"):
    """Writes a merged Whisper as a SpeechBrain and Hugging Face folder.

    Arguments
    ---------
    source : object
        Merged weights: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``.
    whisper : speechbrain.integrations.huggingface.whisper.Whisper
        A model of the same architecture, for its configuration, tokenizer and
        feature extractor. Its own weights are not changed.
    folder : str or Path
        The folder to write; files of the same names are replaced, each as a
        whole.
    module : str
        Name of the module in ``source``.

    Returns
    -------
    folder : Path

    Raises
    ------
    ValueError
        When the weights are not those of this architecture.
    """
    folder = Path(folder).resolve()
    target = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    state = _module_state(source, module)
    # Buffers of SpeechBrain's wrapper are not the Hugging Face model's.
    known = whisper.model.state_dict()
    inner = {
        name.partition(".")[2]: tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    missing = sorted(set(known) ^ set(inner))
    if missing:
        raise ValueError(
            f"The weights do not fit this Whisper: {len(missing)} names are "
            f"in one but not in the other, e.g. {missing[0]}."
        )
    whisper.model.save_pretrained(target, state_dict=inner)
    whisper.tokenizer.save_pretrained(target)
    whisper.feature_extractor.save_pretrained(target)
    _declare_generation(target, whisper)
    text = _WHISPER_HPARAMS.format(
        folder=json.dumps(str(folder)), language=json.dumps(whisper.language)
    )
    (target / "hyperparams.yaml").write_text(text, encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(target.iterdir()):
        os.replace(file, folder / file.name)
    target.rmdir()
    logger.info(f"Merged model exported to {folder}.")
    return folder


def export_pretrained(source, hparams_file, folder, files=()):
    """Writes merged weights as a SpeechBrain pretrained folder.

    Arguments
    ---------
    source : object
        Merged weights with names ``<module>.<parameter>``.
    hparams_file : str or Path
        The YAML for inference, as SpeechBrain's interfaces read it: it has
        ``modules`` and a ``pretrainer`` whose ``loadables`` include the merged
        modules by name.
    folder : str or Path
        The folder to write.
    files : list of str or Path
        More files that the loadables need (tokenizer.ckpt, normalizer.ckpt).

    Returns
    -------
    folder : Path

    Raises
    ------
    ValueError
        When the YAML does not load a merged module, or loads one for which
        there is no file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_weights(source) as weights:
        modules = sorted({name.partition(".")[0] for name in weights.names()})
    loadables = _loadables(hparams_file)
    given = set(modules) | {Path(file).stem for file in files}
    if set(modules) - loadables or loadables - given:
        raise ValueError(
            f"{hparams_file}: `pretrainer.loadables` are {sorted(loadables)}; "
            f"the merged modules are {modules}, further files "
            f"{sorted(given - set(modules))}. Every merged module must be "
            "loaded, and every loadable have a file."
        )
    for module in modules:
        _save(_module_state(source, module), folder / f"{module}.ckpt")
    for file in files:
        shutil.copyfile(file, folder / Path(file).name)
    shutil.copyfile(hparams_file, folder / "hyperparams.yaml")
    logger.info(f"Merged model exported to {folder}.")
    return folder


def _module_state(source, module):
    """The state dict of one module, ties kept."""
    with open_weights(source) as weights:
        prefix = f"{module}."
        names = [name for name in weights.names() if name.startswith(prefix)]
        if not names:
            raise ValueError(
                f"{weights.label} has no weights of a module '{module}'; its "
                f"names look like {weights.names()[0]}."
            )
        state = {}
        for name in names:
            kept = weights.tied.get(name, name)[len(prefix) :]
            if kept in state:
                state[name[len(prefix) :]] = state[kept]
            else:
                state[name[len(prefix) :]] = weights[name].clone()
        return state


def _save(state, path):
    """Writes a state dict as SpeechBrain's loader reads it, as a whole."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _loadables(hparams_file):
    """Names under ``pretrainer.loadables``, without building any object."""

    class Plain(yaml.SafeLoader):
        """Reads every tag as the plain data under it."""

    def construct(loader, suffix, node):
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Plain.add_multi_constructor("!", construct)
    with open(hparams_file, encoding="utf-8") as file:
        content = yaml.load(file, Loader=Plain)
    pretrainer = content.get("pretrainer") or {}
    return set(pretrainer.get("loadables") or {})


def _declare_generation(folder, whisper):
    """Says in config.json that the weights are a whole Whisper.

    SpeechBrain's wrapper holds the model without its output layer, which is
    the tied embedding; Hugging Face's pipeline wants the class that has it.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = ["WhisperForConditionalGeneration"]
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
