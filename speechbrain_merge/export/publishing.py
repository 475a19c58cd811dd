"""What an export says of its making: nothing of the machine that made it.

A merged file has on record where its sources were. In a folder that is
uploaded, a place is said as seen from that folder, so that it stays true when
both are moved together. Of what is elsewhere on the machine the last names are
kept, as many as tell one source from another; the hash says which it is.

Example
-------
>>> import json
>>> sources = [
...     {"path": path, "label": path}
...     for path in ("/home/me/runs/a.pt", "/data/old/a.pt", "/data/new/a.pt")
... ]
>>> text = json.dumps({"method": "average", "sources": sources})
>>> found = published({"merge": text}, "/home/me/exported")
>>> [source["path"] for source in json.loads(found["merge"])["sources"]]
['../runs/a.pt', 'old/a.pt', 'new/a.pt']

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Union

from speechbrain_merge.weights.metadata_check import as_checked

HUB_FOLDER = "models--"
"""How the folder of a model in the cache of the Hub begins."""


def published(metadata: Mapping, folder: Union[str, Path]) -> dict:
    """The metadata of a merged file, without absolute paths.

    Arguments
    ---------
    metadata : dict
        Text by name. JSON in it is read: names and values of any depth may be
        absolute paths.
    folder : str or Path
        The folder of the export, from which the places are seen.

    Returns
    -------
    metadata : dict
        Where there was no absolute path, it is equal to what was given.
    """
    known = {name: _parsed(text) for name, text in metadata.items()}
    paths: dict[str, None] = {}

    def gather(text):
        if os.path.isabs(text):
            paths[text] = None
        return text

    _changed(known, gather)
    places = _places(list(paths), os.path.abspath(folder))
    if not places:
        return dict(metadata)
    found = _changed(known, lambda text: places.get(text, text))
    return as_checked(
        {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in found.items()
        }
    )


def _parsed(text):
    """What JSON says, if it is an object; else the text itself."""
    if text.startswith("{"):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _changed(value: Any, change: Callable):
    """The same data with its text, keys among it, changed."""
    if isinstance(value, Mapping):
        return {
            change(key): _changed(each, change) for key, each in value.items()
        }
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _places(paths: Sequence[str], folder: str) -> dict:
    """Absolute path to what is said of it."""
    home = Path.home()
    # From here on upwards, a path tells of the machine
    above = {Path(home.anchor), *home.parents}
    places, elsewhere = {}, {}
    for path in paths:
        if Path(os.path.commonpath([path, folder])) in above:
            elsewhere[path] = Path(path).parts[1:]
        else:
            places[path] = os.path.relpath(path, folder)
    for path, parts in elsewhere.items():
        cached = [part.startswith(HUB_FOLDER) for part in parts]
        length = len(parts) - cached.index(True) if any(cached) else 1
        others = [other for other in elsewhere.values() if other != parts]
        while any(other[-length:] == parts[-length:] for other in others):
            length += 1
        places[path] = "/".join(parts[-length:]) or "."
    return places
