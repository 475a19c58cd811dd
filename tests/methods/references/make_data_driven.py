"""Answers of FusionBench's Fisher merging and RegMean on small inputs.

Needs fusion-bench 0.2.33 in an environment of its own:

    python tests/methods/references/make_data_driven.py

writes ``data_driven.pt`` beside this file: inputs and answers.
"""

from pathlib import Path

import torch
from fusion_bench.method.fisher_merging.fisher_merging import (
    merging_with_fisher_weights,
)
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

SHAPES = {
    "fc.weight": (6, 5),
    "fc.bias": (6,),
    "conv.weight": (3, 2, 4),
    "embedding.weight": (7, 5),
}


def make(dtype):
    """Inputs and answers in one floating-point type."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    experts = [
        {name: normal(*shape).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(3)
    ]
    fishers = [
        {name: (normal(*s) ** 2 * 1e-3).to(dtype) for name, s in SHAPES.items()}
        for _ in range(3)
    ]
    inputs = [normal(20, 5) * (1 + index) for index in range(3)]
    grams = [{"fc": (x.T @ x / 20).to(dtype)} for x in inputs]
    listed = {name: [e[name] for e in experts] for name in SHAPES}
    fisher = {
        (normalize, weights): merging_with_fisher_weights(
            listed,
            fishers,
            torch.tensor(weights, dtype=dtype),
            normalize_fisher_weight=normalize,
        )
        for normalize in (False, True)
        for weights in ((1.0, 1.0, 1.0), (1.0, 2.0, 0.5))
    }
    regmean = {
        ratio: merging_with_regmean_weights(
            listed, grams, reduce_non_diagonal_ratio=ratio
        )
        for ratio in (1.0, 0.9, 0.5)
    }
    return {
        "experts": experts,
        "fishers": fishers,
        "grams": grams,
        "fisher": fisher,
        "regmean": regmean,
    }


def plain(value):
    """Tensors with storage of their own."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.contiguous().clone()


if __name__ == "__main__":
    # FusionBench's diagonal of ones has the default type
    answers = {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        answers[str(dtype)] = plain(make(dtype))
    torch.save(answers, Path(__file__).with_name("data_driven.pt"))
