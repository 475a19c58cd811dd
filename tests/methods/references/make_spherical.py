"""Answers of mergekit's spherical and geometric methods on small inputs.

Needs mergekit 0.1.5 in an environment of its own:

    python tests/methods/references/make_spherical.py

writes ``spherical.pt`` beside this file: inputs and answers.
"""

from pathlib import Path

import torch
from fusion_bench.method.model_stock.model_stock import (
    compute_angle,
    compute_ratio,
)
from mergekit.merge_methods import merge_state_dicts
from mergekit.merge_methods.karcher import karcher_merge_tensors

SHAPES = {
    "fc.weight": (6, 5),
    "fc.bias": (6,),
    "conv.weight": (3, 2, 4),
    "conv2d.weight": (3, 2, 2, 2),
    "embedding.weight": (7, 5),
    "single": (1,),
}


def answers_in(dtype):
    """Inputs and answers in one floating-point type."""
    generator = torch.Generator().manual_seed(5)

    def normal(shape, scale):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (scale * drawn).to(dtype)

    base = {name: normal(shape, 1.0) for name, shape in SHAPES.items()}
    # one direction that all share, so that angles are acute, and one tensor
    # where they are obtuse
    shared = {name: normal(shape, 1.0) for name, shape in SHAPES.items()}
    experts = [
        {
            name: base[name]
            + (0.0 if name == "fc.bias" else 1.0) * shared[name]
            + normal(shape, 1.0)
            for name, shape in SHAPES.items()
        }
        for _ in range(4)
    ]
    given = {str(index): expert for index, expert in enumerate(experts)}
    with_base = {"base": base, **given}
    weights = [0.5, 1.0, 2.0, 0.25]
    shares = [weight / sum(weights) for weight in weights]

    def run(method, inputs, base=None, **parameters):
        return merge_state_dicts(
            inputs, method, parameters=parameters, base=base
        )

    return {
        "base": base,
        "experts": experts,
        "weights": weights,
        "karcher": run("karcher", given, max_iter=10, tol=1e-5),
        "karcher_long": run("karcher", given, max_iter=200, tol=1e-7),
        "karcher_weighted": {
            name: karcher_merge_tensors(
                [expert[name] for expert in experts],
                shares,
                max_iter=200,
                tol=1e-7,
            )
            for name in SHAPES
        },
        "multislerp": run("multislerp", given, weight=1.0, eps=1e-15),
        "multislerp_weighted": run(
            "multislerp", given, weight=weights, eps=1e-15
        ),
        "multislerp_base": run(
            "multislerp", with_base, base="base", weight=weights, eps=1e-15
        ),
        "model_stock": run("model_stock", with_base, base="base"),
        "model_stock_filter_wise": run(
            "model_stock", with_base, base="base", filter_wise=True
        ),
        "angles": angles(experts, base),
    }


def angles(experts, base):
    """FusionBench's t of each tensor: the cosine of the mean angle."""
    pairs = []
    for one in range(len(experts)):
        for other in range(one):
            pairs.append(compute_angle(experts[one], experts[other], base))
    return compute_ratio_of_mean(pairs, len(experts))


def compute_ratio_of_mean(pairs, number):
    """t of each tensor from angles in degrees, as FusionBench takes them."""
    mean = {
        name: sum(angle[name] for angle in pairs) / len(pairs)
        for name in pairs[0]
    }
    ratios = compute_ratio(mean, number)
    return {name: float(ratio) for name, ratio in ratios.items()}


if __name__ == "__main__":
    answers = {
        dtype: answers_in(dtype) for dtype in (torch.float32, torch.float64)
    }
    torch.save(answers, Path(__file__).with_name("spherical.pt"))
