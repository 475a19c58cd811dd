"""What all exports share: the weights of a module, and a whole folder.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import torch
from safetensors import SafetensorError

from speechbrain_merge.export.publishing import published
from speechbrain_merge.export.source_files import check_steady
from speechbrain_merge.lineage import CARD, EXPORT_RECORD, KEY, check_record
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.records.files import name_file
from speechbrain_merge.records.folders import refuse_own_source, whole_folder
from speechbrain_merge.records.ownership import check_unchanged
from speechbrain_merge.records.paths import inside
from speechbrain_merge.records.reading import parse_json, read_json, read_text
from speechbrain_merge.records.signing import signer_of
from speechbrain_merge.report import merge_card
from speechbrain_merge.report.hub import check_about
from speechbrain_merge.weights import (
    IncompatibleWeights,
    attention_heads,
    digest,
    digest_with,
    fold,
    has_adapters,
    heads_at,
    module_settings,
    open_weights,
    part,
)
from speechbrain_merge.weights.folders import HUGGING_FACE_FILES


def module_state(source, module):
    """The state dict of one module, ties kept and adapters folded."""
    with _folded(source) as weights:
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


@contextmanager
def _folded(source):
    """Open weights without adapters."""
    with open_weights(source) as weights:
        if not has_adapters(weights):
            yield weights
            return
        with fold(source, weight_norm=False) as plain:
            yield plain


def check_fit(state, expected, module, kind="Whisper"):
    """Raises IncompatibleWeights when weights are not a model's."""
    faults = [f"'{name}' is missing" for name in expected if name not in state]
    for name, tensor in state.items():
        if name not in expected:
            faults.append(f"this model has no '{name}'")
        elif tensor.shape != expected[name].shape:
            faults.append(
                f"'{name}' has shape {list(tensor.shape)}, this model's has "
                f"{list(expected[name].shape)}"
            )
        elif not torch.isfinite(tensor).all():
            faults.append(f"'{name}' has values that are NaN or infinite")
    if faults:
        more = len(faults) - 10
        raise IncompatibleWeights(
            f"the weights of '{module}' do not fit this {kind}:\n  "
            + "\n  ".join(faults[:10])
            + (f"\n  … and {more} more" if more > 0 else "")
        )


def stored(state: Mapping, dtype: Optional[torch.dtype], what: str) -> dict:
    """A state dict in the dtype that is asked for, if one is.

    Arguments
    ---------
    state : dict
        Name to tensor, all finite.
    dtype : torch.dtype or None
        Of floating-point tensors.
    what : str
        What the error calls the weights.

    Returns
    -------
    state : dict

    Raises
    ------
    ValueError
        When the dtype does not hold a value.
    """
    if dtype is None:
        return dict(state)
    made = {}
    for name, tensor in state.items():
        floating = tensor.is_floating_point()
        made[name] = tensor.to(dtype) if floating else tensor
        if floating and not torch.isfinite(made[name]).all():
            word = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{what}: '{name}' has values up to {tensor.abs().max():.4g}, "
                f"which {word} does not hold. Choose another dtype: bfloat16 "
                "has the range of float32."
            )
    return made


def refuse_more(source, prefixes: tuple, why: str):
    """Refuses weights that an export would leave out.

    Arguments
    ---------
    source : object
        Merged weights.
    prefixes : tuple of str
        What the names of those begin with that are exported.
    why : str
        Why there is no room for others.

    Raises
    ------
    ValueError
        With the name of the first.
    """
    with open_weights(source) as weights:
        more = [n for n in weights.names() if not n.startswith(prefixes)]
    if more:
        raise ValueError(
            f"{weights.label} has '{more[0]}' and {len(more) - 1} more tensors "
            f"beside those of {' and '.join(p[:-1] for p in prefixes)}: {why}. "
            "Export it with export_pretrained."
        )


def inner_state(state: Mapping, wrapper: torch.nn.Module, module: str) -> dict:
    """The weights of the model of transformers in a wrapper of SpeechBrain.

    Arguments
    ---------
    state : dict
        The merged weights of the wrapper.
    wrapper : torch.nn.Module
        SpeechBrain's ``Whisper``, ``Wav2Vec2`` and the like.
    module : str
        Its name, for the error.

    Returns
    -------
    state : dict
        By the names of transformers. Buffers of the wrapper are left out.

    Raises
    ------
    ValueError
        When there are weights that such a wrapper has not.
    """
    own = {name for name, _ in wrapper.named_buffers()}
    more = [n for n in state if not n.startswith("model.") and n not in own]
    if more:
        raise ValueError(
            f"'{module}.{more[0]}' and {len(more) - 1} more tensors are in no "
            f"model of transformers, nor in SpeechBrain's "
            f"{type(wrapper).__name__}, and would be left out. Export it with "
            "export_pretrained."
        )
    return {
        name.partition(".")[2]: tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }


