"""What all exports share: the weights of a module, and a whole folder.

Authors
 * The speechbrain_merge authors 2026
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from speechbrain_merge.lineage import EXPORT_RECORD, KEY
from speechbrain_merge.records.folders import whole_folder
from speechbrain_merge.records.paths import inside
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.records.signing import signer_of
from speechbrain_merge.weights import (
    IncompatibleWeights,
    digest,
    fold,
    has_adapters,
    open_weights,
)


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


@contextmanager
def export_folder(folder, source, texts, sign):
    """Gives a folder to fill, which takes its place when it is complete."""
    signer = signer_of(sign)
    if signer is not None:
        signer.check()
    with open_weights(source) as weights:
        record = {**weights.metadata, "weights": Path(weights.label).name}
        if Path(weights.label).is_file():
            record["digest"] = digest(Path(weights.label))
    if KEY in record:
        where = f"{weights.label}, metadata '{KEY}'"
        record[KEY] = _without_places(parse_json(record[KEY], where))
    with whole_folder(folder) as target:
        yield target
        content = {
            EXPORT_RECORD: json.dumps(record, indent=2) + "\n",
            **(texts or {}),
        }
        for name, text in content.items():
            path = inside(target, name, "texts")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if signer is not None:
            signer.sign(target)


def _without_places(record):
    """The record of a merge; of absolute paths the last name alone.

    A folder that is uploaded says nothing of the machine that it comes from.
    """
    if isinstance(record, Mapping):
        return {key: _without_places(value) for key, value in record.items()}
    if isinstance(record, list):
        return [_without_places(value) for value in record]
    if isinstance(record, str) and Path(record).is_absolute():
        return Path(record).name
    return record
