"""Work that is done once: its outcome is kept with everything that decided it.

A record is one JSON file: the settings of the work, its outcome, and how long
it took. Where the record is there and the settings are the same, the work is
not done again. What was begun and not finished is known by its settings too: it
does not go on with others. Under ``torchrun`` the main process looks, and all
processes do the same.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain_merge.records.alone import alone
from speechbrain_merge.records.errors import RecordError
from speechbrain_merge.records.files import write_whole
from speechbrain_merge.records.written_check import read_written, with_check

logger = get_logger(__name__)


def once(
    path,
    settings: Mapping,
    work: Callable[[], Any],
    again: bool = False,
    advice: str = "delete its folder to do it anew.",
    is_there: Optional[Callable[[Any], bool]] = None,
) -> dict:
    """Does a piece of work, unless its record with these settings exists.

    Arguments
    ---------
    path : str or Path
        The record, a JSON file.
    settings : dict
        Everything that decides the outcome, as plain data.
    work : callable
        Does the work, and returns the outcome as plain data.
    again : bool
        Whether the work may simply be done again when the settings have
        changed. A training may not: it would go on from other checkpoints.
    advice : str
        What to do when the settings have changed, or the record is damaged,
        for the message.
    is_there : callable, optional
        ``is_there(outcome) -> bool``: whether what the work left is still
        there. Where it is not, the work is done again.

    Returns
    -------
    dict
        ``settings``, ``outcome``, ``seconds``, and whether the work was
        ``interrupted`` before, so that the seconds are not all of it.

    Raises
    ------
    ValueError
        When the work was done or begun with other settings, naming those that
        differ, or when another process is doing it at the moment.

    Example
    -------
    >>> record = getfixture("tmp_path") / "finished.json"
    >>> first = once(record, {"lr": 1}, lambda: "trained")
    >>> second = once(record, {"lr": 1}, lambda: "trained twice")
    >>> second["outcome"]
    'trained'
    """
    path = Path(path)
    # first, since `new/../other` leads nowhere until there is a `new`
    run_on_main(path.parent.mkdir, kwargs={"parents": True, "exist_ok": True})
    settings = json.loads(json.dumps(settings, default=str))
    begun = path.with_name(f"{path.stem}.begun")
    delete = "Delete it to do the work again."
    if not again:
        delete = f"{advice[:1].upper()}{advice[1:]}"
    known = run_on_main(known_record, args=[path, delete])
    if known is not None:
        same = known["settings"] == settings
        if same and is_there is not None:
            same = run_on_main(is_there, args=[known["outcome"]])
            if not same:
                logger.warning(
                    f"{path}: what this work left is not there any more: it "
                    "is done again."
                )
                again = True
        if same:
            # A kill may have come between the record and this
            run_on_main(begun.unlink, kwargs={"missing_ok": True})
            logger.info(f"{path.parent} is done already.")
            return known
        if not again:
            _refuse(path, "done", known["settings"], settings, advice)
    with alone(path.with_name(f"{path.stem}.lock"), str(path.parent)):
        interrupted = run_on_main(begun.exists)
        before = run_on_main(_begun_with, args=[begun, delete])
        if not again and before not in (None, settings):
            _refuse(begun, "begun", before, settings, advice)
        run_on_main(write_whole, args=[begun, json.dumps(settings)])
        started = time.perf_counter()
        record = {"settings": settings, "outcome": work()}
        record["seconds"] = round(time.perf_counter() - started, 1)
        record["interrupted"] = interrupted
        text = json.dumps(with_check(record), indent=2, ensure_ascii=False)
        run_on_main(write_whole, args=[path, text + "\n"])
        run_on_main(begun.unlink, kwargs={"missing_ok": True})
    return record


def _begun_with(begun, advice):
    """The settings of work that was begun; None where they are not known."""
    if not begun.is_file() or not begun.stat().st_size:
        return None  # of a version that did not write them down
    settings = _read(begun, advice)
    return settings if isinstance(settings, dict) else None


def _refuse(path, what, before, settings, advice):
    """Raises with the names of the settings that differ."""
    raise ValueError(
        f"{path} says that this was {what} with other settings "
        f"({', '.join(changed(before, settings))}): choose another folder, or "
        f"{advice}"
    )


def known_record(
    path, advice: str = "Delete it to do the work again."
) -> Optional[dict]:
    """The record of work that was done, if there is one.

    Arguments
    ---------
    path : str or Path
        The record.
    advice : str
        What to do when it is damaged, for the message.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        When the file is no record, or was changed since it was written, naming
        it.
    """
    path = Path(path)
    if not path.is_file():
        return None
    record = _read(path, advice)
    if not isinstance(record, dict) or not {"settings", "outcome"} <= set(
        record
    ):
        raise ValueError(
            f"{path} is no record of finished work: it needs `settings` and "
            f"`outcome`. {advice}"
        )
    return {"seconds": 0.0, "interrupted": False, **record}


def _read(path, advice):
    """The content of a record, or an error that says what to do."""
    try:
        return read_written(path)
    except RecordError as error:
        reason = str(error)
        end = "" if reason.endswith("?") else "."
        raise RecordError(f"{reason.rstrip('.')}{end} {advice}") from None


def changed(before: Mapping, now: Mapping, prefix: str = "") -> list[str]:
    """The names of the settings that differ.

    Arguments
    ---------
    before, now : dict
        Settings, perhaps with dicts in them.
    prefix : str
        What the names begin with.

    Returns
    -------
    list of str
        Sorted, with dots between the names of nested settings.

    Example
    -------
    >>> changed({"a": 1, "with": {"lr": 1}}, {"a": 1, "with": {"lr": 2}})
    ['with.lr']
    """
    names = []
    for name in sorted({*before, *now}, key=str):
        one, other = before.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += changed(one, other, f"{prefix}{name}.")
        elif one != other:
            names.append(f"{prefix}{name}")
    return names
