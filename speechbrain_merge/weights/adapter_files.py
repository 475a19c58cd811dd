"""How an adapter is written: names, ranks and alpha of SpeechBrain and PEFT.

A layer's factors carry the same numbers in both; what differs is their names,
and where rank and alpha stand. PEFT has a rank and an alpha for each layer, in
its ``adapter_config.json``; SpeechBrain's `AdaptedModel` has one of each for
all layers, in the YAML of the recipe.

Example
-------
>>> factor_names("speechbrain", "fc", "adapted_model.fc", False)
{'down': 'adapted_model.fc.adapter_down_proj.weight', 'up': 'adapted_model.fc.adapter_up_proj.weight'}
>>> factor_names("peft", "fc", None, False)["up"]
'base_model.model.fc.lora_B.weight'

Authors
 * The speechbrain_merge authors 2026
"""

import json
import re
from collections import Counter
from typing import Optional

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def factor_names(
    format: str, target: str, stem: Optional[str], embedding: bool
) -> dict:
    """The stored names of a layer's factors.

    Arguments
    ---------
    format : str
        "speechbrain" or "peft".
    target : str
        Plain name of the layer.
    stem : str or None
        Its stored name, for SpeechBrain; by default inside one `AdaptedModel`.
    embedding : bool
        Whether it is an embedding.

    Returns
    -------
    dict
        "down" and "up" to a name; for PEFT "bias" too.
    """
    if format == "speechbrain":
        stem = f"adapted_model.{target}" if stem is None else stem
        return {
            side: f"{stem}.adapter_{side}_proj.weight"
            for side in ("down", "up")
        }
    start = f"base_model.model.{target}"
    if embedding:
        return {
            "down": f"{start}.lora_embedding_A",
            "up": f"{start}.lora_embedding_B",
        }
    return {
        "down": f"{start}.lora_A.weight",
        "up": f"{start}.lora_B.weight",
        "bias": f"{start}.lora_B.bias",
    }


def peft_config(layers: dict, **settings) -> str:
    """PEFT's ``adapter_config.json``.

    The layers are named one by one, so that no other layer of the model is
    adapted whose name ends alike. The scale is alpha / rank, never PEFT's
    rank-stabilised one.

    Arguments
    ---------
    layers : dict
        Plain name of a layer to its rank and scale.
    **settings
        More entries.

    Returns
    -------
    str
        JSON.

    Example
    -------
    >>> config = json.loads(peft_config({"a.fc": (2, 1.0), "b.fc": (2, 2.0)}))
    >>> config["r"], config["lora_alpha"], config["alpha_pattern"]
    (2, 2, {'^b\\\\.fc': 4})
    """
    alphas = {
        target: _whole(scale * rank) for target, (rank, scale) in layers.items()
    }
    rank = _most_common(each for each, _ in layers.values())
    alpha = _most_common(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(target) for target in layers),
        "rank_pattern": {
            _pattern(target): own
            for target, (own, _) in layers.items()
            if own != rank
        },
        "alpha_pattern": {
            _pattern(target): own
            for target, own in alphas.items()
            if own != alpha
        },
        **settings,
    }
    return json.dumps(config, indent=2) + "\n"


def _pattern(target):
    # PEFT lets a pattern match the end of a name; this one is the whole name
    return f"^{re.escape(target)}"


def _whole(number):
    return int(number) if number == int(number) else number


def _most_common(values):
    # the smaller where two are as common, whatever the order
    counted = Counter(values)
    return min(counted, key=lambda value: (-counted[value], value))
