"""Answers of FusionBench's spectral methods on small inputs.

Needs fusion-bench 0.2.33 in an environment of its own:

    python tests/methods/references/make_spectral.py

writes ``spectral.pt`` beside this file: task vectors and answers.
"""

from pathlib import Path

import torch
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction,
    compute_and_sum_svd_mem_reduction_2,
    compute_and_sum_svd_mem_reduction_lossless,
)
from fusion_bench.method.wudi.wudi import wudi_merging

EMBEDDING = "decoder.embed_tokens.weight"
SHAPES = {
    "tall.weight": (12, 8),
    "wide.weight": (6, 15),
    "square.weight": (9, 9),
    "fc.bias": (7,),
    "conv.weight": (3, 2, 4),
    "conv2d.weight": (3, 2, 2, 2),
    EMBEDDING: (11, 6),
    "scalar": (),
}


def answers_in(dtype, size, seed):
    """Task vectors of about a size, and answers, in one type."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shared = {name: normal(shape) for name, shape in SHAPES.items()}
    vectors = [
        {
            name: (size * (shared[name] + normal(shape))).to(dtype)
            for name, shape in SHAPES.items()
        }
        for _ in range(3)
    ]

    def run(function, *arguments, **more):
        copies = [
            {name: tensor.clone() for name, tensor in vector.items()}
            for vector in vectors
        ]
        made = function(copies, *arguments, accelerator="cpu", **more)
        return {name: made[name].detach().clone() for name in SHAPES}

    answers = {
        "vectors": vectors,
        "tsv_m": run(compute_and_sum_svd_mem_reduction),
        "tsv_m_excluded": run(
            compute_and_sum_svd_mem_reduction, exclude_keys=[EMBEDDING]
        ),
        "tsv_m_eigh": run(compute_and_sum_svd_mem_reduction_2),
        "iso_c": run(iso_c),
        "iso_c_excluded": run(iso_c, exclude_keys=[EMBEDDING]),
        "iso_cts": run(iso_cts, 0.8),
        "iso_cts_half": run(iso_cts, 0.5),
        "wudi": run(wudi_merging, iter_num=60),
    }
    if dtype == torch.float32:
        # this one makes float32 of whatever it is given
        answers["tsv_m_lossless"] = run(
            compute_and_sum_svd_mem_reduction_lossless
        )
    return answers


if __name__ == "__main__":
    answers = {
        dtype: answers_in(dtype, 1e-2, seed=7)
        for dtype in (torch.float32, torch.float64)
    }
    # as small as real task vectors are, beside Adam's step
    small = answers_in(torch.float32, 1e-4, seed=8)
    answers["small"] = {key: small[key] for key in ("vectors", "wudi")}
    torch.save(answers, Path(__file__).with_name("spectral.pt"))
