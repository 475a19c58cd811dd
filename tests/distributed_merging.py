"""Trains, then merges: distributed_merging.py POOL OUTPUT.

Under torchrun or alone. What the training collects stays in OUTPUT; merged
are the candidates of POOL. Each process writes what it saw to
OUTPUT/rank-<n>.json.
"""

import json
import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
from tiny_models import FEATURES, WORDS, TinyCTC, tiny_ctc_brain, tiny_ctc_data

from speechbrain_merge import CheckpointPool, MergeMixin, MergeStage
from speechbrain_merge.search import GreedySearch


class Network(torch.nn.Module):
    """Learns the made-up data quickly, and goes with DDP on the CPU."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.hidden = torch.nn.Linear(FEATURES, 16)
            self.ctc_lin = torch.nn.Linear(16, len(WORDS) + 1)

    def forward(self, features, lengths):
        """CTC logits, shape [batch, frames, labels]."""
        del lengths  # every frame for itself
        return self.ctc_lin(torch.relu(self.hidden(features)))


class MergingCTC(MergeMixin, TinyCTC):
    """Counts the utterances that it decodes."""

    decoded = 0

    def evaluate_batch(self, batch, stage):
        """Counts, then evaluates."""
        self.decoded += len(batch.id)
        return super().evaluate_batch(batch, stage)


def train_and_merge(pool, output, epochs=2, run_opts=None):
    """What this process sees of it all, as plain data."""
    model = Network()
    own = CheckpointPool(output / "pool", {"model": model})
    brain = tiny_ctc_brain(
        output,
        model,
        MergingCTC,
        epochs=epochs,
        recoverables={"pool": own},
        run_opts=run_opts,
        output_folder=str(output),
    )
    data = tiny_ctc_data(16)
    brain.fit(brain.hparams.epoch_counter, data, data)
    collected = len(own.candidates())
    results = {}
    # 10 utterances in 4 batches, in one batch, and 9 one by one: with two
    # processes they do not always divide
    for name, utterances, size in (("4", 10, 3), ("1", 4, 4), ("9", 9, 1)):
        stage = MergeStage(
            "average",
            pool or [own],
            search=GreedySearch("shuffled", seed=1),
            name=f"greedy-{name}",
        )
        data = tiny_ctc_data(utterances, seed=50)
        brain.decoded = 0
        result = brain.merge(stage, data, {"batch_size": size})
        decoded = brain.decoded
        again = brain.merge(stage, data, {"batch_size": size})
        assert again.reused and not result.reused
        loss = brain.evaluate(
            data, min_key="WER", test_loader_kwargs={"batch_size": size}
        )
        results[name] = {
            "selected": result.selected,
            "value": result.value,
            "values": [trial["value"] for trial in result.trials],
            "evaluated": brain.stats[-1][3],
            "loss": loss,
            "decoded": decoded,
            "skipped": result.savings["skipped_utterances"],
            "state": {n: t.tolist() for n, t in model.state_dict().items()},
        }
    return {
        "results": results,
        "collected": collected,
        "wrapped": type(brain.modules["model"]).__name__,
    }


if __name__ == "__main__":
    pool, output = Path(sys.argv[1]), Path(sys.argv[2])
    run_opts = {"device": "cpu", "distributed_backend": "gloo"}
    run_opts["noprogressbar"] = True
    sb.utils.distributed.ddp_init_group(run_opts)
    seen = train_and_merge(pool, output, run_opts=run_opts)
    rank = os.environ.get("RANK", "0")
    (output / f"rank-{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
