"""``speechbrain-merge inspect``: what is in a file, or merged of a pool.

Authors
 * The speechbrain_merge authors 2026
"""

import json
import time
from collections import Counter
from math import prod
from pathlib import Path

from speechbrain_merge.command.tables import number_cell, print_table
from speechbrain_merge.command.verification import print_lineage
from speechbrain_merge.lineage import KEY, check_lineage, record_at
from speechbrain_merge.pool import read_merges, verify_pool
from speechbrain_merge.records.errors import printable
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights import open_weights, part


def run(options):
    """Prints what is in a file: parts, tensors, ties, provenance."""
    if options.verify:
        if Path(options.file).is_file() or record_at(options.file) is not None:
            rows = check_lineage(options.file)
            print_lineage(rows)
            _refuse_faults(rows)
        else:
            print_verified(verify_pool(options.file))
        return
    merges = read_merges(options.file)
    if merges:
        print_merges(merges)
        return
    with open_weights(options.file) as weights:
        own = [name for name in weights.names() if name not in weights.tied]
        sizes = {name: prod(weights.shape(name)) for name in own}
        types = Counter()
        parts, tensors = Counter(), Counter()
        for name in own:
            types[_type(weights, name)] += sizes[name]
            found = part(name)
            row = ".".join(word for word in (found.stack, found.role) if word)
            parts[row] += sizes[name]
            tensors[row] += 1
        size = sum(sizes[name] * weights.dtype(name).itemsize for name in own)
        print(
            f"{printable(weights.label)}\n{len(own)} tensors, {sum(sizes.values())} "
            f"weights ({', '.join(types)}), {size} bytes\n"
        )
        print_table(
            ["part", "tensors", "weights"],
            [[row, tensors[row], parts[row]] for row in parts],
        )
        print()
        print_table(
            ["tensor", "shape", "type"],
            [
                [name, str(list(weights.shape(name))), _type(weights, name)]
                for name in own
            ],
        )
        if weights.tied:
            print()
            rows = [[alias, kept] for alias, kept in weights.tied.items()]
            print_table(["tied", "to"], rows)
        if KEY in weights.metadata:
            record = parse_json(weights.metadata[KEY], weights.label)
            print("\nmerged:")
            told = json.dumps(record, indent=2, ensure_ascii=False)
            print(printable(told))


def print_verified(found):
    """Prints what a pool has, and fails where a file is not as recorded."""
    print_table(
        ["candidate", "SHA-256", "content"],
        [
            [each.name, each.digest, "changed" if each.fault else "as recorded"]
            for each in found
        ],
    )
    _refuse_faults(found)


def print_merges(merges):
    """Prints what was merged of a pool, the last one at the end."""
    rows = []
    for merge in merges:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(merge.time))
        for member in merge.members:
            rows.append(
                [
                    merge.name,
                    when,
                    merge.method["name"],
                    member.name,
                    number_cell(member.weight, "{:.4f}"),
                ]
            )
    print_table(["merge", "made", "method", "member", "weight"], rows)


def _refuse_faults(found):
    """Raises where something verified is not as recorded."""
    faults = dict.fromkeys(each.fault for each in found if each.fault)
    if faults:
        raise ValueError("\n".join(faults))


def _type(weights, name):
    """The type of a tensor, in a word."""
    return str(weights.dtype(name)).removeprefix("torch.")
