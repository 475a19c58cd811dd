"""Answers of other implementations to small task-vector merges.

Needs mergekit 0.1.5, fusion-bench 0.2.33 and peft 0.21.2 in an environment of
their own:

    python tests/methods/references/make_task_vectors.py

writes ``task_vectors.safetensors`` beside this file. Keys are
``<float type>/<what>/<tensor>``; ``what`` is ``base``, ``expert0`` … or the
name of an answer.
"""

from pathlib import Path

import torch
from fusion_bench.method.tall_mask.utils import generate_task_masks
from fusion_bench.method.ties_merging.ties_merging_utils import (
    state_dict_to_vector,
    ties_merging,
    vector_to_state_dict,
)
from mergekit.merge_methods import merge_state_dicts
from peft.utils import merge_utils as peft
from safetensors.torch import save_file

SHAPES = {
    "conv.weight": (3, 2, 4),
    "embedding.weight": (7, 5),
    "fc.bias": (6,),
    "fc.weight": (6, 5),
    "single": (1,),
}
EXPERTS = 4
WEIGHTS = [0.5, 1.0, -0.25, 2.0]


def flat(state_dict):
    """One vector, in the order of the sorted names."""
    return state_dict_to_vector(state_dict)


def answers_in(dtype):
    """Inputs and answers in one floating-point type."""
    generator = torch.Generator().manual_seed(7)

    def normal(shape):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype)

    base = {name: normal(shape) for name, shape in SHAPES.items()}
    experts = [
        {name: base[name] + normal(shape) for name, shape in SHAPES.items()}
        for _ in range(EXPERTS)
    ]
    # a part that one expert did not train at all
    experts[1]["fc.bias"] = base["fc.bias"].clone()
    answers = {"base": base}
    answers.update(
        {f"expert{index}": expert for index, expert in enumerate(experts)}
    )

    def mergekit(method, **parameters):
        given = {str(index): one for index, one in enumerate(experts)}
        return merge_state_dicts(
            {"base": base, **given}, method, parameters=parameters, base="base"
        )

    answers["mergekit_task_arithmetic"] = mergekit(
        "task_arithmetic", weight=WEIGHTS
    )
    answers["mergekit_ties"] = mergekit(
        "ties", weight=1.0, density=0.3, **{"lambda": 0.8}
    )
    answers["mergekit_breadcrumbs"] = mergekit(
        "breadcrumbs", weight=0.4, density=0.5, gamma=0.1, rescale=False
    )
    answers["mergekit_sce"] = mergekit("sce")
    answers["mergekit_sce_half"] = mergekit("sce", select_topk=0.5)

    weights = torch.tensor(WEIGHTS, dtype=dtype)
    vectors = {
        name: [expert[name] - base[name] for expert in experts]
        for name in SHAPES
        if name != "single"  # keeps int(density * 1) = 0 entries there
    }
    answers["peft_ties"] = {
        name: base[name] + peft.ties(vector, weights, density=0.3)
        for name, vector in vectors.items()
    }
    answers["peft_task_arithmetic"] = {
        name: base[name] + peft.task_arithmetic(vector, weights)
        for name, vector in vectors.items()
    }

    anchor = flat(base)
    checks = torch.stack([flat(expert) - anchor for expert in experts])
    for aggregate in ("mean", "sum", "max"):
        merged = ties_merging(checks, 0.2, f"dis-{aggregate}")
        answers[f"fusion_bench_ties_{aggregate}"] = vector_to_state_dict(
            anchor + 0.6 * merged, base
        )
    finetuned = torch.stack([flat(expert) for expert in experts])
    masks = generate_task_masks(checks, finetuned, anchor, tall_mask_lambda=0.4)
    agreed = (masks.sum(dim=0) >= 2).to(dtype)
    answers["fusion_bench_consensus"] = vector_to_state_dict(
        anchor + 0.3 * agreed * checks.sum(dim=0), base
    )
    return answers


if __name__ == "__main__":
    stored = {}
    for dtype in (torch.float32, torch.float64):
        for what, tensors in answers_in(dtype).items():
            for name, tensor in tensors.items():
                key = f"{str(dtype).removeprefix('torch.')}/{what}/{name}"
                stored[key] = tensor.detach().clone().contiguous()
    save_file(stored, Path(__file__).with_name("task_vectors.safetensors"))
