"""Files for people, which replace only what was written here before.

Tables, pictures and pages carry names that a person may have used as well:
``results.csv``, ``report.html``. So a note beside them, ``.outputs.json``, has
the hash of each file that was written. A file of another content is somebody's,
or was edited: it is kept under another name before the new one takes its place.
After a kill at any instant, the note has the hash of what is there.

Example
-------
>>> folder = getfixture("tmp_path")
>>> _ = (folder / "results.csv").write_text("my own")
>>> write_outputs(folder, {"results.csv": "a,b"})
>>> sorted(path.name for path in folder.glob("r*"))
['results.before.csv', 'results.csv']
>>> write_outputs(folder, {"results.csv": "a,c"})
>>> (folder / "results.before.csv").read_text()
'my own'
>>> len(list(folder.glob("r*")))
2

Authors
 * The speechbrain_merge authors 2026
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Union

from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.checked import fields, listed, mapped, text
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.file_hashes import stream_fingerprint
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.folders import working_folder
from speechbrain_merge.records.ownership import MARK
from speechbrain_merge.records.paths import free_beside
from speechbrain_merge.records.reading import read_json

logger = get_logger(__name__)

NOTE = ".outputs.json"

_note = fields({"sha256": mapped(listed(text(64)))})


def write_outputs(
    folder: Union[str, Path], contents: Mapping[str, Union[str, bytes]]
) -> None:
    """Writes files, each whole, and keeps what somebody else wrote there.

    Arguments
    ---------
    folder : str or Path
        The folder. It has to exist.
    contents : dict
        Name of each file to its content. Text is written as UTF-8.
    """
    folder = Path(folder)
    data = {
        name: each.encode() if isinstance(each, str) else each
        for name, each in contents.items()
    }
    written = _hashes(folder)
    coming = {name: _hash(each) for name, each in data.items()}
    for name, code in coming.items():
        path = folder / name
        if not _is_one_of(path, [*written.get(name, []), code]):
            _keep(path)
    both = {name: [*written.get(name, []), coming[name]] for name in coming}
    _write_note(folder, {**written, **both})
    for name, each in data.items():
        write_whole(folder / name, each)
    alone = {name: [code] for name, code in coming.items()}
    _write_note(folder, {**written, **alone})


@contextmanager
def outputs_of(folder: Union[str, Path]) -> Iterator[Path]:
    """Gives a folder to write files in, which are then written as outputs.

    Arguments
    ---------
    folder : str or Path
        The folder that gets them, see ``write_outputs``.

    Yields
    ------
    drawn : Path
        An empty folder, which is removed at the end.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> with outputs_of(folder) as drawn:
    ...     _ = (drawn / "results.csv").write_text("a,b")
    >>> (folder / "results.csv").read_text(), is_output(folder / "results.csv")
    ('a,b', True)
    """
    with working_folder(Path(folder) / "outputs") as drawn:
        yield drawn
        files = [each for each in sorted(drawn.iterdir()) if each.name != MARK]
        write_outputs(folder, {each.name: each.read_bytes() for each in files})


def is_output(path: Union[str, Path]) -> bool:
    """Whether nothing is at a path, or what was written there.

    Arguments
    ---------
    path : str or Path
        A file.

    Returns
    -------
    bool
        False for a file that was edited, a link, a folder.
    """
    path = Path(path)
    return _is_one_of(path, _hashes(path.parent).get(path.name, []))


def _keep(path):
    """Gives a file of somebody else another name, which nothing has."""
    kept = free_beside(path, "before")
    os.rename(path, kept)
    logger.warning(
        f"{path} was not written here, or it was edited since: it is kept as "
        f"{kept.name}."
    )


def _is_one_of(path, codes):
    """Whether a path is free, or a file of one of some hashes."""
    if path.is_symlink() or not path.is_file():
        return not os.path.lexists(path)
    with open(path, "rb", buffering=0) as file:
        return stream_fingerprint(file) in codes


def _hash(data):
    return hashlib.sha256(data).hexdigest()


def _hashes(folder):
    """Name of each file that was written in a folder, to its hashes."""
    return _read_note(folder / NOTE) or {}  # without one, what is there is kept


def _read_note(path):
    """The hashes in a note; None where there is another thing, or none."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return _note(read_json(path), str(path))["sha256"]
    except RecordError:
        return None


def _write_note(folder, hashes):
    path = folder / NOTE
    if os.path.lexists(path) and _read_note(path) is None:
        _keep(path)
    write_whole(path, json.dumps({"sha256": hashes}, indent=1) + "\n")
