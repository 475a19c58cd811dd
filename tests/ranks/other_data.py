"""Ranks of which one has a stale copy of the data.

    python -m ranks.other_data FOLDER

Prints a line of JSON: for each kind of work and each rank the error that it
ended in, or its outcome, with stale and with equal copies; and what the first
left in FOLDER/out.
"""

import json
import sys
from pathlib import Path

import torch
from ranks.launch import RUN_OPTS, launch
from ranks.stages import fit, make_brain
from tiny_recipe import tiny_ctc_data

from speechbrain_merge import MergeStage, learn_coefficients
from speechbrain_merge.brain.landscape import Landscape
from speechbrain_merge.brain.matching import learn_matching
from speechbrain_merge.brain.statistics import collect_fisher
from speechbrain_merge.methods import create
from speechbrain_merge.pool import read_pool
from speechbrain_merge.search import GreedySearch

EPOCHS = 2
BATCHES = {"batch_size": 2}


def copied(folder, other=None):
    """Data with a file of audio each, in a folder of the node's own."""
    folder.mkdir(parents=True, exist_ok=True)
    data = tiny_ctc_data(8, seed=60, shift=0.3)
    for number, (name, row) in enumerate(data.data.items()):
        row["wav"] = str(folder / f"{name}.wav")
        stale = number == other
        Path(row["wav"]).write_bytes(b"stale" if stale else name.encode())
    return data


def kinds(folder, brain, data, plain):
    """Name to what is done with data."""
    pool = read_pool(folder / "pool")

    def search(name, chosen):
        stage = MergeStage(
            "average",
            pool,
            search=GreedySearch("shuffled", seed=1),
            name=name,
            folder=folder / "out",
        )
        return brain.merge(stage, chosen, BATCHES).value

    out = folder / "out"
    return {
        "search": lambda: search("files", {"near": data}),
        "features": lambda: search("features", plain),
        "scored": lambda: str(brain.score_weights(pool[0], data, BATCHES)),
        "statistics": lambda: collect_fisher(
            brain, pool[0], data, BATCHES, out / "fisher"
        ),
        "map": lambda: learn_matching(
            brain, pool[0], pool[1], plain, data, out, BATCHES
        ),
        "coefficients": lambda: learn_coefficients(
            brain,
            create("adamerging"),
            pool[:2],
            pool[0].base,
            data,
            BATCHES,
            steps=1,
            folder=out,
        ),
        "landscape": lambda: Landscape(brain, data, BATCHES, out),
    }


def work(folder, rank, stale):
    """All kinds on one rank; writes down how each ends."""
    brain = make_brain(folder, EPOCHS, RUN_OPTS)
    fit(brain)
    other = stale and rank == 1
    data = copied(folder / f"node-{rank}", 3 if other else None)
    plain = tiny_ctc_data(8, seed=60, shift=1.5 if other else 0.3)
    ended = {}
    for name, run in kinds(folder, brain, data, plain).items():
        if not stale and name not in ("search", "features"):
            continue
        try:
            ended[name] = run()
        except ValueError as error:
            ended[name] = str(error)
    kind = "stale" if stale else "right"
    (folder / f"{kind}-{rank}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    fit(make_brain(where, EPOCHS))
    found = {}
    for kind in ("stale", "right"):
        stale = kind == "stale"
        ended = launch(
            2, lambda rank, stale=stale: work(where, rank, stale), where
        )
        assert [each.code for each in ended] == [0, 0], ended
        found[kind] = [
            json.loads((where / f"{kind}-{rank}.json").read_text())
            for rank in (0, 1)
        ]
        if stale:
            files = (where / "out").rglob("*")
            found["left"] = [str(one) for one in files if one.is_file()]
    print(json.dumps(found))
