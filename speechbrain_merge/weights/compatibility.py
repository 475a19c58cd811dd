"""Checks whether models can be merged, before anything is merged.

Models can be merged tensor by tensor where they have the same names, with the
same shapes and kinds of dtype, and only finite values. Floating-point dtypes
may be mixed: merging promotes them. Where models do not fit, the error lists
every file and tensor at fault at once, judged by what most models have, so that
a single odd expert is the one that is named.

Example
-------
>>> import torch
>>> from speechbrain_merge.weights import open_weights
>>> experts = [
...     open_weights({"weight": torch.ones(2, 2)}),
...     open_weights({"weight": torch.ones(2, 2)}),
...     open_weights({"weight": torch.ones(2, 3)}),
... ]
>>> check_compatible(experts)  # doctest: +IGNORE_EXCEPTION_DETAIL
Traceback (most recent call last):
...
IncompatibleWeights: these models cannot be merged (1 fault):
  expert 2 (a state dict): 'weight' has shape [2, 3], expected [2, 2]

Authors
 * The speechbrain_merge authors 2026
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Optional

import torch

from speechbrain_merge.weights.mapping import Weights

MOST_LINES = 20

_COUNTERS = ("num_batches_tracked", "position_ids")

# Parts of names that show that a model should be folded before it is merged
UNFOLDED = {
    "weight norm": (".weight_g", ".weight_v", ".parametrizations."),
    "LoRA": (
        ".adapter_down_proj.",
        ".adapter_up_proj.",
        ".lora_A.",
        ".lora_B.",
        ".lora_embedding_A.",
        ".lora_embedding_B.",
    ),
}


class IncompatibleWeights(ValueError):
    """The models do not fit together; the message names each fault."""


def check_compatible(
    experts: list,
    base: Optional[Weights] = None,
    finite: bool = True,
    same_dtype: bool = False,
):
    """Raise one error for all that keeps these models from being merged.

    Arguments
    ---------
    experts : list of Weights
        The models to merge, open.
    base : Weights, optional
        The model that they were fine-tuned from, open.
    finite : bool
        Whether to read all tensors and look for NaN and infinity. The rest
        needs no reading.
    same_dtype : bool
        Whether floating-point dtypes have to agree. By default they may be
        mixed, since a merge promotes them (`weights.dtypes.promoted`).

    Raises
    ------
    IncompatibleWeights
        With a line for each file and tensor at fault, up to 20.
    """
    if not experts:
        raise IncompatibleWeights("there are no experts to merge")
    models = {
        f"expert {number} ({expert.label})": expert
        for number, expert in enumerate(experts)
    }
    if base is not None:
        models[f"base ({base.label})"] = base
    faults = []
    for name in dict.fromkeys(
        name for model in models.values() for name in model
    ):
        holders = {
            title: model for title, model in models.items() if name in model
        }
        faults += _presence_faults(name, holders, models)
        faults += _shape_faults(name, holders)
        faults += _dtype_faults(name, holders, same_dtype)
    if finite:
        for title, model in models.items():
            faults += _value_faults(title, model)
    if faults:
        raise IncompatibleWeights(_message(faults, models))


def _presence_faults(name, holders, models):
    lacking = [title for title in models if title not in holders]
    if 2 * len(holders) > len(models):
        return [f"{title}: '{name}' is missing" for title in lacking]
    if lacking:
        others = "the others do" if len(models) > 2 else "the other does"
        return [
            f"{title}: has '{name}', which {others} not have"
            for title in holders
        ]
    return []


def _shape_faults(name, holders):
    shapes = {title: model.shape(name) for title, model in holders.items()}
    expected = _most_common(shapes.values())
    return [
        f"{title}: '{name}' has shape {list(shape)}, expected {list(expected)}"
        for title, shape in shapes.items()
        if shape != expected
    ]


def _dtype_faults(name, holders, same_dtype):
    dtypes = {title: model.dtype(name) for title, model in holders.items()}
    faults = [
        f"{title}: '{name}' is complex ({dtype}), which cannot be merged"
        for title, dtype in dtypes.items()
        if dtype.is_complex
    ]
    expected = _most_common(dtypes.values())
    for title, dtype in dtypes.items():
        both_float = dtype.is_floating_point and expected.is_floating_point
        if dtype == expected or (both_float and not same_dtype):
            continue
        hint = "; same_dtype=False allows it" if both_float else ""
        faults.append(
            f"{title}: '{name}' has dtype {dtype}, expected {expected}{hint}"
        )
    return faults


def _value_faults(title, model):
    faults = []
    for name in model:
        if name in model.tied or not model.dtype(name).is_floating_point:
            continue
        tensor = model[name]
        if tensor.dtype.itemsize == 1:
            # No float8 dtype has its own minimum and maximum
            tensor = tensor.float()
        if tensor.numel() == 0:
            continue
        # One pass without a temporary: NaN and infinity reach the extremes
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            faults.append(
                f"{title}: '{name}' has {count} of {tensor.numel()} values "
                "that are NaN or infinite"
            )
    return faults


def is_like(stored: Any, known: torch.Tensor) -> bool:
    """Whether something stored is a tensor as another, and finite.

    Arguments
    ---------
    stored : object
        Out of a state that was saved.
    known : torch.Tensor
        Of the shape and type that are expected.

    Returns
    -------
    bool
    """
    return (
        isinstance(stored, torch.Tensor)
        and stored.shape == known.shape
        and stored.dtype == known.dtype
        and bool(torch.isfinite(stored).all())
    )


def _most_common(values):
    # Of equally common ones, the first
    return Counter(values).most_common(1)[0][0]


def _message(faults, models):
    count = f"{len(faults)} fault" + ("s" if len(faults) > 1 else "")
    lines = [f"these models cannot be merged ({count}):"]
    lines += [f"  {fault}" for fault in faults[:MOST_LINES]]
    if len(faults) > MOST_LINES:
        lines.append(f"  … and {len(faults) - MOST_LINES} more")
    names = {name for model in models.values() for name in model}
    for kind, marks in UNFOLDED.items():
        if any(mark in f".{name}" for name in names for mark in marks):
            lines.append(
                f"  Some names show unfolded {kind}. Fold first: "
                "speechbrain_merge.weights.fold(weights)."
            )
    return "\n".join(lines)


def differing_integers(models: Sequence[Weights]) -> list[str]:
    """Names of the tensors without fractions in which models differ.

    A merge has no mean of them, and takes those of the first: a table of
    tokens, say, or quantised weights. Counters and positions, which nothing
    computes with, are left out.

    Arguments
    ---------
    models : list of Weights
        Open weights with the same names.

    Returns
    -------
    list of str

    Example
    -------
    >>> from speechbrain_merge.weights import open_weights
    >>> models = [{"table": torch.tensor([each])} for each in (1, 2)]
    >>> differing_integers([open_weights(model) for model in models])
    ['table']
    """
    first, *others = models
    return [
        name
        for name in first.names()
        if not first.dtype(name).is_floating_point
        and not first.dtype(name).is_complex
        and not name.endswith(_COUNTERS)
        and any(
            name in other and not torch.equal(first[name], other[name])
            for other in others
        )
    ]
