"""How much faster a search scores its trials with two processes than with one.

    OMP_NUM_THREADS=1 python tests/benchmarks/scoring_speed.py [--repeats 5]

Scores a small Conformer on a made-up selection set, as a merge stage does it:
in one process, and in two with gloo, one thread each, in turn. Printed are the
medians of the seconds, and of the CPU time that the busiest process took. On a
machine with other work the seconds of two processes grow more than those of one,
since they need two cores; the CPU time tells how the work was shared.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ranks.launch import RUN_OPTS, launch  # noqa: E402
from tiny_recipe import TinyCTC, tiny_ctc_brain, tiny_ctc_data  # noqa: E402

from speechbrain_merge import MergeMixin  # noqa: E402


class MergingCTC(MergeMixin, TinyCTC):
    """A recipe's Brain that merges, with features as they are."""

    def compute_forward(self, batch, stage):
        """CTC log-probabilities."""
        feats, lengths = batch.feats
        return self.modules.model(feats, lengths).log_softmax(-1), lengths


def score(folder, rank, utterances, passes):
    """Scores in this rank; writes the seconds and the CPU time of a pass."""
    from tiny_models import tiny_conformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    brain = tiny_ctc_brain(
        folder / f"rank-{rank}",
        tiny_conformer(layers=6),
        MergingCTC,
        run_opts=RUN_OPTS,
    )
    data = tiny_ctc_data(utterances, seed=50)
    weights = {
        f"model.{name}": tensor.clone()
        for name, tensor in brain.hparams.model.state_dict().items()
    }
    measured = []
    for number in range(passes + 1):
        torch.distributed.barrier()
        started, spent = time.perf_counter(), time.process_time()
        tally = brain.score_weights(weights, data, {"batch_size": 4})
        measured.append(
            (time.perf_counter() - started, time.process_time() - spent)
        )
    # the first pass warms up
    told = {"errors": tally.errors, "passes": measured[1:]}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def measure(world, folder, utterances, passes):
    """Seconds and busiest CPU time of each pass, and the errors."""
    ended = launch(
        world, lambda rank: score(folder, rank, utterances, passes), folder
    )
    for each in ended:
        if each.code:
            raise RuntimeError(each.said)
    told = [
        json.loads((folder / f"{rank}.json").read_text())
        for rank in range(world)
    ]
    seconds = [
        max(one) for one in zip(*([p[0] for p in t["passes"]] for t in told))
    ]
    cpu = [
        max(one) for one in zip(*([p[1] for p in t["passes"]] for t in told))
    ]
    return seconds, cpu, {each["errors"] for each in told}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=800)
    asked = parser.parse_args()
    seconds, cpu, errors = {1: [], 2: []}, {1: [], 2: []}, set()
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(asked.repeats):
            for world in (1, 2):
                folder = Path(place) / f"{repeat}-{world}"
                folder.mkdir()
                wall, busy, found = measure(
                    world, folder, asked.utterances, asked.passes
                )
                seconds[world] += wall
                cpu[world] += busy
                errors |= found
    assert len(errors) == 1, errors
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    for name, times in (("seconds", seconds), ("CPU seconds", cpu)):
        one, two = (statistics.median(times[world]) for world in (1, 2))
        print(
            f"{name}: one process {one:.2f}, two {two:.2f}, {one / two:.2f} x "
            f"(medians of {len(times[1])})"
        )
