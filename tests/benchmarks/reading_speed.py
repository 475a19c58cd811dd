"""Mapped or copied: what it would cost to read files without mapping them.

A mapped file that another process cuts short ends the process at the next look
(SIGBUS). Copies of the bytes (``pread``) would make it an error. This merges
files of a Whisper's shapes both ways, in turn, and prints the least processor
time, the least wall time and the most memory that a merge has added::

    python tests/benchmarks/reading_speed.py --shapes base --repeats 5
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from speechbrain_merge import merge
from speechbrain_merge.methods import create
from speechbrain_merge.weights import mapped

sys.path.insert(0, str(Path(__file__).resolve().parent))

METHODS = {"average": {}, "ties": {"density": 0.2}}


def copied(self, start, shape, dtype):
    """Stands for `MappedFile.tensor`: reads the bytes instead."""
    tensor = torch.empty(shape, dtype=dtype)
    if not tensor.numel():
        return tensor
    target = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    with open(self.path, "rb", buffering=0) as file:
        while target:
            done = os.preadv(file.fileno(), [target], start)
            if not done:
                raise ValueError(f"{self.path} has been cut short")
            target, start = target[done:], start + done
    return tensor


def memory(what):
    """An entry of this process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        int(next(ln for ln in lines if ln.startswith(what)).split()[1]) / 1024
    )


def merge_once(method, how, folder):
    """Processor seconds, wall seconds, and megabytes, of one merge."""
    usual = mapped.MappedFile.tensor
    if how == "copied":
        mapped.MappedFile.tensor = copied
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    begun, used = time.perf_counter(), time.process_time()
    try:
        merge(
            create(method, **METHODS[method]),
            sorted(folder.glob("expert-*.safetensors")),
            None if method == "average" else folder / "base.safetensors",
            folder / "merged.safetensors",
            progress=False,
        )
    finally:
        mapped.MappedFile.tensor = usual
    return (
        time.process_time() - used,
        time.perf_counter() - begun,
        memory("VmHWM") - before,
    )


def main():
    """Makes files, merges them both ways, prints a table."""
    from whisper_shapes import make_models

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="base")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, chosen.shapes, chosen.experts, torch.float32, False)
        found = {}
        for _ in range(chosen.repeats):
            for method in METHODS:
                for how in ("mapped", "copied"):
                    row = merge_once(method, how, folder)
                    found.setdefault((method, how), []).append(row)
    print("| method | read | processor s | wall s | MB |")
    print("|---|---|---:|---:|---:|")
    for (method, how), rows in found.items():
        used, wall, megabytes = zip(*rows)
        print(
            f"| {method} | {how} | {min(used):.2f} | {min(wall):.2f} | "
            f"{max(megabytes):.0f} |"
        )


if __name__ == "__main__":
    main()
