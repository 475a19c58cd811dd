"""``speechbrain-merge inspect``: what is in a file, or in a pool.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import time
from collections import Counter
from dataclasses import asdict
from math import prod
from pathlib import Path

from speechbrain_merge.command.tables import number_cell, print_table
from speechbrain_merge.command.verification import print_lineage
from speechbrain_merge.lineage import KEY, check_lineage, record_at
from speechbrain_merge.pool import read_merges, read_pool, verify_pool
from speechbrain_merge.pool.run_folder import run_folders
from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.folders import size_on_disk
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import open_weights, part
from speechbrain_merge.weights.vocabulary import vocabularies


def run(options) -> dict:
    """What is in a file of weights or in a pool, or whether it is unchanged."""
    if options.verify:
        return _verified(options.file)
    path = Path(options.file)
    merges = read_merges(path)
    if merges or run_folders(path) or _has_checkpoints(path):
        return _pool(path, merges)
    return _weights(path)


def show(found):
    """Prints what was found."""
    if "lineage" in found:
        print_lineage(found["lineage"])
    elif "files" in found:
        print_table(
            ["candidate", "hash", "content"],
            [
                [
                    each["name"],
                    each["digest"],
                    "changed" if each["fault"] else "as recorded",
                ]
                for each in found["files"]
            ],
        )
    elif "candidates" in found:
        _show_pool(found)
    else:
        _show_weights(found)


def _verified(source):
    """The outcome of comparing a model or a pool with what is on record."""
    if Path(source).is_file() or record_at(source) is not None:
        rows, kind = check_lineage(source), "lineage"
    else:
        rows, kind = verify_pool(source), "files"
    faults = dict.fromkeys(row.fault for row in rows if row.fault)
    plain = [asdict(row) for row in rows]
    for row in plain:
        if "path" in row:
            row["path"] = str(row["path"])
    return {kind: plain, "faults": list(faults)}


def _has_checkpoints(path):
    """Whether a folder has the checkpoints of a past run in it."""
    return any(path.glob("CKPT*/CKPT.yaml")) or any(
        path.glob("save/CKPT*/CKPT.yaml")
    )


def _pool(path, merges):
    """Candidates of a pool, what they are bound to, and what was merged."""
    there = run_folders(path) or _has_checkpoints(path)
    candidates = []
    for each in read_pool(path) if there else []:
        known = vocabularies(each)
        candidates.append(
            {
                "name": each.name,
                "run": each.run,
                "path": str(each.path),
                "epoch": each.epoch,
                "step": each.step,
                "metric": each.metric,
                "score": each.score,
                "bytes": size_on_disk(each.path),
                "base": None if each.base is None else str(each.base),
                "base_digest": each.base_digest,
                "vocabulary": {
                    kind: len(one.tokens) for kind, one in known.items()
                },
                "merges": [
                    merge.name
                    for merge in merges
                    if any(each.name == member.name for member in merge.members)
                ],
            }
        )
    return {
        "pool": str(path),
        "candidates": candidates,
        "merges": [
            {
                "name": merge.name,
                "made": merge.time,
                "method": merge.method,
                "value": merge.value,
                "path": merge.path,
                "members": [asdict(member) for member in merge.members],
            }
            for merge in merges
        ],
    }


def _show_pool(found):
    """Prints a pool, the last merge at the end."""
    candidates = found["candidates"]
    if candidates:
        metrics = dict.fromkeys(each["metric"] for each in candidates)
        print_table(
            [
                "candidate",
                "epoch",
                "step",
                "/".join(metrics),
                "MB",
                "base (SHA-256)",
                "vocabulary",
                "merged in",
            ],
            [
                [
                    each["name"],
                    number_cell(each["epoch"], "{}"),
                    number_cell(each["step"], "{}"),
                    number_cell(each["score"], "{:.2f}"),
                    f"{each['bytes'] / 1e6:.1f}",
                    (each["base_digest"] or "-")[:12],
                    ", ".join(
                        f"{kind} {size}"
                        for kind, size in each["vocabulary"].items()
                    )
                    or "-",
                    ", ".join(each["merges"]) or "-",
                ]
                for each in candidates
            ],
        )
        size = sum(each["bytes"] for each in candidates) / 1e6
        print(f"\n{len(candidates)} candidates, {size:.1f} MB")
    rows = []
    for merge in found["merges"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(merge["made"]))
        for member in merge["members"]:
            rows.append(
                [
                    merge["name"],
                    when,
                    merge["method"]["name"],
                    member["name"],
                    number_cell(member["weight"], "{:.4f}"),
                ]
            )
    if rows:
        if candidates:
            print()
        print_table(["merge", "made", "method", "member", "weight"], rows)


def _weights(path):
    """Parts, tensors, ties and provenance of weights."""
    with open_weights(path) as weights:
        own = [name for name in weights.names() if name not in weights.tied]
        types, parts, tensors = Counter(), {}, []
        for name in own:
            size = prod(weights.shape(name))
            types[_type(weights, name)] += size
            found = part(name)
            row = ".".join(word for word in (found.stack, found.role) if word)
            counts = parts.setdefault(row, {"tensors": 0, "weights": 0})
            counts["tensors"] += 1
            counts["weights"] += size
            tensors.append(
                {
                    "name": name,
                    "shape": list(weights.shape(name)),
                    "type": _type(weights, name),
                    "bytes": size * weights.dtype(name).itemsize,
                }
            )
        record = None
        if KEY in weights.metadata:
            record = parse_json(weights.metadata[KEY], weights.label)
        return {
            "weights": weights.label,
            "types": dict(types),
            "bytes": sum(each["bytes"] for each in tensors),
            "parts": parts,
            "tensors": tensors,
            "tied": dict(weights.tied),
            "merged": record,
        }


def _show_weights(found):
    """Prints what is in a file of weights."""
    print(
        f"{printable(found['weights'])}\n{len(found['tensors'])} tensors, "
        f"{sum(found['types'].values())} weights "
        f"({', '.join(found['types'])}), {found['bytes']} bytes\n"
    )
    print_table(
        ["part", "tensors", "weights"],
        [
            [row, counts["tensors"], counts["weights"]]
            for row, counts in found["parts"].items()
        ],
    )
    print()
    print_table(
        ["tensor", "shape", "type"],
        [
            [each["name"], str(each["shape"]), each["type"]]
            for each in found["tensors"]
        ],
    )
    if found["tied"]:
        print()
        print_table(["tied", "to"], list(map(list, found["tied"].items())))
    if found["merged"] is not None:
        print("\nmerged:")
        told = json.dumps(found["merged"], indent=2, ensure_ascii=False)
        print(printable(told))


def _type(weights, name):
    """The type of a tensor, in a word."""
    return str(weights.dtype(name)).removeprefix("torch.")
