"""Answers of the authors' code of MonoSoup, SVC and OPCM, and of mergekit.

Needs an environment of its own with torch and mergekit 0.1.5, and a folder with
four files of the authors:

- ``MonoSoup.py`` of github.com/alirezaabdollahpour/MonoSoup
- ``merge_func.py`` of github.com/lyymuwu/SVC
- ``opcm.py`` and ``utils.py`` of fusion_bench/method/opcm of
  github.com/tanganke/fusion_bench

    python tests/methods/references/make_later.py FOLDER

writes ``later.safetensors`` beside this file. Keys are
``<float type>/<what>/<tensor>``; ``what`` is ``base``, ``expert0`` … or the
name of an answer. The functions are cut out of the files, which import data sets
and CLIP at their beginning.
"""

import ast
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

SHAPES = {
    "tall.weight": (12, 8),
    "wide.weight": (6, 15),
    "square.weight": (9, 9),
}
EXPERTS = 3


def functions_of(file, *names, **known):
    """Some functions and methods of a file, without the rest of it."""
    tree = ast.parse(file.read_text())
    tree.body = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    space = {**vars(typing), "torch": torch, "Tensor": torch.Tensor, **known}
    exec(compile(tree, str(file), "exec"), space)
    return [space[name] for name in names]


def monosoup(folder, base, expert, version):
    """MonoSoup as its authors wrote it."""
    update, *_ = functions_of(
        folder / "MonoSoup.py",
        "_monosoup_update_for_layer",
        "_choose_k_and_pk",
        "_reshape_to_matrix",
        "_reshape_from_matrix",
    )
    return {
        name: update(name, base[name], expert[name], 0.8, version)
        for name in SHAPES
    }


def calibrated(folder, base, experts, alpha):
    """Task arithmetic with a scale of 0.4, calibrated."""
    (coefficients,) = functions_of(
        folder / "merge_func.py", "coef_cal_multi_ranks"
    )
    made = {}
    for name in SHAPES:
        vectors = torch.stack([expert[name] - base[name] for expert in experts])
        merged = 0.4 * vectors.sum(0)
        left, values, right = torch.linalg.svd(merged, full_matrices=False)
        _, divisors = coefficients(
            vectors, merged, left, values, right.T, len(values), alpha=alpha
        )
        made[name] = base[name] + (left * (values / divisors)) @ right
    return made


def opcm(folder, base, experts, alpha):
    """The steps of OPCMForCLIP.run, on plain tensors."""
    svd, _ = functions_of(folder / "utils.py", "svd", "_svd")
    merge_linear, merge_other = functions_of(
        folder / "opcm.py",
        "merge_linear_weights",
        "merge_other_parameters",
        svd=svd,
    )
    state = SimpleNamespace(previous_lambda_t=1, lambda_t=None)

    def length(model):
        return torch.sqrt(
            sum((model[name] - base[name]).square().sum() for name in base)
        )

    merged, lengths = dict(experts[0]), [length(experts[0])]
    for expert in experts[1:]:
        lengths.append(length(expert))
        mean, state.lambda_t = sum(lengths) / len(lengths), 1
        for name in base:
            if name.endswith("weight"):
                merged[name] = merge_linear(
                    state, merged[name], base[name], expert[name], name, alpha
                )
            else:
                merged[name] = merge_other(
                    state, merged[name], base[name], expert[name], name
                )
        total = length(merged)
        merged = {
            name: base[name] + (merged[name] - base[name]) * (mean / total)
            for name in base
        }
        state.previous_lambda_t = total / mean
    return merged


def nuslerp(base, experts):
    """mergekit's readings of it."""
    from mergekit.merge_methods.nuslerp import nuslerp as of_mergekit

    first, second = experts[:2]
    ways = {
        "tensor": {"flatten": True},
        "output": {"dim": -1},
        "input": {"dim": 0},
    }
    made = {
        f"nuslerp_{by}": {
            name: of_mergekit(0.3, first[name], second[name], **how)
            for name in SHAPES
        }
        for by, how in ways.items()
    }
    made["nuslerp_base"] = {
        name: base[name]
        + of_mergekit(
            0.75,
            first[name] - base[name],
            second[name] - base[name],
            flatten=True,
        )
        for name in SHAPES
    }
    return made


def answers_in(dtype, folder):
    """Inputs and answers in one floating-point type."""
    generator = torch.Generator().manual_seed(23)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {**SHAPES, "tall.bias": (12,)}
    base = {name: normal(shape).to(dtype) for name, shape in shapes.items()}
    shared = {name: normal(shape) for name, shape in shapes.items()}
    experts = [
        {
            name: (base[name] + shared[name] + normal(shape)).to(dtype)
            for name, shape in shapes.items()
        }
        for _ in range(EXPERTS)
    ]
    found = {"base": base}
    found.update(
        {f"expert{number}": expert for number, expert in enumerate(experts)}
    )
    found["monosoup_energy"] = monosoup(folder, base, experts[0], "variance")
    if dtype == torch.float32:  # coefficients are in float32 there
        found["calibrated"] = calibrated(folder, base, experts, 1.0)
        found["calibrated_half"] = calibrated(folder, base, experts, 0.5)
    found["opcm"] = opcm(folder, base, experts, 0.5)
    found["opcm_most"] = opcm(folder, base, experts, 0.9)
    found.update(nuslerp(base, experts))
    return found


if __name__ == "__main__":
    stored = {}
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        for what, tensors in answers_in(dtype, Path(sys.argv[1])).items():
            for name, tensor in tensors.items():
                stored[f"{kind}/{what}/{name}"] = tensor.clone().contiguous()
    save_file(stored, Path(__file__).with_name("later.safetensors"))
