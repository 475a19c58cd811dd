"""A folder of weights: a SpeechBrain checkpoint or a Hugging Face model.

A SpeechBrain checkpoint ``CKPT+…`` holds one ``<recoverable>.ckpt`` for each
thing that training must remember. Those that are flat dictionaries of tensors
are models and are taken together, their names prefixed by the recoverable's,
e.g. ``wav2vec2.model.encoder…``. Optimizers, schedulers, counters and
normalisers are not, and are left out. A model whose file is broken is an
error: half of a checkpoint is not a smaller model.

A folder that this package wrote has a mark that lists its files. Weights in it
that are not as they were written are an error too: they may be those of two
models, mixed by a copy that was interrupted.

Example
-------
>>> import torch
>>> folder = getfixture("tmp_path") / "CKPT+example"
>>> folder.mkdir()
>>> torch.save({"weight": torch.ones(2)}, folder / "model.ckpt")
>>> _ = (folder / "counter.ckpt").write_text("3")
>>> _ = (folder / "CKPT.yaml").write_text("WER: 12.5")
>>> with open_folder(folder) as weights:
...     weights.names()
['model.weight']

Authors
 * The speechbrain_merge authors 2026
"""

import glob
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from speechbrain.utils.checkpoints import (
    METAFNAME,
    PARAMFILE_EXT,
    hook_on_loading_state_dict_checkpoint,
)
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import fields, file_name, mapped
from speechbrain_merge.records.file_hashes import file_state
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.paths import inside
from speechbrain_merge.records.reading import read_json, read_text
from speechbrain_merge.weights.beside import difference
from speechbrain_merge.weights.damage import damage_of
from speechbrain_merge.weights.files import (
    from_file,
    is_state_dict,
    is_torch_file,
    load_torch,
    open_file,
)
from speechbrain_merge.weights.mapping import Weights, under

logger = get_logger(__name__)

# In the order in which Hugging Face itself looks for them
HUGGING_FACE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
ADAPTER_CONFIG = "adapter_config.json"
CONFIG_LIMIT = 4 << 20

_SHARD = re.compile(r"(.*)-\d+(-of-\d+\.\w+)")
_index = fields({"weight_map": mapped(file_name)})
_compared: set = set()
"""Files that were compared with those beside them, as they were then."""


def open_folder(path, recoverable=None) -> Weights:
    """Open a folder of weights.

    Arguments
    ---------
    path : str or Path
        A SpeechBrain checkpoint folder, a folder of ``.ckpt`` files as
        SpeechBrain's pretrained models are, or a Hugging Face model or PEFT
        adapter folder.
    recoverable : str, optional
        Take this ``<recoverable>.ckpt`` only, with its bare names; in a
        Hugging Face folder, the tensors under that prefix.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        Where it is no such folder, or a file in it is broken.
    ChangedFolder
        Where this package wrote the folder, and a file of weights is not as
        it was written.
    """
    path = Path(path)
    hugging_face = [
        name for name in HUGGING_FACE_FILES if (path / name).is_file()
    ]
    if not (path / METAFNAME).is_file() and hugging_face:
        _refuse_both(path, hugging_face)
        weights = _open_hugging_face(path, hugging_face[0])
        for other in hugging_face[1:]:
            _tell_of_another(weights, path, hugging_face[0], other)
        return weights if recoverable is None else under(weights, recoverable)
    if not any(path.glob(f"*{PARAMFILE_EXT}")):
        inner = sorted(each.name for each in path.glob("CKPT*"))
        raise ValueError(
            f"{path} is neither a SpeechBrain checkpoint (<recoverable>.ckpt "
            f"files) nor a Hugging Face model ({HUGGING_FACE_FILES[0]}, …)."
            + (
                f" It holds {len(inner)} checkpoints: name one, e.g. "
                f"{path / inner[0]}."
                if inner
                else ""
            )
        )
    if recoverable is None:
        return _open_recoverables(path)
    file = path / f"{recoverable}{PARAMFILE_EXT}"
    if not file.is_file():
        there = sorted(each.stem for each in path.glob(f"*{PARAMFILE_EXT}"))
        raise ValueError(
            f"{path} has no recoverable '{recoverable}'. "
            f"It has: {', '.join(there)}."
        )
    check_unchanged(path, [file.name])
    return open_file(file)


def _refuse_both(path, names):
    """Refuses a model with an adapter beside it, which count together."""
    adapters = [name for name in names if name.startswith("adapter")]
    if 0 < len(adapters) < len(names) and (path / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{path} holds a model ({names[0]}) and an adapter "
            f"({adapters[0]}). Hugging Face computes with both. Name the file "
            f"{path / names[0]} for the model alone, or move the adapter and "
            f"its {ADAPTER_CONFIG} into a folder of its own."
        )


def _tell_of_another(weights, path, name, other):
    """Warns of other weights in a folder, which transformers does not load."""
    known = file_state(path / name), file_state(path / other)
    if known in _compared or name.startswith("adapter") != other.startswith(
        "adapter"
    ):
        return
    _compared.add(known)
    try:
        with _open_hugging_face(path, other) as second:
            found = difference(weights, second)
    except (ValueError, OSError) as error:
        found = f"the second cannot be read ({error})"
    if found is not None:
        logger.warning(
            f"{path / name} is read, as transformers does, and "
            f"{path / other} beside it holds something else: {found}. If that "
            "is the model you mean, name this file. If not, remove it."
        )


