"""What a Brain with merging does, stage by stage, alone or on several ranks.

    python -m torch.distributed.run ... harness.py torchrun MATERIAL OUTPUT [STAGE ...]

``make_material`` trains in one process what the stages merge. Each stage writes
its files to OUTPUT, and each rank what it saw of the stage to
OUTPUT/<stage>-<rank>.json: what it computed, what it wrote, and how many events
there were. An event is a forward pass or a change of a file; a rank can be told
to kill itself at one of them.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from ranks.launch import RUN_OPTS
from ranks.study import MergingCTC, Network, count_events, run_study, write_yaml
from tiny_recipe import tiny_ctc_brain, tiny_ctc_data

import speechbrain as sb
from speechbrain_merge import CheckpointPool, MergeStage, learn_coefficients
from speechbrain_merge.brain.domains import evaluate_domains
from speechbrain_merge.brain.statistics import collect_statistics
from speechbrain_merge.export import export_pretrained
from speechbrain_merge.methods import create
from speechbrain_merge.pool import read_pool
from speechbrain_merge.search import CMAES, GoldenSection, GreedySearch

EPOCHS = 6


class Events:
    """Counts what a rank does, and kills it at the event that is asked for.

    Arguments
    ---------
    folder : Path
        Changes of files in here are events.
    kill_at : int, optional
        The number of the event before which the process kills itself.
    """

    def __init__(self, folder, kill_at=None):
        self.folder, self.kill_at = str(folder), kill_at
        self.number, self.written, self.on = 0, [], True
        sys.addaudithook(self._audit)

    def count(self):
        """One more event."""
        self.number += 1
        if self.number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event, arguments):
        if not self.on or event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.link",
            "os.mkdir",
            "os.rmdir",
        ):
            return
        if event == "open" and not arguments[2] & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT
        ):
            return
        path = str(arguments[0])
        if path.startswith(self.folder):
            self.written.append((event, path))
            self.count()


def make_brain(folder, epochs, run_opts=None, events=None):
    """A Brain with a pool, both in a folder."""
    model = Network()
    pool = CheckpointPool(folder / "pool", {"model": model})
    brain = tiny_ctc_brain(
        folder,
        model,
        MergingCTC,
        epochs=epochs,
        recoverables={"pool": pool},
        run_opts=run_opts,
        output_folder=str(folder),
    )
    count_events(events)
    # A setting that decides nothing, and is other on each rank
    brain.hparams.place = f"cuda:{os.environ.get('RANK', 0)}"
    return brain


def fit(brain):
    """Trains what is left to train."""
    data = tiny_ctc_data(16)
    brain.fit(brain.hparams.epoch_counter, data, data, None, {}, {})


def make_material(folder):
    """Six checkpoints and candidates of one training in this process."""
    fit(make_brain(folder, EPOCHS))
    write_yaml(folder)


class Work:
    """What the stages need: a trained Brain, its candidates, and data.

    Arguments
    ---------
    material, output : Path
        What `make_material` made; where files go.
    events : Events
        Of this rank.
    run_opts : dict, optional
        SpeechBrain's.
    """

    def __init__(self, material, output, events, run_opts=None):
        self.output, self.events, self.run_opts = output, events, run_opts
        own = output / "material"
        if not own.exists():
            # merges are remembered in the pool: each output has its own
            building = output / "copying"
            shutil.rmtree(building, ignore_errors=True)
            shutil.copytree(material, building)
            building.rename(own)
        self.material = own
        self.dev = tiny_ctc_data(10, seed=50)

    def brain(self):
        """The Brain of the material, which DDP wraps on several ranks."""
        brain = make_brain(self.material, EPOCHS, self.run_opts, self.events)
        fit(brain)  # restores, wraps, and finds nothing left to train
        return brain

    def stage(self, method, name, **settings):
        """A merge stage with the last candidates."""
        return MergeStage(
            method,
            read_pool(self.material / "pool")[-3:],
            name=name,
            folder=self.output / "merge",
            **settings,
        )

    def merged(self, brain, stage, data=None, batch_size=3):
        """Runs a stage twice; what it chose, and what is evaluated then."""
        brain.decoded = 0
        result = brain.merge(stage, data, {"batch_size": batch_size})
        decoded = brain.decoded
        loss = brain.evaluate(
            self.dev if data is None else data,
            min_key="WER",
            test_loader_kwargs={"batch_size": batch_size},
        )
        return {
            "selected": result.selected,
            "coefficients": result.coefficients,
            "value": result.value,
            "evaluated": [loss, brain.stats[-1][3]],
            "decoded": decoded,
            "skipped": result.savings.get("skipped_utterances"),
            "reused": result.reused,
            "weights": {
                name: tensor.tolist()
                for name, tensor in brain.hparams.model.state_dict().items()
            },
        }


def collect(work):
    """A training with a pool, stopped after an epoch and resumed."""
    folder = work.output / "collected"
    for epochs in (1, 3):
        brain = make_brain(folder, epochs, work.run_opts, work.events)
        fit(brain)
    [pool] = brain.pools()
    return {
        "names": [candidate.name for candidate in pool.candidates()],
        "wrapped": type(brain.modules["model"]).__name__,
        "weights": {
            name: tensor.tolist()
            for name, tensor in brain.hparams.model.state_dict().items()
        },
    }


def greedy(work):
    """A search over candidates; batches do not always divide among ranks."""
    brain, seen = work.brain(), {}
    # the last finds the trials of the one before in the journal
    for name, number, size in (
        ("10 by 3", 10, 3),
        ("4 by 4", 4, 4),
        ("9 by 1", 9, 1),
        ("again", 9, 1),
    ):
        seen[name] = work.merged(
            brain,
            MergeStage(
                "average",
                [work.material / "pool"],
                search=GreedySearch("shuffled", seed=1),
                name=name,
                folder=work.output / "merge",
            ),
            tiny_ctc_data(number, seed=50),
            size,
        )
    return seen


def coefficients(work):
    """Searches over one coefficient, and over one for each candidate."""
    brain = work.brain()
    scale = GoldenSection("scale", 0, 2, evaluations=4)
    names = [each.name for each in work.stage("average", "x").candidates]
    shares = CMAES(dict.fromkeys(names, (0, 1)), evaluations=8, seed=1)
    return {
        "scale": work.merged(
            brain,
            work.stage("task_arithmetic", "scale", search=scale),
            work.dev,
        ),
        "shares": work.merged(
            brain, work.stage("average", "shares", search=shares), work.dev
        ),
    }


def statistics(work):
    """Fisher information and Gram matrices, and merges by them."""
    brain, seen = work.brain(), {}
    for method in ("fisher", "regmean"):
        stage = work.stage(method, method)
        collect_statistics(
            brain,
            stage,
            tiny_ctc_data(6, seed=60),
            {"batch_size": 2},
            folder=work.output / "statistics",
        )
        seen[method] = work.merged(brain, stage)
    return seen


def learned(work):
    """Coefficients that are learned by gradient, and a merge by them."""
    brain, seen = work.brain(), {}
    for objective in ("entropy", "loss"):
        stage = work.stage(create("adamerging"), f"learned-{objective}")
        experts = stage.chosen()
        history = learn_coefficients(
            brain,
            stage.method,
            experts,
            experts[0].base,
            {
                "near": tiny_ctc_data(5, seed=70),
                "far": tiny_ctc_data(4, seed=71),
            },
            {"batch_size": 2},
            objective=objective,
            steps=6,
            learning_rate=0.02,
            folder=work.output / "coefficients",
            save_every=2,
        )
        seen[objective] = {"history": history, **work.merged(brain, stage)}
    return seen


def evaluated(work):
    """A merge without a search, tests by domain, and an export."""
    brain = work.brain()
    seen = work.merged(brain, work.stage("average", "average"))
    sets = {"dev": work.dev, "far": tiny_ctc_data(7, seed=80, shift=0.5)}
    folder = work.output / "evaluated"
    seen["rates"] = evaluate_domains(brain, sets, folder, {"batch_size": 2})
    sb.utils.distributed.run_on_main(
        export_pretrained,
        args=[
            work.output / "merge/average/merged.safetensors",
            work.material / "inference.yaml",
            work.output / "exported",
        ],
    )
    return seen


def study(work):
    """A whole study, with everything that its engine makes."""
    return run_study(
        work.output / "study", work.material, work.run_opts, work.events
    )


STAGES = {
    each.__name__: each
    for each in (
        collect,
        greedy,
        coefficients,
        statistics,
        learned,
        evaluated,
        study,
    )
}


def run_stage(name, material, output, rank=0, run_opts=None, kill_at=None):
    """Runs one stage in this process.

    Arguments
    ---------
    name : str
        Of the stage.
    material, output : Path
        As for `Work`.
    rank : int
        Of this process.
    run_opts : dict, optional
        SpeechBrain's, on several ranks.
    kill_at : int, optional
        The event before which this process kills itself.
    """
    if rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        Work(material, output, None)  # copies the material
    sb.utils.distributed.ddp_barrier()
    events = Events(output, kill_at)
    try:
        seen = STAGES[name](Work(material, output, events, run_opts))
    finally:
        events.on = False
    told = {"seen": seen, "events": events.number, "written": events.written}
    (output / f"{name}-{rank}.json").write_text(json.dumps(told))


def as_a_rank(where, out, *names):
    """Stages, one after the other, in a process that torchrun has started."""
    sb.utils.distributed.ddp_init_group(RUN_OPTS)
    for one in names or STAGES:
        run_stage(
            one, Path(where), Path(out), int(os.environ["RANK"]), RUN_OPTS
        )
    torch.distributed.destroy_process_group()
