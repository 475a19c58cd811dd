"""Stages on some ranks, with and without a rank that is killed.

    python harness.py FOLDER WORLDS KILLS SEED [STAGE ...]

WORLDS are numbers of ranks with commas between, of which the first is 1; KILLS
is how often a rank of each of the others is killed in each stage, each in turn. FOLDER
gets a folder ``ranks-<n>`` for each number of ranks, and ``kills.json``, which
tells of each kill how long the other ranks lived and what was not as it was
without it.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from ranks.compare import decided, exact_files, told
from ranks.launch import RUN_OPTS, launch, side_by_side
from ranks.stages import STAGES, as_a_rank, make_material, run_stage


def run(folder, world, stage, output, kill=(None, None)):
    """One launch; `kill` is a rank and the event that it dies at."""

    def work(rank):
        kill_at = kill[1] if rank == kill[0] else None
        run_stage(stage, folder / "material", output, rank, RUN_OPTS, kill_at)

    return launch(world, work, folder / "logs" / f"{output.name}-{stage}")


def checked(ended):
    """Raises unless all ranks ended well."""
    for rank, each in enumerate(ended):
        if each.code:
            raise RuntimeError(
                f"rank {rank} ended with {each.code}:\n{each.said}"
            )


def undisturbed(folder, worlds, stages):
    """All stages with each number of ranks; the second studies once more."""
    [made] = side_by_side(
        [lambda: make_material(folder / "material")], folder / "logs"
    )
    checked([made])
    for world in worlds:
        output = folder / f"ranks-{world}"
        for stage in stages:
            checked(run(folder, world, stage, output))
        if world > 1 and "study" in stages:
            checked([again(folder, output, folder / f"again-{world}")])


def again(folder, output, target):
    """One process merges and tests what a study trained on several ranks."""
    kept = ("models", "original.safetensors")
    trained = output / "study/seed-1"
    for name in kept:
        source, copy = trained / name, target / "study/seed-1" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)

    def work(rank):
        run_stage("study", folder / "material", target, rank, RUN_OPTS)

    [ended] = launch(1, work, folder / "logs" / target.name)
    return ended


def kill(folder, world, stage, rank, at, number):
    """Kills a rank at an event, looks at what is there, and starts again."""
    output, whole = folder / f"k{number:06d}", folder / f"ranks-{world}"
    ended = run(folder, world, stage, output, (rank, at))
    left, expected = exact_files(output), exact_files(whole)
    begun = time.monotonic()
    again = run(folder, world, stage, output)
    found = {
        "world": world,
        "stage": stage,
        "rank": rank,
        "event": at,
        "codes": [each.code for each in ended],
        # until the last rank ended
        "seconds": max(each.at for each in ended) - ended[rank].at,
        "restart": time.monotonic() - begun,
        "half": sorted(
            name
            for name, content in left.items()
            if name in expected
            and content != expected[name]
            # written anew every few steps
            and not name.startswith("coefficients/")
        ),
        "failed": [each.said[-3000:] for each in again if each.code],
        "other": [],
    }
    if not found["failed"]:
        after = exact_files(output)
        found["other"] = sorted(
            name for name in after if after[name] != expected.get(name)
        )
        for each in range(world):
            seen = decided(told(output, stage, each)["seen"])
            if seen != decided(told(whole, stage, each)["seen"]):
                found["other"].append(f"what rank {each} saw")
    if not (found["half"] or found["failed"] or found["other"]):
        shutil.rmtree(output)
    return found


def main(where, worlds, kills, seed, *names):
    """What the command line says."""
    torch.set_num_threads(1)
    where = Path(where)
    worlds, names = [int(n) for n in worlds.split(",")], names or list(STAGES)
    undisturbed(where, worlds, names)
    draw, rows = random.Random(int(seed)), []
    for world in worlds[1:]:
        for place, stage in enumerate(names):
            for number in range(int(kills)):
                rank = (place + number) % world  # each in its turn
                events = told(where / f"ranks-{world}", stage, rank)["events"]
                at = draw.randint(1, events)
                rows.append(kill(where, world, stage, rank, at, len(rows)))
                print(rows[-1], flush=True)
                (where / "kills.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    # one script for all, as its text is a part of what scores hold for
    if sys.argv[1] == "torchrun":
        as_a_rank(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
