"""What may be replaced by a new file of tensors.

A path that was mistyped may be that of a model, or of any file of a person. So
what writes a file of its own at a path that it is given looks at what is there
before it computes anything: only a file that it wrote itself, which its
metadata say, is replaced. Metadata may be handed on to other tensors, as to a
merged model that was trained further; so where they have the hash of the tensors,
it has to be that of those in the file.

Example
-------
>>> path = getfixture("tmp_path") / "fisher.safetensors"
>>> refuse_foreign(path, "statistics", "no statistics of ours")
>>> _ = path.write_text("my notes")
>>> refuse_foreign(path, "statistics", "no statistics of ours")
Traceback (most recent call last):
...
FileExistsError: .../fisher.safetensors holds no statistics of ours. Nothing was changed. Move it away, or choose another output.

Authors
 * The speechbrain_merge authors 2026
"""

import os
from pathlib import Path
from typing import Union

from speechbrain_merge.records.ownership import refuse_other
from speechbrain_merge.records.paths import free_beside
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights.own_hash import verify_own_hash
from speechbrain_merge.weights.source import open_weights


def keep_damaged(path: Union[str, Path]) -> str:
    """Gives a file another name where its tensors are not those it says.

    Whoever makes a file again that it made before does not know whether it was
    damaged, or is another's by now.

    Arguments
    ---------
    path : str or Path
        A file, which may be missing.

    Returns
    -------
    str
        Words for a warning; empty where the file stays.
    """
    path = Path(path)
    if not path.is_file():
        return ""
    try:
        with open_weights(path) as weights:
            verify_own_hash(weights)
        return ""
    except (ValueError, OSError):
        other = free_beside(path, "damaged")
        os.rename(path, other)
        return f", and what is there is moved to {other.name}"


def refuse_foreign(path: Union[str, Path], key: str, what: str) -> None:
    """Refuses to replace a file that does not say that it is of a kind.

    Arguments
    ---------
    path : str or Path
        The file to be. Nothing, or an empty file, may be there.
    key : str
        An entry that the metadata of such a file have.
    what : str
        What the error says that the other file holds.

    Raises
    ------
    FileExistsError
        Where there is another file, a pipe or a link that leads nowhere.
    ValueError
        Where there is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")

    def is_ours(path):
        if not path.is_file():
            return False
        if path.stat().st_size == 0:
            return True
        with open_weights(path) as weights:
            verify_own_hash(weights)
            record = weights.metadata.get(key, "null")
            return isinstance(parse_json(record, str(path)), dict)

    refuse_other(path, is_ours, what, "choose another output")
