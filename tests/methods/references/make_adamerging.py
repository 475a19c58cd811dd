"""Answers of another implementation to AdaMerging on a small network.

Needs fusion-bench 0.2.33 in an environment of its own:

    python tests/methods/references/make_adamerging.py

writes ``adamerging.safetensors`` beside this file: the weights of a base and
three experts (``base/<tensor>``, ``expert0/<tensor>`` …), the inputs, and the
coefficients after each of 20 steps of Adam, ``task_wise`` [step, expert] and
``layer_wise`` [step, expert, tensor], tensors in the order of the network.
The loop is that of fusion-bench's ``test_time_adaptation``, which needs a GPU
library for no more than its ``backward``.
"""

from copy import deepcopy
from pathlib import Path

import torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel
from fusion_bench.models.wrappers.task_wise_fusion import TaskWiseMergedModel
from safetensors.torch import save_file

EXPERTS = 3
STEPS = 20
LEARNING_RATE = 0.01


def network(seed):
    """A network of two layers in float64."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)
    ).double()


def learned(wrapper, start, base, experts, inputs):
    """Coefficients after each step."""
    module = wrapper(
        start.clone(), deepcopy(base), [deepcopy(each) for each in experts]
    )
    optimizer = torch.optim.Adam([module.merge_weight], lr=LEARNING_RATE)
    module.train()
    module.merge_weights()
    found = []
    for _ in range(STEPS):
        entropy_loss(module(inputs)).backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        module.merge_weights()
        found.append(module.merge_weight.detach().clone().clamp(0, 1))
    return torch.stack(found)


if __name__ == "__main__":
    base, experts = network(0), [network(seed + 1) for seed in range(EXPERTS)]
    draw = torch.Generator().manual_seed(9)
    inputs = torch.randn(20, 5, generator=draw, dtype=torch.float64)
    task_wise = torch.full((EXPERTS,), 0.3, dtype=torch.float64)
    layer_wise = torch.full((EXPERTS, 4), 0.3, dtype=torch.float64)
    stored = {
        "inputs": inputs,
        "task_wise": learned(
            TaskWiseMergedModel, task_wise, base, experts, inputs
        ),
        "layer_wise": learned(
            LayerWiseMergedModel, layer_wise, base, experts, inputs
        ),
    }
    named = {"base": base} | {
        f"expert{index}": each for index, each in enumerate(experts)
    }
    for what, module in named.items():
        for name, tensor in module.state_dict().items():
            stored[f"{what}/{name}"] = tensor
    save_file(stored, Path(__file__).with_name("adamerging.safetensors"))
