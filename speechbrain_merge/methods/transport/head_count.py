"""How many attention heads a model has, where it says so itself.

Example
-------
>>> import torch
>>> head_count(torch.nn.MultiheadAttention(8, 4))
4

Authors
 * The speechbrain_merge authors 2026
"""

import json
from os import PathLike
from pathlib import Path
from typing import Optional

import torch


def head_count(source) -> Optional[int]:
    """The number of heads of a module or of a Hugging Face folder.

    Arguments
    ---------
    source : object
        Any source of weights.

    Returns
    -------
    int or None
        ``None`` where the source does not say.

    Raises
    ------
    ValueError
        Where its attention layers have different numbers.
    """
    numbers = set()
    if isinstance(source, torch.nn.Module):
        for module in source.modules():
            number = getattr(module, "num_heads", None)
            if isinstance(number, int):
                numbers.add(number)
    elif isinstance(source, (str, PathLike)):
        path = Path(source) / "config.json"
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            ending = "attention_heads"
            numbers = {content[key] for key in content if key.endswith(ending)}
    if len(numbers) > 1:
        raise ValueError(
            f"The attention layers have {sorted(numbers)} heads: maps know "
            "one number for a model."
        )
    return numbers.pop() if numbers else None
