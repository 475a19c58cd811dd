"""A training with a pool under torchrun: distributed_training.py FOLDER.

Each process writes what it sees at the end to <FOLDER>/rank-<n>.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
from tiny_models import tiny_conformer, tiny_ctc_brain, tiny_ctc_data

import speechbrain as sb
from speechbrain_merge.pool import CheckpointPool

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    run_opts = {
        "device": "cpu",
        "distributed_backend": "gloo",
    }
    sb.utils.distributed.ddp_init_group(run_opts)
    data = tiny_ctc_data(16)
    for epochs in (2, 3):  # the second one resumes
        model = tiny_conformer(seed=int(rank))  # DDP takes those of rank 0
        pool = CheckpointPool(folder / "pool", {"model": model}, keep_last=2)
        brain = tiny_ctc_brain(
            folder,
            model,
            epochs=epochs,
            recoverables={"pool": pool},
            run_opts=run_opts,
        )
        pool.begin(brain)
        brain.fit(brain.hparams.epoch_counter, data, data)
    state = {name: t.tolist() for name, t in model.state_dict().items()}
    seen = {
        "names": [candidate.name for candidate in pool.candidates()],
        "state": state,
        "wrapped": type(brain.modules["model"]).__name__,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()
