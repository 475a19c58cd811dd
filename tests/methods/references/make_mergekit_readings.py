"""Answers of mergekit where its reading of a paper differs from our default.

Needs mergekit 0.1.5 in an environment of its own (made with torch 2.13.0 and
``pip install --no-deps mergekit==0.1.5``):

    python tests/methods/references/make_mergekit_readings.py

writes ``mergekit_readings.safetensors`` beside this file. Keys are
``<float type>/<size of the task vectors>/<what>/<tensor>``; ``what`` is
``base``, ``expert0`` … or the name of an answer.
"""

from pathlib import Path

import torch
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import save_file

SHAPES = {
    "conv.weight": (3, 2, 4),
    "conv2d.weight": (3, 2, 2, 2),
    "fc.bias": (6,),
    "fc.weight": (6, 5),
}
SIZES = (1.0, 1e-3, 1e-5)
EXPERTS = 4
WEIGHTS = [0.5, 1.0, -0.25, 2.0]


def answers_in(dtype, size):
    """Inputs and answers in one floating-point type."""
    generator = torch.Generator().manual_seed(11)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {name: normal(shape).to(dtype) for name, shape in SHAPES.items()}
    shared = {name: normal(shape) for name, shape in SHAPES.items()}
    experts = [
        {
            name: (
                base[name].double()
                + size * (1 + index) * (shared[name] + normal(shape))
            ).to(dtype)
            for name, shape in SHAPES.items()
        }
        for index in range(EXPERTS)
    ]
    given = {str(index): one for index, one in enumerate(experts)}

    def run(method, **parameters):
        return merge_state_dicts(
            {"base": base, **given}, method, parameters=parameters, base="base"
        )

    found = {"base": base}
    found.update(
        {f"expert{index}": expert for index, expert in enumerate(experts)}
    )
    found["sce"] = run("sce")
    found["sce_half"] = run("sce", select_topk=0.5)
    found["model_stock"] = run("model_stock")
    found["model_stock_filter_wise"] = run("model_stock", filter_wise=True)
    found["ties_weighted"] = run(
        "ties", weight=WEIGHTS, density=0.3, **{"lambda": 0.8}
    )
    found["ties_weighted_sum"] = run(
        "ties", weight=WEIGHTS, density=0.3, normalize=False
    )
    return found


if __name__ == "__main__":
    stored = {}
    for dtype in (torch.float32, torch.float64):
        for size in SIZES:
            for what, tensors in answers_in(dtype, size).items():
                for name, tensor in tensors.items():
                    kind = str(dtype).removeprefix("torch.")
                    key = f"{kind}/{size:g}/{what}/{name}"
                    stored[key] = tensor.detach().clone().contiguous()
    save_file(stored, Path(__file__).with_name("mergekit_readings.safetensors"))
