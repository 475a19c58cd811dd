"""Candidates for merging: collected while training, or read from past runs.

`CheckpointPool` collects, `read_pool` reads, `select` narrows down, and
`read_merges` tells what was merged of a pool.

Example
-------
>>> import torch
>>> from speechbrain.utils.checkpoints import Checkpointer
>>> folder, model = getfixture("tmp_path"), torch.nn.Linear(2, 2)
>>> pool = CheckpointPool(folder / "pool", {"model": model}, run="seed-1")
>>> saver = Checkpointer(folder / "save", {"model": model, "pool": pool})
>>> _ = saver.save_and_keep_only(meta={"WER": 9.5, "epoch": 1})
>>> [candidate.name for candidate in select(read_pool(folder / "pool"), best=1)]
['seed-1/epoch-0001']

Authors
 * The speechbrain_merge authors 2026
"""

from speechbrain_merge.pool.candidate import Candidate, rank, select
from speechbrain_merge.pool.collection import CheckpointPool
from speechbrain_merge.pool.merges import MergeRecord, read_merges
from speechbrain_merge.pool.reading import read_pool
from speechbrain_merge.pool.verification import verify_pool
