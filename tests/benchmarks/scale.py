"""Time, memory and disk of merging many large checkpoints, by formula.

Prints the table of docs/scale.md from a handful of measured figures. From the
root of the checkout:

    python tests/benchmarks/scale.py --disk 1.0 --average 1.2 --ties 0.3

where ``--disk`` is how many gigabytes a second the disk reads and writes, and
``--average`` and ``--ties`` how many gigabytes of experts in float32 a processor
core merges in a second (``merge_speed.py``, "ours average" and "ours ties
(model)": the size of the experts over the processor seconds). ``ties`` over the
whole model reads the experts ``--passes`` times.
"""

import argparse
import math

MODELS = {
    # parameters in 1e9, bytes of one, the largest tensor in 1e6
    "Whisper-large-v3, float16": (1.543, 2, 66.4),
    "7 billion, float16": (7.0, 2, 131.1),
}


def main():
    """Reads the command line, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--disk", type=float, required=True)
    parser.add_argument("--average", type=float, required=True)
    parser.add_argument("--ties", type=float, required=True)
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--passes", type=int, default=3)
    chosen = parser.parse_args()
    experts = chosen.runs * chosen.checkpoints
    print(f"| {experts} experts of | " + " | ".join(MODELS) + " |")
    print("|---|" + "---:|" * len(MODELS))
    for title, formula in rows(chosen, experts):
        cells = [formula(*model) for model in MODELS.values()]
        print(f"| {title} | " + " | ".join(cells) + " |")


def rows(chosen, experts):
    """What is derived: title and formula of parameters, width, largest."""

    def disk(billions, width, largest):
        return shown(experts * billions * width, " GB", 1000, " TB")

    def memory(cores):
        # one tensor of the result is written in pieces: what is in memory is
        # the pages of the experts' tensor that are being read
        def formula(billions, width, largest):
            pages = 32 * 32768 * width / 1e6  # of one expert, then released
            return f"{cores * experts * pages:.0f} MB"

        return formula

    def seconds(cores, speed, passes=1, nodes=1):
        def formula(billions, width, largest):
            gigabytes = experts * billions * width / nodes
            reading = passes * gigabytes / chosen.disk
            computing = experts * billions * 4 / nodes / (speed * cores)
            writing = billions * width / chosen.disk
            return shown(max(reading, computing) + writing, " s", 60, " min")

        return formula

    yield "disk: the pool", disk
    for cores in chosen.cores:
        yield f"memory, {cores} cores", memory(cores)
        yield (
            f"time of `average`, {cores} cores",
            seconds(cores, chosen.average),
        )
        yield (
            f"time of `ties`, whole model, {cores} cores",
            seconds(cores, chosen.ties, chosen.passes),
        )
    number = chosen.nodes
    yield (
        f"time of `average`, {number} nodes, each its runs, then their means",
        seconds(chosen.cores[-1], chosen.average, 1, number),
    )


def shown(value, unit, larger, larger_unit):
    """A figure with two digits, in the larger unit where it is one."""
    if value >= 2 * larger:
        value, unit = value / larger, larger_unit
    digits = max(0, 1 - math.floor(math.log10(value)))
    return f"{value:.{digits}f}{unit}"


if __name__ == "__main__":
    main()
