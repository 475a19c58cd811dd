"""A SpeechBrain pretrained folder of any recipe, with merged weights.

The YAML for inference is given, and the merged weights of each module become
the ``.ckpt`` file that its ``pretrainer`` loads. Where the YAML says that a
file is elsewhere (``pretrainer.paths``, as many YAMLs on the hub do), that
entry is left out: else the original model would be loaded from there. Before
the folder takes its place, SpeechBrain has loaded it, and each merged tensor
was compared.

Authors
 * The speechbrain_merge authors 2026
"""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Optional, Union

import torch
import yaml

from speechbrain.utils.logger import get_logger
from speechbrain_merge.export.folder import (
    export_folder,
    module_state,
    write_text,
)
from speechbrain_merge.export.loading import check_pretrained
from speechbrain_merge.export.source_files import steady
from speechbrain_merge.export.tokenizer import copy_file
from speechbrain_merge.records.checked import anything, fields, mapped
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.paths import entry_path, plain_name
from speechbrain_merge.records.reading import read_text, read_yaml
from speechbrain_merge.records.signing import Signer
from speechbrain_merge.weights import open_weights

logger = get_logger(__name__)

_hparams = fields(
    {"pretrainer": fields({"loadables": mapped(anything())})},
)


@steady("source")
def export_pretrained(
    source,
    hparams_file,
    folder,
    files=(),
    texts: Optional[Mapping] = None,
    sign: Union[Signer, str, Path, None] = None,
) -> Path:
    """Writes merged weights as a SpeechBrain pretrained folder.

    Before the folder takes its place, SpeechBrain has made what the YAML
    describes and loaded the files into it.

    Arguments
    ---------
    source : object
        Merged weights with names ``<module>.<parameter>``.
    hparams_file : str or Path
        The YAML for inference, as SpeechBrain's interfaces read it: it has
        ``modules`` and a ``pretrainer`` whose ``loadables`` include the merged
        modules by name. Entries of its ``paths`` for the files that are
        written are left out of the copy.
    folder : str or Path
        The folder to write. An earlier export there is replaced.
    files : list of str or Path
        More files that the loadables need (tokenizer.ckpt, normalizer.ckpt). A
        SentencePiece model is copied without the paths that it was trained
        from.
    texts : dict, optional
        More files of the folder, name to text: a card as ``README.md``.
    sign : Signer, str or Path, optional
        As for ``export_whisper``.

    Returns
    -------
    folder : Path

    Raises
    ------
    ValueError
        When the YAML does not load a merged module, loads one for which there
        is no file, or has ``pretrainer.paths`` that cannot be left out.
    NotLoadable
        When what was written does not load, or not as what was merged, or with
        other numbers of attention heads than the weights were trained with.
    FileExistsError
        When the folder has something in it that no export wrote there.
    """
    folder = entry_path(folder)
    with open_weights(source) as weights:
        modules = sorted({name.partition(".")[0] for name in weights.names()})
    for module in modules:
        # It becomes the name of a file: "/etc/x.weight" is of no module
        plain_name(module, f"the name of a module in {source}")
    names = [Path(file).name for file in files]
    names += [f"{module}.ckpt" for module in modules]
    twice = {name for name, times in Counter(names).items() if times > 1}
    if twice:
        raise ValueError(
            f"two files of {folder} would have the name "
            f"{', '.join(sorted(twice))}: give each loadable one file"
        )
    loadables = _loadables(hparams_file)
    given = set(modules) | {Path(file).stem for file in files}
    if set(modules) - loadables or loadables - given:
        raise ValueError(
            f"{hparams_file}: `pretrainer.loadables` are {_some(loadables)}; "
            f"the merged modules are {_some(modules)}, further files "
            f"{_some(given - set(modules))}. Every merged module must be "
            "loaded, and every loadable have a file."
        )
    text = _without_paths(hparams_file, given)
    states = {module: module_state(source, module) for module in modules}
    with export_folder(folder, source, texts, sign) as target:
        for module, state in states.items():
            path = f"{module}.ckpt"
            try:
                torch.save(state, target / path)
            except RuntimeError as error:
                # torch does not say what the system said
                raise OSError(
                    f"{folder / path} could not be written, and nothing was "
                    f"changed. Is the disk full? torch says: {error}"
                ) from error
        for file in files:
            copy_file(file, target / Path(file).name)
        write_text(target / "hyperparams.yaml", text)
        check_pretrained(target, states, source)
    logger.info(f"Merged model exported to {folder}.")
    return folder


def _some(names):
    """Names in an error, of which there may be any number."""
    listed = sorted(names)
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"{listed[:20]}{more}"


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
    content = read_yaml(hparams_file, Plain)
    try:
        found = _hparams(content, str(hparams_file))
    except RecordError as error:
        raise RecordError(
            f"{error}. Expected the YAML for inference, with `pretrainer` and "
            "its `loadables`."
        ) from None
    return set(found["pretrainer"]["loadables"])


def _without_paths(hparams_file, names: Collection[str]) -> str:
    """The YAML's text, without other places for what the folder holds."""
    text = read_text(hparams_file)
    found = _child(yaml.compose(text, Loader=yaml.SafeLoader), "pretrainer")
    found = _child(found, "paths")
    if found is None or found.tag == "tag:yaml.org,2002:null":
        return text
    title = f"{hparams_file}: `pretrainer.paths`"
    advice = "take that out of it: the exported folder has the file itself."
    if not isinstance(found, yaml.MappingNode):
        raise ValueError(
            f"{title} may name another file for what was merged; {advice}"
        )
    lines = text.splitlines(keepends=True)
    for key, value in found.value:
        if key.value not in names:
            continue
        first, last = key.start_mark, value.end_mark
        if found.flow_style or first.line != last.line:
            raise ValueError(
                f"{title} has another file for '{key.value}'; {advice}"
            )
        lines[first.line] = ""
    return "".join(lines)


def _child(node, name):
    """The value of a key in a mapping's node; None where there is none."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((v for k, v in node.value if k.value == name), None)
