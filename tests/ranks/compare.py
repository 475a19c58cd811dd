"""Whether two folders of `stages.py` hold the same choices and the same bytes.

What may differ is masked: the time at which a file was written, the place of
the folder (paths are of one length), and how much was decoded, which racing and
what was done before decide.
"""

import json
import re
from pathlib import Path

from speechbrain_merge.weights import digest

EXACT = (
    "merge/*/merged.safetensors",
    "statistics/*",
    "coefficients/*",
    "evaluated/*",
    "exported/*",
    "collected/pool/**/*.safetensors",
    "study/results.*",
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
UNEQUAL = ("decoded", "skipped", "reused")


def masked(path, folder):
    """The bytes of a file without the time and the place of writing."""
    content = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    return CREATED.sub(rb"created\1: \2", content)


def exact_files(folder):
    """Name to masked bytes of all files that have to be equal."""
    found = {}
    for pattern in EXACT:
        for path in folder.glob(pattern):
            # an export's mark has the sizes and times of its files
            if path.is_file() and not path.name.startswith("."):
                name = str(path.relative_to(folder))
                found[name] = (
                    # with the identity of its training in the header
                    digest(path).encode()
                    if "/pool/" in name
                    else masked(path, folder)
                )
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
