"""One of several trainings into one pool at the same time.

Usage: simultaneous_training.py POOL RUN SEED TRAININGS. All of them start from
the same base, and wait for each other before they go on.
"""

import sys
import time
from pathlib import Path

import torch

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.pool import CheckpointPool

if __name__ == "__main__":
    pool_folder, run, seed, trainings = sys.argv[1:]
    model = torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    pool = CheckpointPool(pool_folder, {"model": model}, run, keep_last=10)
    pool.store_base(resuming=False)
    meeting = Path(pool_folder).parent / "meeting"
    saver = Checkpointer(meeting / seed, {"model": model, "pool": pool})
    while len(list(meeting.iterdir())) < int(trainings):
        time.sleep(0.001)
    for epoch in range(1, 21):
        torch.nn.init.constant_(model.weight, 100 * int(seed) + epoch)
        saver.save_and_keep_only(meta={"WER": 1.0 / epoch, "epoch": epoch})
