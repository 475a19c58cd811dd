"""How long a pool of thousands of candidates takes to open, list and select.

Writes a manifest of so many candidates, as a training writes it, and empty
files for them; nothing is merged. Each step runs in this process, the median of
several. From the root of the checkout:

    python tests/benchmarks/pool_size.py --candidates 10000

``--without-files`` leaves the files out and measures the manifest alone, which
is all of a pool that grows with the number of candidates in memory: for a
million, say.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from speechbrain_merge.pool import read_pool
from speechbrain_merge.pool.manifest import Manifest


def main():
    """Reads the command line, writes a pool, measures, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-files", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        share = chosen.candidates // chosen.runs
        for number in range(chosen.runs):
            write_run(pool / f"run-{number}", share, not chosen.without_files)
        size = sum(path.stat().st_size for path in pool.glob("*/*.jsonl"))
        found = {"candidates": share * chosen.runs, "manifest MB": size / 1e6}
        before = memory()
        if chosen.without_files:
            found["read"] = measured(lambda: read_manifests(pool), chosen)
        else:
            found["open and list"] = measured(lambda: read_pool(pool), chosen)
            candidates = read_pool(pool)
            found["select ten by metric"] = measured(
                lambda: sorted(candidates, key=lambda one: one.meta["WER"])[
                    :10
                ],
                chosen,
            )
        found["memory, MB"] = memory() - before
    print(json.dumps(found, indent=2))


def write_run(folder, number, with_files):
    """The folder of a run with so many candidates."""
    folder.mkdir(parents=True)
    with open(folder / Manifest.FILE, "w", encoding="utf-8") as file:
        for index in range(1, number + 1):
            name = f"epoch-{index:07}"
            record = {
                "event": "candidate",
                "name": name,
                "file": f"{name}.safetensors",
                "digest": f"{index:064x}",
                "slot": name,
                "epoch": index,
                "step": 1000 * index,
                "time": 1.7e9 + index,
                "meta": {"WER": 50 / (1 + index % 997), "epoch": index},
                "metric": "WER",
                "hyperparameters": {"lr": 1e-5, "seed": 1986},
                "tags": [],
                "lineage": "0" * 32,
                "checkpoint": f"CKPT+{index}",
                "saves": index,
            }
            file.write(json.dumps(record) + "\n")
            if with_files:
                (folder / record["file"]).touch()


def read_manifests(pool):
    """The contents of all manifests."""
    return [Manifest(folder).read() for folder in sorted(pool.iterdir())]


def measured(function, chosen):
    """Median seconds."""
    times = []
    for _ in range(chosen.repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def memory():
    """Most memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
