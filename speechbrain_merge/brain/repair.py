r"""REPAIR with a Brain: passes over audio, and the layers of a merge.

``repair`` gives every linear layer and convolution with a bias, other than the
output layer, the mean and deviation that its units have in the parents
(``speechbrain_merge.methods.transport.repair`` has the formula). The parents
must be aligned already; a parent that was moved by permutations is as good as
the parent.

Layers are put right in the order in which they run, each with those before it
put right already: one pass over the audio for each layer of the merge, and one
for each parent. Frames of padding say nothing, so utterances go through one at
a time; no transcript is used. Layers whose weights other code multiplies with
(queries, keys and values of fused attention), those without a bias, and norms
stay as they are.

Authors
 * The speechbrain_merge authors 2026
"""

from contextlib import ExitStack, contextmanager

import torch
from tqdm import tqdm

import speechbrain as sb
from speechbrain_merge.brain.batches import FixedBatches
from speechbrain_merge.brain.decisive import while_running
from speechbrain_merge.brain.without_training import (
    same_draws,
    without_training,
)
from speechbrain_merge.methods.transport.repair import (
    Moments,
    RunningMoments,
    repaired,
)
from speechbrain_merge.pool.on_record import open_on_record
from speechbrain_merge.weights import part

LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
UTTERANCES = 64


@while_running
def repair(
    brain,
    merged,
    parents,
    data,
    loader_kwargs=None,
    weights=None,
    limit=UTTERANCES,
):
    """A merge whose units vary as much as those of its parents.

    Arguments
    ---------
    brain : speechbrain.Brain
        With ``MergeMixin``. Afterwards it has its own weights again.
    merged : object
        The merge: anything that ``open_weights`` opens, with names
        ``<module>.<parameter>``.
    parents : list
        The models that were merged, aligned.
    data : Dataset, DataLoader or dict
        Audio; transcripts are not used.
    loader_kwargs : dict, optional
        As for ``fit``.
    weights : list of float, optional
        The share of each parent in the merge. Default: equal.
    limit : int, optional
        Only so many utterances, spread evenly over the data.

    Returns
    -------
    dict
        The repaired state.

    Raises
    ------
    ValueError
        Where there is no layer to repair, or weights do not fit the parents.
    """
    weights = [1.0] * len(parents) if weights is None else list(weights)
    if len(weights) != len(parents) or not sum(weights) > 0:
        raise ValueError(
            f"`weights` are {weights}, and there are {len(parents)} parents: "
            "give one for each, with a sum above 0."
        )
    utterances = FixedBatches(brain, data, loader_kwargs)
    utterances.one_by_one()
    number = len(utterances)
    count = number if limit is None else min(limit, number)
    chosen = [place * number // count for place in range(count)]
    with open_on_record(merged) as opened:
        state = {name: opened[name].clone() for name in opened}
        layers = _layers(brain, opened)
    if not layers:
        raise ValueError(
            "There is nothing to repair: no torch.nn.Linear or convolution "
            "with a bias is among the merged weights."
        )
    seen = [
        _moments(brain, parent, layers, utterances, chosen)
        for parent in parents
    ]
    # in the order in which they were called
    for name in tqdm(seen[0], desc="repair", disable=brain.noprogressbar):
        one = {name: layers[name]}
        found = _moments(brain, state, one, utterances, chosen)
        wanted = Moments.interpolated([each[name] for each in seen], weights)
        keys = f"{name}.weight", f"{name}.bias"
        fixed = repaired(*(state[key] for key in keys), found[name], wanted)
        state.update(zip(keys, fixed))
    return state


def _layers(brain, weights):
    """Name to layer, of those that a merge has and that can be put right."""
    found, known = {}, set()
    for prefix in dict.fromkeys(name.partition(".")[0] for name in weights):
        module = brain.module_named(prefix, weights.label)
        for path, layer in module.named_modules():
            name = f"{prefix}.{path}" if path else prefix
            if (
                isinstance(layer, LAYERS)
                and layer.bias is not None
                and id(layer) not in known
                and {f"{name}.weight", f"{name}.bias"} <= set(weights)
                and part(f"{name}.weight").role != "output"
            ):
                known.add(id(layer))
                found[name] = layer
    return found


def _moments(brain, weights, layers, utterances, chosen):
    """Moments of the outputs of layers, in the order of their calls."""
    running = {}
    with ExitStack() as stack:
        stack.enter_context(brain.borrowed_weights(weights))
        stack.enter_context(without_training(brain, sb.Stage.VALID))
        stack.enter_context(same_draws())
        stack.enter_context(_watched(layers, running))
        for batch in utterances.load(chosen):
            with torch.no_grad():
                brain.compute_forward(batch, sb.Stage.VALID)
    return {name: each.moments() for name, each in running.items()}


@contextmanager
def _watched(layers, running):
    """Adds what layers give out to running moments, while it lasts."""

    def look(name):
        def hook(layer, inputs, output):
            units = len(layer.weight)
            if not isinstance(layer, torch.nn.Linear):
                # of one utterance: [1, units, …]
                output = output.movedim(1, -1)
            each = running.setdefault(name, RunningMoments())
            each.add(output.reshape(-1, units).cpu())

        return hook

    handles = [
        layer.register_forward_hook(look(name))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