def _open_recoverables(path):
    entries = {}
    ties = {}
    left_out = []
    found = sorted(path.glob(f"*{PARAMFILE_EXT}"))
    # a saver of the recipe may make a folder, of a tokenizer say
    files = [file for file in found if not file.is_dir()]
    left_out += [file.name for file in found if file.is_dir()]
    check_unchanged(path, [file.name for file in files])
    for file in files:
        damage = damage_of(file)
        if damage:
            # Half of a checkpoint is not a smaller model
            raise ValueError(
                f"{file} is empty or damaged ({damage}): the checkpoint was "
                "not written to its end. Choose another one."
            )
        content = load_torch(file) if is_torch_file(file) else None
        if not is_state_dict(content):
            _check_left_out(content, file)
            left_out.append(file.name)
            continue
        one = from_file(
            hook_on_loading_state_dict_checkpoint(dict(content)), file
        )
        for name in one:
            entries[f"{file.stem}.{name}"] = one.entry(name)
        for alias, kept in one.tied.items():
            ties[f"{file.stem}.{alias}"] = f"{file.stem}.{kept}"
    if not entries:
        raise ValueError(
            f"{path} has no model among its files {', '.join(left_out)}: none "
            "is a flat dictionary of tensors"
        )
    if left_out:
        logger.debug("%s: left out %s", path, ", ".join(left_out))
    return Weights(entries, str(path), tied=ties)


def _check_left_out(content, file):
    """Refuses, or tells of, a file that is left out and yet holds a model.

    Optimizers, schedulers and normalisers do not look like it.
    """
    if not isinstance(content, Mapping):
        return
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    others = [str(name) for name in content if name not in tensors]
    if tensors and all(name.endswith("_extra_state") for name in others):
        raise ValueError(
            f"{file} is the state of a module with {', '.join(others[:5])}, "
            "which is no tensor and cannot be merged. Save its tensors alone."
        )
    if not tensors and any(map(is_state_dict, content.values())):
        logger.warning(
            f"{file}: left out. It holds weights, but inside of other things, "
            f"under the keys {', '.join(others[:10])}: name this file itself, "
            "if it is to be merged."
        )


def _open_hugging_face(path, name):
    if not name.endswith(".index.json"):
        check_unchanged(path, [name, ADAPTER_CONFIG])
        weights = open_file(path / name)
        if (path / ADAPTER_CONFIG).is_file() and name.startswith("adapter"):
            # Folding needs the rank and the scale, which are not in the file
            weights.metadata["adapter_config"] = read_text(
                path / ADAPTER_CONFIG, CONFIG_LIMIT
            )
        return weights
    wanted = _index(read_json(path / name), str(path / name))["weight_map"]
    check_unchanged(path, [name, *wanted.values()])
    with ExitStack() as opened:
        shards = {
            file: opened.enter_context(
                open_file(inside(path, file, str(path / name)))
            )
            for file in sorted(set(wanted.values()))
        }
        missing = [
            f"'{tensor}' in {file}"
            for tensor, file in wanted.items()
            if tensor not in shards[file]
        ]
        if missing:
            raise ValueError(
                f"{path / name} names tensors that the shards do not have: "
                f"{', '.join(missing[:10])} ({len(missing)} in all). "
                "Copy the folder again."
            )
        _refuse_unnamed(path, name, wanted, shards)
        entries = {
            tensor: shards[file].entry(tensor)
            for tensor, file in wanted.items()
        }
        ties = {}
        for shard in shards.values():
            ties.update(
                (alias, kept)
                for alias, kept in shard.tied.items()
                if alias in entries and kept in entries
            )
        # Nothing failed: the shards stay open until the weights are closed
        keep_open = opened.pop_all()
    return Weights(entries, str(path), tied=ties, on_close=keep_open.close)


def _refuse_unnamed(path, name, wanted, shards):
    """Refuses tensors in shards that the index does not speak of.

    transformers loads whole shards, and so these tensors as well.
    """
    found = []
    for file, shard in shards.items():
        for tensor in shard:
            at = wanted.get(tensor)
            if at is None and shard.tied.get(tensor) not in wanted:
                found.append(f"'{tensor}' in {file}")
            elif at not in (None, file) and not _same(
                shard[tensor], shards[at][tensor]
            ):
                found.append(f"'{tensor}' in {file}, which differs from {at}")
    series = {_SHARD.sub(r"\1-*\2", file) for file in shards} - set(shards)
    found += [
        f"the file {each.name}"
        for pattern in sorted(series)
        for each in sorted(path.glob(glob.escape(pattern).replace("[*]", "*")))
        if each.name not in shards
    ]
    if found:
        raise ValueError(
            f"{path / name} leaves out {', '.join(found[:10])} ({len(found)} "
            "in all), which may be of another model. Copy the folder again, "
            "or name them in the index, if they belong to this one."
        )


def _same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)
