"""The rest of a study: what is left to do, and the time and disk it takes.

Times and sizes are those of what the study has done so far: trainings are
estimated by the mean of those of the same YAML, merges by the mean of those
with a search or without.

Authors
 * The speechbrain_merge authors 2026
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from speechbrain_merge.records.folders import size_on_disk
from speechbrain_merge.records.once import known_record
from speechbrain_merge.report import text_table
from speechbrain_merge.study.results import read_times


def describe_plan(study) -> str:
    """A table of all models, and what the rest will take.

    Arguments
    ---------
    study : Study
        The study.

    Returns
    -------
    str
        A table for a terminal.
    """
    known = read_times(study.folder)
    seen, rows, left = {}, [], []
    for seed, nodes in study.wanted().items():
        for node in nodes:
            state = state_of(study, seed, node, known)
            kind = _kind(node)
            if state["seconds"]:
                seen.setdefault(kind, []).append(state)
            rows.append((seed, node, kind, state))
    table = []
    for seed, node, kind, state in rows:
        usual = _usual(seen.get(kind, []))
        if record_of(study.folder, node)[0] is None:
            usual = (0.0, 0.0)  # there is nothing to make
        if not state["done"]:
            left.append(usual)
        table.append(
            [
                node.name,
                str(seed),
                node.kind,
                ", ".join(node.parents) or "–",
                "done" if state["done"] else "to do",
                _minutes(state["seconds"] if state["done"] else usual[0]),
                _megabytes(state["bytes"] if state["done"] else usual[1]),
            ]
        )
    header = ["model", "seed", "kind", "made from", "state", "min", "MB"]
    unknown = sum(seconds is None for seconds, _ in left)
    minutes = sum(seconds or 0 for seconds, _ in left) / 60
    size = sum(each or 0 for _, each in left) / 1e6
    words = f"{len(left)} of {len(table)} models are left"
    if left:
        words += f": about {minutes:.0f} minutes and {size:.0f} MB"
    if unknown:
        words += (
            f", and {unknown} of a kind of which none is done yet, so that "
            "nothing is known of them"
        )
    return f"{text_table(header, table)}\n\n{words}. Tests are not counted."


def state_of(study, seed: int, node, times: Optional[Mapping] = None) -> dict:
    """Whether a model exists, and what it took.

    A model without weights of its own exists when all exist that it is made
    from.

    Arguments
    ---------
    study : Study
        The study.
    seed : int
        One of its seeds.
    node : Node
        The model.
    times : dict, optional
        The content of ``times.json``.

    Returns
    -------
    dict
        ``done``, ``seconds`` (None where unknown) and ``bytes``.
    """
    folder = study.folder / f"seed-{seed}"
    record, place = record_of(folder, node)
    done = _is_done(study, seed, node)
    seconds = None
    if (
        done
        and record is not None
        and node.kind in ("train", "align", "repair")
    ):
        known = _known(record, node)
        seconds = None if known is None else known["seconds"]
    elif done and times:
        seconds = times.get(node.name, {}).get(str(seed), {}).get("seconds")
    return {
        "done": done,
        "seconds": seconds,
        "bytes": size_on_disk(place) if done and place is not None else None,
    }


def _is_done(study, seed, node):
    """Whether a model exists."""
    record, _ = record_of(study.folder / f"seed-{seed}", node)
    if record is not None:
        return record.is_file()
    nodes = {each.name: each for each in study.plans[seed]}
    return all(_is_done(study, seed, nodes[name]) for name in node.parents)


def _known(record, node):
    """The record of a model; damaged, its message says what to delete."""
    if node.kind != "train":
        return known_record(record)
    return known_record(record, f"Delete {record.parent} to train it again.")


def record_of(folder: Path, node) -> tuple[Optional[Path], Optional[Path]]:
    """The file that says that a model exists, and where it lies.

    Arguments
    ---------
    folder : Path
        Of one seed.
    node : Node
        The model.

    Returns
    -------
    record, place : Path or None
        None for a model without weights of its own, or one that is loaded.
    """
    if node.kind == "train":
        home = folder / "models" / node.name
        return home / "finished.json", home
    if node.kind == "merge":
        home = folder / "merge" / node.name
        return home / "result.json", home
    if node.kind in ("align", "repair"):
        file = folder / f"{node.kind}ed" / f"{node.name}.json"
        return file, file.with_suffix(".safetensors")
    if node.kind == "similarity":
        file = folder / "similarity" / f"{node.name}.json"
        return file, file
    if node.kind == "original":
        file = folder / "original.safetensors"
        return file, file
    return None, None


def _kind(node):
    """The kind of a node; nodes of a kind have similar costs."""
    if node.kind == "train":
        return ("train", node.training, len(node.domains) > 1)
    if node.kind == "merge":
        return ("merge", node.options.get("search") is not None)
    return (node.kind,)


def _usual(states):
    """The mean time and size of what was done of a kind."""
    seconds = [s["seconds"] for s in states if s["seconds"] is not None]
    sizes = [s["bytes"] for s in states if s["bytes"] is not None]
    return (
        statistics.fmean(seconds) if seconds else None,
        statistics.fmean(sizes) if sizes else None,
    )


def _minutes(seconds):
    """Seconds as minutes."""
    return "?" if seconds is None else f"{seconds / 60:.1f}"


def _megabytes(size):
    """Bytes as megabytes."""
    return "?" if size is None else f"{size / 1e6:.1f}"
