"""Stored answers of other implementations to small merges.

``references/make_*.py`` say which implementations, and how to run them again.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "references"

# How far an answer may be off, by the type it was computed in.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def task_vector_answers(dtype):
    """Base, experts and answers of ``make_task_vectors.py``.

    Arguments
    ---------
    dtype : torch.dtype
        ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    base : dict
        State dict.
    experts : list of dict
        State dicts.
    answers : dict
        Name of the answer to state dict.
    """
    kind = str(dtype).removeprefix("torch.")
    found = {}
    stored = load_file(FOLDER / "task_vectors.safetensors")
    for key, tensor in stored.items():
        stored_kind, what, name = key.split("/")
        if stored_kind == kind:
            found.setdefault(what, {})[name] = tensor
    experts = [found.pop(f"expert{index}") for index in range(4)]
    return found.pop("base"), experts, found


def largest_difference(merged, answer):
    """The largest difference over the tensors of an answer.

    Arguments
    ---------
    merged, answer : dict
        State dicts; ``merged`` may have more tensors.

    Returns
    -------
    difference : float
    """
    return max(
        float((merged[name] - tensor).abs().max())
        for name, tensor in answer.items()
    )


def later_answers(dtype):
    """Base, experts and answers of ``make_later.py``.

    Arguments
    ---------
    dtype : torch.dtype
        ``torch.float32`` or ``torch.float64``.

    Returns
    -------
    base : dict
    experts : list of dict
    answers : dict
        Name of an answer to a state dict, which may lack tensors.
    """
    found = {}
    kind = str(dtype).removeprefix("torch.")
    for key, tensor in load_file(FOLDER / "later.safetensors").items():
        of, what, name = key.split("/")
        if of == kind:
            found.setdefault(what, {})[name] = tensor
    experts = [found.pop(f"expert{number}") for number in range(3)]
    return found.pop("base"), experts, found


def assert_answers(merged, answer, dtype):
    """A merge is the answer, as exactly as its type allows."""
    for name, expected in answer.items():
        torch.testing.assert_close(
            merged[name], expected, rtol=0, atol=TOLERANCES[dtype], msg=name
        )
