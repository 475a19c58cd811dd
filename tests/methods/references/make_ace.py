"""Answers of the authors' code of ACE-Merging.

Needs a folder with ``strategy.py`` of src/merge of
github.com/unravel-xu/ACE-Merging (at 22d9dfe), and ``later.safetensors`` beside
this file, whose base and experts are merged:

    python tests/methods/references/make_ace.py FOLDER

writes ``ace.safetensors``. Keys are ``<float type>/<answer>/<tensor>``. ``ace``
are the experts as they are; for ``ace_uneven`` their task vectors are scaled by
0.01, 1 and 0.1, which the authors' code takes for heterogeneous.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from make_later import functions_of
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent
UNEVEN = (0.01, 1.0, 0.1)


def answer(merging, base, experts, factors):
    """The merged weights."""
    vectors = [
        {name: factor * (expert[name] - base[name]) for name in base}
        for factor, expert in zip(factors, experts)
    ]
    state = SimpleNamespace(
        merge_layers=list(base),
        task_vector_list=[
            SimpleNamespace(task_vector_param_dict=each) for each in vectors
        ],
        device="cpu",
    )
    merged = merging(state)
    return {name: base[name] + merged[name] for name in base}


if __name__ == "__main__":
    (merging,) = functions_of(Path(sys.argv[1]) / "strategy.py", "ace_merging")
    found = {}
    for key, tensor in load_file(FOLDER / "later.safetensors").items():
        kind, what, name = key.split("/")
        found.setdefault((kind, what), {})[name] = tensor
    stored = {}
    for kind in ("float32", "float64"):
        # what the code makes itself, it makes in the default type
        torch.set_default_dtype(getattr(torch, kind))
        experts = [found[kind, f"expert{number}"] for number in range(3)]
        for what, factors in (("ace", (1, 1, 1)), ("ace_uneven", UNEVEN)):
            made = answer(merging, found[kind, "base"], experts, factors)
            for name, tensor in made.items():
                stored[f"{kind}/{what}/{name}"] = tensor.contiguous()
    save_file(stored, FOLDER / "ace.safetensors")
