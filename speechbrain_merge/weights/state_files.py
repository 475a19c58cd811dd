"""Files with the state of a learning that was stopped, to go on from it.

An optimizer's moments that the disk has changed would lead to other results
than those of a learning that was never stopped, and nobody would see it. An
archive of torch has a checksum of each tensor, which `torch.load` does not look
at. It is compared here.

Example
-------
>>> import torch
>>> path = getfixture("tmp_path") / "learning.pt"
>>> save_state(path, {"step": 3, "moments": torch.ones(2)})
>>> load_state(path)["step"]
3
>>> content = path.read_bytes()
>>> one = torch.ones(1).numpy().tobytes()
>>> _ = path.write_bytes(content.replace(one + one, one + bytes(4)))
>>> load_state(path, "Learn anew.")
Traceback (most recent call last):
...
speechbrain_merge.weights.changed_content.ChangedContent: .../learning.pt: its part 'archive/data/0' is not as it was written. Learn anew.

Authors
 * The speechbrain_merge authors 2026
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from speechbrain_merge.records.files import write_whole
from speechbrain_merge.weights.changed_content import ChangedContent
from speechbrain_merge.weights.files import load_torch


def save_state(path: Union[str, Path], state: Mapping) -> None:
    """Writes a state, whole or not at all.

    Arguments
    ---------
    path : str or Path
        The file. Its folder is made.
    state : dict
        Plain values and tensors.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    before = get_crc32_options()
    set_crc32_options(True)
    try:
        torch.save(state, stream)
    finally:
        set_crc32_options(before)
    write_whole(path, stream.getvalue())


def load_state(path: Union[str, Path], advice: str = "") -> Any:
    """Reads a state, and compares each part with its checksum.

    Arguments
    ---------
    path : str or Path
        A file that `save_state` wrote.
    advice : str
        What to do about a damaged one, for the error.

    Returns
    -------
    object
        Usually a dictionary; anyone may have written the file.

    Raises
    ------
    ChangedContent
        Where a part does not have its checksum.
    ValueError
        Where the file is no archive of torch, or may hold code.
    """
    path = Path(path)
    state = load_torch(path)  # which looks at the parts and their sizes first
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no state: {error}. {advice}") from error
    if changed is not None:
        raise ChangedContent(
            f"{path}: its part '{changed}' is not as it was written. {advice}"
        )
    return state
