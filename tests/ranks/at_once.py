"""Several processes that do the same at one place, at the same time.

    python -m ranks.at_once FOLDER ROUNDS SEED

In each round and for each kind of work, forked processes begin within a third
of a second of each other. Each has to end whole, or to refuse in one sentence;
what is left has to be whole. Prints a line of JSON for each.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from ranks.compare import timeless
from ranks.launch import RUN_OPTS, ranks, side_by_side
from ranks.stages import EPOCHS, MergingCTC, Network, fit, make_brain
from ranks.study import run_study, write_yaml
from tiny_models import tiny_whisper
from tiny_recipe import tiny_ctc_brain, tiny_ctc_data

from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain_merge import CheckpointPool, MergeStage, merge
from speechbrain_merge.export import export_pretrained, export_whisper
from speechbrain_merge.pool import read_pool
from speechbrain_merge.records.files import temporaries
from speechbrain_merge.records.ownership import describe_files, read_mark
from speechbrain_merge.search import GreedySearch
from speechbrain_merge.weights import digest, open_weights

REFUSALS = (
    "another process is doing this at the moment",
    "was replaced since it was chosen to be evaluated",
)
RUNS = ("a", "a", "b", "c")


def train(folder, run, seed):
    """A training of its own into a pool that others write, too."""
    model = Network()
    with torch.no_grad():
        model.hidden.weight.mul_(1 + seed)
    pool = CheckpointPool(folder / "pool", {"model": model}, run=run)
    brain = tiny_ctc_brain(
        folder / f"training-{seed}",
        model,
        MergingCTC,
        epochs=3,
        recoverables={"pool": pool},
    )
    fit(brain)


def check_trainings(folder, ended):
    """Twelve whole candidates in four runs."""
    assert [each.code for each in ended] == [0] * 4
    candidates = read_pool(folder / "pool")
    runs = [candidate.run for candidate in candidates]
    assert sorted(set(runs)) == ["a", "a-2", "b", "c"]
    assert all(runs.count(run) == 3 for run in runs)
    for candidate in candidates:
        with open_weights(candidate) as weights:
            assert digest(weights) == candidate.digest
    assert {candidate.epoch for candidate in candidates} == {1, 2, 3}


def run_stage(folder, material, method):
    """A merge stage with a search, and its evaluation."""
    brain = make_brain(material, EPOCHS)
    stage = MergeStage(
        method,
        [material / "pool"],
        search=GreedySearch("shuffled", seed=1),
        name="stage",
        folder=folder / "merge",
    )
    dev = tiny_ctc_data(10, seed=50)
    result = brain.merge(stage, dev, {"batch_size": 2})
    brain.evaluate(dev, min_key="WER", test_loader_kwargs={"batch_size": 2})
    # what was evaluated is what was chosen
    assert brain.stats[-1][3] == result.value, (brain.stats[-1], result.value)


def check_stage(folder, ended):
    """One whole result at least, and refusals of those that have none."""
    check_refusals(ended)
    stored = json.loads((folder / "merge/stage/result.json").read_text())
    merged = folder / "merge/stage/merged.safetensors"
    assert digest(merged) == stored["digest"]
    check_clean(folder / "merge/stage")


def check_refusals(ended):
    """At least one ended well; the others said why in one sentence."""
    assert 0 in [each.code for each in ended]
    for each in ended:
        last = each.said.strip().splitlines()[-1:]
        assert each.code == 0 or any(text in last[0] for text in REFUSALS), (
            each.said
        )


def check_clean(folder):
    """Nothing that was being written is left."""
    assert temporaries(folder) == [], temporaries(folder)


def run_merge(folder, material, method):
    """A merge of files to one output."""
    pool = read_pool(material / "pool")
    merge(
        method,
        pool[-3:],
        pool[0].base,
        output=folder / "merged.safetensors",
        progress=False,
    )


def check_merge(folder, ended):
    """The file is that of one of them."""
    assert [each.code for each in ended] == [0, 0]
    found = timeless((folder / "merged.safetensors").read_bytes())
    alone = []
    for name in ("average", "ties"):
        path = folder / name / "merged.safetensors"
        alone.append(timeless(path.read_bytes()))
    assert found in alone
    check_clean(folder)


def check_export(folder, ended):
    """A whole folder, and nothing beside it."""
    assert [each.code for each in ended] == [0, 0], [e.said for e in ended]
    target = folder / "exported"
    assert read_mark(target) == describe_files(target)
    check_clean(folder)


def check_study(folder, ended):
    """The results of a study alone, after a start of its own."""
    check_refusals(ended)
    material = folder.parent / "material"
    for study in (folder / "study", material / "study"):
        [done] = side_by_side(
            [lambda study=study: run_study(study, material)], folder / "logs"
        )
        assert done.code == 0, done.said
    found, alone = (
        (study / "results.json").read_bytes()
        for study in (folder / "study", material / "study")
    )
    assert found == alone


KINDS = {}


def kind(function):
    """A kind of work: gives what the processes do, and what is checked."""
    KINDS[function.__name__] = function
    return function


@kind
def trainings(folder, material):
    """Four trainings into one pool, two under one name."""
    works = [
        lambda run=run, seed=seed: train(folder, run, seed)
        for seed, run in enumerate(RUNS)
    ]
    return works, check_trainings


@kind
def same_stage(folder, material):
    """The same merge stage twice."""
    return [lambda: run_stage(folder, material, "average")] * 2, check_stage


@kind
def other_stage(folder, material):
    """Two merge stages of one name, with other methods."""
    works = [
        lambda method=method: run_stage(folder, material, method)
        for method in ("average", "multislerp")
    ]
    return works, check_stage


@kind
def merges(folder, material):
    """Two merges to one file."""
    works = [
        lambda method=method: run_merge(folder, material, method)
        for method in ("average", "ties")
    ]
    for method in ("average", "ties"):
        (folder / method).mkdir()
        run_merge(folder / method, material, method)
    return works, check_merge


@kind
def pretrained_exports(folder, material):
    """Two exports of a pretrained folder to one place."""
    one, other = (each.path for each in read_pool(material / "pool")[:2])
    works = [
        lambda path=path: export_pretrained(
            path, material / "inference.yaml", folder / "exported"
        )
        for path in (one, other)
    ]
    return works, check_export


@kind
def whisper_exports(folder, material):
    """Two exports of a Whisper to one place."""
    hub = str(material / "whisper")
    whisper = Whisper(hub, hub + "/cache")
    weights = {
        f"whisper.{name}": tensor
        for name, tensor in whisper.state_dict().items()
    }
    works = [lambda: export_whisper(weights, whisper, folder / "exported")] * 2
    return works, check_export


@kind
def studies(folder, material):
    """The same study twice."""
    return [lambda: run_study(folder / "study", material)] * 2, check_study


def collect(pool, run, seed):
    """A training from the same start as the pool's others."""
    model = Network()
    brain = tiny_ctc_brain(
        pool.parent / f"training-{seed}",
        model,
        MergingCTC,
        epochs=12,
        recoverables={"pool": CheckpointPool(pool, {"model": model}, run=run)},
    )
    data = tiny_ctc_data(8, seed)
    brain.fit(brain.hparams.epoch_counter, data, data)


