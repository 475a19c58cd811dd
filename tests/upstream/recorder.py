"""Runs a recipe and writes down with which weights it evaluates.

    python recorder.py RECORD.pt train.py hparams.yaml …

in the recipe's folder. The recipe knows nothing of it: what is noted is the
state of the Checkpointer's modules whenever ``compute_forward`` is called
within ``evaluate``, by whatever way the recipe gets there.

Authors
 * The speechbrain_merge authors 2026
"""

import os
import runpy
import sys

import torch

from speechbrain.core import Brain

records = []


def states(brain):
    """All tensors of the Checkpointer's modules, by the name of each."""
    return {
        f"{name}.{key}": tensor.detach().cpu().clone()
        for name, module in brain.checkpointer.recoverables.items()
        if isinstance(module, torch.nn.Module)
        for key, tensor in module.state_dict().items()
    }


def in_use(brain):
    """Whether these modules are the ones that the Brain computes with."""
    used = {id(each) for each in brain.modules.parameters()}
    return all(
        id(parameter) in used
        for module in brain.checkpointer.recoverables.values()
        if isinstance(module, torch.nn.Module)
        for parameter in module.parameters()
    )


def watch(brain):
    """Notes each batch that is computed within `evaluate`."""
    own = brain.compute_forward

    def compute_forward(*arguments, **keywords):
        if brain.recorded is not None:
            now, record = states(brain), brain.recorded
            first = record.setdefault("state", now)
            record["batches"] = record.get("batches", 0) + 1
            record["in_use"] = in_use(brain)
            record["steady"] = record.get("steady", True) and all(
                torch.equal(first[name], now[name]) for name in first
            )
        return own(*arguments, **keywords)

    brain.recorded = None
    brain.compute_forward = compute_forward


def main(path):
    """Runs the recipe named by `sys.argv`."""
    begin, evaluate = Brain.__init__, Brain.evaluate

    def begin_and_watch(brain, *arguments, **keywords):
        begin(brain, *arguments, **keywords)
        watch(brain)

    def evaluate_and_record(brain, *arguments, **keywords):
        brain.recorded = {}
        records.append(brain.recorded)
        try:
            return evaluate(brain, *arguments, **keywords)
        finally:
            brain.recorded = None
            torch.save(records, path)

    Brain.__init__, Brain.evaluate = begin_and_watch, evaluate_and_record
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    record, sys.argv = sys.argv[1], sys.argv[2:]
    main(record)
