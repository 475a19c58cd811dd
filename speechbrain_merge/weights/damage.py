"""Signs that a file of a checkpoint was not written to its end.

A kill, a full disk or a broken one leave files that are empty, cut, or filled
with zeros. Most of them do not open; but a model's file whose first bytes are
damaged looks like one of the text files that SpeechBrain keeps beside it, and
the checkpoint like that of a smaller model.

Example
-------
>>> import torch
>>> path = getfixture("tmp_path") / "model.ckpt"
>>> torch.save({"weight": torch.ones(2)}, path)
>>> damage_of(path)
''
>>> _ = path.write_bytes(b"X" + path.read_bytes()[1:])
>>> damage_of(path)
'the beginning of model.ckpt is damaged'

Authors
 * The speechbrain_merge authors 2026
"""

import zipfile
from pathlib import Path

from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.reading import read_json

ZIP = b"PK"
TEXT_LIMIT = 1 << 20
_JSON_OF_OURS = (b'{"pool": ', b'{"n_steps": ')
"""Beginnings of the JSON that pools and schedulers of this package save; what a
recipe saves may begin with a brace and be no JSON."""

_BLOCK = 4096


def damage_of(path) -> str:
    """What shows that a file of a checkpoint was not written to its end.

    Arguments
    ---------
    path : str or Path
        A ``.ckpt`` file; or a folder, which a recipe's own saver may make.

    Returns
    -------
    str
        Empty where nothing shows it. What is in a folder is not looked at.
    """
    path = Path(path)
    if path.is_dir():
        return ""
    if not path.is_file():
        # a pipe would never end
        return f"{path.name} is no regular file"
    with open(path, "rb") as file:
        start = file.read(_BLOCK)
    if not start:
        return f"{path.name} is empty"
    if not any(start):
        return f"{path.name} is filled with zeros"
    # of one byte, a beginning of these two
    if start[:2] in (ZIP, ZIP[:1]) and not _ends_as_archive(path):
        return f"{path.name} breaks off"
    if not start.startswith(ZIP) and _ends_as_archive(path):
        return f"the beginning of {path.name} is damaged"
    if _is_json_of_ours(start) and path.stat().st_size < TEXT_LIMIT:
        try:
            read_json(path)
        except RecordError:
            return f"{path.name} breaks off"
    return ""


def _is_json_of_ours(start):
    """Whether a file, of a byte or more, begins as one that we save as JSON."""
    return any(
        start.startswith(known) or known.startswith(start)
        for known in _JSON_OF_OURS
    )


def _ends_as_archive(path):
    """Whether the end of an archive is there, and can be read."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError):
        return False