def merge_often(folder, rank):
    """Merges what the pool has just now, on several ranks."""
    brain = make_brain(folder / "material", EPOCHS, RUN_OPTS)
    fit(brain)
    dev = tiny_ctc_data(6, seed=50)
    for number in range(8):
        stage = MergeStage(
            "average",
            [folder / "material/pool"],
            search=GreedySearch("shuffled", seed=1, patience=2),
            name=f"stage-{number}",
            folder=folder / "merge",
        )
        result = brain.merge(stage, dev, {"batch_size": 2})
        path = folder / f"{number}-{rank}.json"
        path.write_text(json.dumps([result.candidates, result.selected]))


def check_meanwhile(folder, ended):
    """Both ranks merged the same, and saw the pool grow."""
    assert [each.code for each in ended] == [0] * 4, [e.said for e in ended]
    seen = [
        [
            json.loads((folder / f"{number}-{rank}.json").read_text())
            for number in range(8)
        ]
        for rank in (0, 1)
    ]
    assert seen[0] == seen[1]
    counts = [len(candidates) for candidates, _ in seen[0]]
    assert counts == sorted(counts)
    print(json.dumps({"pool": counts}))


@kind
def merging_meanwhile(folder, material):
    """Two ranks merge a pool that two trainings are writing."""
    shutil.copytree(material, folder / "material")
    pool = folder / "material/pool"
    works = [
        lambda run=run, seed=seed: collect(pool, run, seed)
        for seed, run in ((1, "a"), (2, "b"))
    ]
    return works + ranks(2, lambda rank: merge_often(folder, rank)), (
        check_meanwhile
    )


def round_of(name, folder, material, draw):
    """One round of one kind; what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    works, check = KINDS[name](folder, material)
    delays = [draw.uniform(0, 0.3) for _ in works]

    def delayed(work, delay):
        time.sleep(delay)
        work()

    ended = side_by_side(
        [
            lambda work=work, delay=delay: delayed(work, delay)
            for work, delay in zip(works, delays)
        ],
        folder / "logs",
    )
    check(folder, ended)
    shutil.rmtree(folder)
    return {"kind": name, "codes": [each.code for each in ended]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, rounds, seed, *names = sys.argv[1:]
    where, random_delays = Path(where), random.Random(int(seed))
    own = where / "material"
    fit(make_brain(own, EPOCHS))
    write_yaml(own)
    tiny_whisper(own / "whisper", layers=1)
    for number in range(int(rounds)):
        for one in names or KINDS:
            print(
                json.dumps(
                    round_of(one, where / f"{one}-{number}", own, random_delays)
                ),
                flush=True,
            )