def check_heads(source, modules: Mapping) -> None:
    """Refuses modules with other heads or settings than are on record.

    Shapes do not tell heads, nor whether an output is normalised: another model
    loads, and computes something else.

    Arguments
    ---------
    source : object
        Merged weights; what was trained in a pool, or is in a folder of
        transformers, has its numbers of heads on record; in a pool, what
        ``speechbrain_merge.weights.module_settings`` records.
    modules : dict
        Name of a module in the weights to the module that they are for.

    Raises
    ------
    ValueError
        With the first layer that differs.
    """
    with open_weights(source) as weights:
        known, label = attention_heads(weights), weights.label
        trained = module_settings(weights)
    for name, module in modules.items():
        for path, number in attention_heads(module).items():
            layer = ".".join(filter(None, (name, path)))
            tensor = f"{layer}.q_proj.weight"
            wanted = heads_at(known, tensor, part(tensor).stack)
            if wanted not in (None, number):
                raise ValueError(
                    f"{label} was trained with {wanted} attention heads in "
                    f"'{layer}', and the model that it is exported with has "
                    f"{number}: give the configuration that it was trained "
                    "with."
                )
        for path, settings in module_settings(module).items():
            layer = ".".join(filter(None, (name, path)))
            for key, value in settings.items():
                wanted = trained.get(layer, {}).get(key, value)
                if wanted != value:
                    raise ValueError(
                        f"{label} was trained with `{key}` {wanted!r} in "
                        f"'{layer}', and the model that it is exported with "
                        f"has {value!r}: give what it was trained with."
                    )


@contextmanager
def export_folder(folder, source, texts, sign):
    """Gives a folder to fill, which takes its place when it is complete."""
    signer = signer_of(sign)
    if signer is not None:
        signer.check()
    record = _record(source, folder)
    if texts is None or CARD not in texts:
        texts = {**card_texts(source, folder), **(texts or {})}
    with _naming(folder), whole_folder(folder) as target:
        yield target
        content = {
            EXPORT_RECORD: json.dumps(record, indent=2) + "\n",
            **texts,
        }
        for name, text in content.items():
            path = inside(target, name, "texts")
            path.parent.mkdir(exist_ok=True)
            write_text(path, text)
        check_steady()
        if signer is not None:
            signer.sign(target)


@contextmanager
def _naming(folder):
    """Names the folder in errors of safetensors, which name no file."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"the weights of {folder} could not be written, and nothing was "
            f"changed. Is the disk full? safetensors says: {error}"
        ) from error


def write_text(path: Path, text: str):
    """Writes a file of an export; an error of the system names it.

    Arguments
    ---------
    path : Path
        The file.
    text : str
        Its content.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        name_file(error, path)
        raise


def _record(source, folder):
    """What an export has on record of its making."""
    with open_on_record(source) as weights:
        path, known = Path(weights.label), dict(weights.metadata)
    refuse_own_source(folder, [path])
    home = path.parent if path.name in HUGGING_FACE_FILES else path
    if KEY not in known and (home / EXPORT_RECORD).is_file():
        # A folder that was exported, in another form now
        check_unchanged(home, [EXPORT_RECORD])
        record = read_json(home / EXPORT_RECORD)
        if isinstance(record, Mapping):
            return dict(record)
    told = published(known, folder)
    record = {**told, "weights": path.name}
    if path.is_file():
        # The file that is made again has what is said here in its metadata
        same = told == known
        record["digest"] = digest(path) if same else digest_with(path, told)
    if KEY in record:
        where = f"{weights.label}, metadata '{KEY}'"
        record[KEY] = parse_json(record[KEY], where)
    return record


def card_texts(source, folder, about: Optional[Mapping] = None) -> dict:
    """The card of an export.

    Arguments
    ---------
    source : object
        What is exported.
    folder : str or Path
        Where to.
    about : dict, optional
        What the Hub wants to know besides: licence, language and more, see
        ``report/hub.py``.

    Returns
    -------
    texts : dict
        Name of the file to its text; empty where there is no record of a merge
        by this package.

    Raises
    ------
    ValueError
        Where something is wrong with what is said about the model.
    """
    if isinstance(source, (str, Path)) and not about:
        earlier = Path(source) / CARD
        if (Path(source) / EXPORT_RECORD).is_file() and earlier.is_file():
            return {CARD: read_text(earlier)}
    record = _record(source, folder)
    check_about(about or {}, "the card")
    try:
        check_record(record[KEY], f"the key '{KEY}'")
    except (KeyError, ValueError):
        return {}
    return {CARD: merge_card(record, title=Path(folder).name, about=about)}
