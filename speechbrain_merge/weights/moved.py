"""Where weights are now, of which a record says where they were.

Example
-------
>>> from speechbrain_merge.weights import write_weights
>>> folder = getfixture("tmp_path")
>>> for name in ("models", "exported"):
...     (folder / name).mkdir()
>>> _ = write_weights(folder / "models" / "a.safetensors", {})
>>> (place, said) = next(
...     places_of("/else/where/models/a.safetensors", folder / "exported")
... )
>>> place.relative_to(folder).as_posix(), said
('models/a.safetensors', False)

Authors
 * The speechbrain_merge authors 2026
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from speechbrain_merge.weights.files import SAFETENSORS_SUFFIX, TORCH_SUFFIXES

MAP_SUFFIXES = (".yaml", ".yml")
"""Of files that say which units of a model go together."""

_MOST_NAMES = 8


def places_of(path, beside) -> Iterator[tuple[Path, bool]]:
    """Where weights on record may be, the likeliest place first.

    Arguments
    ---------
    path : str or Path
        Where they were.
    beside : str or Path
        The folder that has the record.

    Yields
    ------
    place : Path
        There are weights, or what goes with them: a folder, or a file of
        weights, statistics or a map by its name. Others,
        devices among them, are not looked at.
    said : bool
        Whether the record says this place, seen from the working folder or
        from ``beside``. Others are where it would be if all of it had been
        moved: the last names of the path, below the working folder, ``beside``
        or a folder above it. Their content has to be compared.
    """
    if not str(path):
        return
    path, beside = Path(path), Path(beside)
    seen = set()
    for place, said in _possible(path, beside):
        with suppress(OSError):  # too long for a name, for instance
            if place not in seen and _has_weights(place):
                seen.add(place)
                yield place, said


def _possible(path, beside):
    yield path, True
    names = path.parts
    if path.is_absolute():
        names = names[1:]
    else:
        yield beside / path, True
    names = names[-_MOST_NAMES:]
    for start in range(len(names)):
        for folder in (Path(), beside, *beside.absolute().parents):
            yield folder / Path(*names[start:]), False


def _has_weights(place):
    return place.is_dir() or (
        place.suffix in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX, *MAP_SUFFIXES)
        and place.is_file()
    )
