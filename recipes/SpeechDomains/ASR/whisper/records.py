"""Work that is done once: what came of it is written down with its settings.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import os
import time

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


def once(path, settings, work, again=False):
    """Does a piece of work, unless its record with these settings is there.

    Arguments
    ---------
    path : Path
        The record.
    settings : dict
        All that decides the outcome.
    work : callable
        Does it, and gives the outcome as plain data.
    again : bool
        Whether the work is simply done again when the settings are others.
        A training is not: it would mix with what is there.

    Returns
    -------
    dict
        ``settings``, ``outcome`` and ``seconds``.

    Raises
    ------
    ValueError
        When it was done with other settings.

    Example
    -------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     record = Path(folder) / "finished.json"
    ...     first = once(record, {"lr": 1}, lambda: "trained")
    ...     again = once(record, {"lr": 1}, lambda: "trained twice")
    >>> again["outcome"]
    'trained'
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["settings"] == settings:
            logger.info(f"{path.parent} is finished.")
            return record
        before = record["settings"]
        changed = sorted(
            name
            for name in {*before, *settings}
            if before.get(name) != settings.get(name)
        )
        if not again:
            raise ValueError(
                f"{path} says that this was done with other settings "
                f"({', '.join(changed)}): choose another results_folder, or "
                f"delete {path.parent} and, of a training, its candidates in "
                f"the pool beside it."
            )
    started = time.perf_counter()
    record = {
        "settings": settings,
        "outcome": work(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    run_on_main(write_record, args=[path, record])
    return record


def write_record(path, record):
    """Writes a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
    os.replace(temporary, path)
