"""A pool filled by a real Checkpointer, for the tests of pools.

Authors
 * The speechbrain_merge authors 2026
"""

import json

import torch

from speechbrain.utils.checkpoints import Checkpointer
from speechbrain_merge.pool import CheckpointPool


def train_a_little(model, value=None):
    """Stands for an epoch: other weights, the same ones for the same value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if value is None:
                parameter.add_(torch.randn_like(parameter))
            else:
                parameter.fill_(value)


def saver_of(folder, model, pool, **recoverables):
    """A Checkpointer over a model and its pool."""
    return Checkpointer(
        folder / "save", {"model": model, "pool": pool, **recoverables}
    )


def collect(folder, metas, based=False, **arguments):
    """A pool after one epoch for each meta, and its Checkpointer."""
    model = torch.nn.Linear(2, 2)
    pool = CheckpointPool(folder / "pool", {"model": model}, **arguments)
    if based:
        pool.store_base(resuming=False)
    saver = saver_of(folder, model, pool)
    for epoch, meta in enumerate(metas, start=1):
        train_a_little(model, float(epoch))
        saver.save_and_keep_only(
            meta={"epoch": epoch, **meta}, importance_keys=[]
        )
    return pool, saver, model


def names(pool):
    """Names of its candidates."""
    return [each.name for each in pool.candidates()]


def files(folder):
    """Names of the weights in the folder of a run."""
    return sorted(path.name for path in folder.glob("*.safetensors"))


def resume(folder, model, **arguments):
    """A new process, as it were: new objects, restored from the checkpoints."""
    pool = CheckpointPool(folder / "pool", {"model": model}, **arguments)
    saver = saver_of(folder, model, pool)
    saver.recover_if_possible()
    return pool, saver


def take_checks(path):
    """Removes the checks of a log's lines, as whoever changes one by hand."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("check", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def records(run):
    """Lines of the manifest of a run."""
    lines = (run / "manifest.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for line in found:
        line.pop("check")
    return found
