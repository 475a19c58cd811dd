"""Whether two folders of `stages.py` hold the same choices and the same bytes.

What may differ is masked: the time at which a file was written, the place of
the folder (paths are of one length), and how much was decoded, which racing and
what was done before decide.
"""

import json
import re
from pathlib import Path

import torch

from speechbrain_merge.weights import digest, open_weights

EXACT = (
    "merge/*/merged.safetensors",
    "statistics/*",
    "coefficients/*",
    "evaluated/*",
    "exported/*",
    "collected/pool/**/*.safetensors",
    "study/results.json",
    "study/seed-1/original.safetensors",
    "study/seed-1/models/*/pool/**/*.safetensors",
    "study/seed-1/merge/*/merged.safetensors",
    "study/seed-1/statistics/*",
    "study/seed-1/landscapes/*/*.json",
    "study/scores/*",
    "study/exported/aode/*",
)
"""Files whose bytes have to be equal."""

CREATED = re.compile(rb'created(\\*"): (\\*")[-+:T0-9]+')
CHECK = re.compile(rb'"metadata_check": ?"[0-9a-f]{16}"')
DIGEST = re.compile(rb'"digest": "(blake3:)?[0-9a-f]{64}"')
UNEQUAL = ("decoded", "skipped", "reused")


def masked(path, folder):
    """The bytes of a file without the time and the place of writing."""
    content = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return timeless(content)


def timeless(content):
    """The bytes of a file without the time, and the check that holds it."""
    return CHECK.sub(b"", CREATED.sub(rb"created\1: \2", content))


def content_of(path, name, folder):
    """What a file has to have in common with that of another folder."""
    if "/pool/" in name:
        # the header has the identity of a training
        with open_weights(path) as weights:
            return digest(weights)
    if path.suffix == ".pt":
        # pickle tells a string that was read from one that was made
        return plain(torch.load(path, weights_only=True))
    if path.name == "results.json":
        return path.read_bytes()
    content = masked(path, folder)
    if "/landscapes/" in name or path.name == "merge.json":
        # of a file with the identity of a training, or a time, in its header
        content = DIGEST.sub(b"", content)
    return content


def plain(state):
    """What `torch.load` gives, as plain data."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    return state


def exact_files(folder):
    """Name to content of all files that have to be equal."""
    found = {}
    for pattern in EXACT:
        for path in folder.glob(pattern):
            # an export's mark has the sizes and times of its files
            if path.is_file() and not path.name.startswith("."):
                name = str(path.relative_to(folder))
                found[name] = content_of(path, name, folder)
    return found


def difference(one, other):
    """The names of the exact files that are not the same; empty if all are."""
    first, second = exact_files(Path(one)), exact_files(Path(other))
    return sorted(
        name
        for name in {*first, *second}
        if first.get(name) != second.get(name)
    )


def told(folder, stage, rank):
    """What a rank saw, wrote and counted in a stage."""
    return json.loads((Path(folder) / f"{stage}-{rank}.json").read_text())


def decided(seen):
    """What a rank saw, without how much it took."""
    if not isinstance(seen, dict):
        return seen
    return {
        name: decided(value)
        for name, value in seen.items()
        if name not in UNEQUAL
    }
