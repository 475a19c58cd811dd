r"""By what an adapter multiplies its product: alpha / rank.

A layer with LoRA computes with W + s·B·A. The factors B and A are tensors; s is
not, and must come from the module, or from the file that PEFT keeps beside
them.

Example
-------
>>> scale_value(alpha=32, rank=16, rank_stabilised=False)
2.0

Authors
 * The speechbrain_merge authors 2026
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch

from speechbrain_merge.records.checked import (
    anything,
    fields,
    listed,
    mapped,
    number,
    optional,
    text as text_of,
    whole,
)
from speechbrain_merge.records.patterns import MOST_WAYS, find, ways
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights.source import open_weights

_config = fields(
    {"lora_alpha": number(-1e9, 1e9)},
    {
        "alpha_pattern": optional(mapped(number(-1e9, 1e9), limit=4000)),
        "peft_type": optional(text_of(100)),
        "init_lora_weights": anything(),
    },
)
ADAPTER_KEY = "speechbrain_adapter"
"""The entry of a file's metadata with the arguments of its AdaptedModel."""

_arguments = fields(
    {
        "target_layers": listed(text_of()),
        "adapter_kwargs": fields(
            {"rank": whole(1), "alpha": number(-1e9, 1e9)}
        ),
    }
)
# What wrapping a layer or a model puts into names, and what stands there
# without it
_WRAPPERS = (
    (re.compile(r"(^|\.)base_model\.model\."), r"\1"),  # PEFT
    (re.compile(r"(^|\.)adapted_model\."), r"\1"),  # SpeechBrain
    (re.compile(r"(^|\.)pretrained_module\."), r"\1"),  # SpeechBrain
    (re.compile(r"(^|\.)base_layer\."), r"\1"),  # PEFT
    (re.compile(r"(^|\.)original_module\."), r"\1"),  # PEFT
)
# PEFT initialisations that change the base, so that the adapter alone does
# not say what the model was
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "mica",
    "monteclora_config",
    "velora_config",
    "target_parameters",
    "trainable_token_indices",
)


@dataclass(frozen=True)
class Scale:
    """The factor of the product of a layer's adapter matrices.

    Arguments
    ---------
    value : float
        alpha / rank, or alpha / √rank where rank-stabilised.
    transposed : bool
        Whether the layer stores its weight as (input, output).
    """

    value: float
    transposed: bool = False


def scales_of_module(module: torch.nn.Module, adapter: Optional[str]) -> dict:
    """The scale of every adapted layer, as the module itself knows it.

    Arguments
    ---------
    module : torch.nn.Module
        A model with LoRA layers of SpeechBrain or PEFT.
    adapter : str, optional
        PEFT's name of the adapter.

    Returns
    -------
    dict
        Plain name of the layer to its `Scale`.

    Raises
    ------
    ValueError
        Where PEFT has merged the adapter into the weights already, or the
        adapter is not plain LoRA.
    """
    scales = {}
    for path, layer in module.named_modules():
        target = unwrapped(f"{path}.")[:-1]
        scaling = getattr(layer, "scaling", None)
        if hasattr(layer, "adapter_down_proj") and scaling is not None:
            scales[target] = Scale(float(scaling))
        elif hasattr(layer, "lora_A") and isinstance(scaling, dict):
            if layer.merged:
                raise ValueError(
                    f"the adapter of '{path}' is merged into its weight "
                    "already. Call unmerge_adapter() before, or "
                    "merge_and_unload() instead."
                )
            if adapter in getattr(layer, "lora_variant", {}):
                raise ValueError(
                    f"the adapter of '{path}' is a variant of LoRA. Fold it "
                    "with PEFT itself: model.merge_and_unload()."
                )
            if adapter in scaling:
                scales[target] = Scale(
                    float(scaling[adapter]),
                    bool(getattr(layer, "fan_in_fan_out", False)),
                )
    return scales


def scale_of_config(text: str, target: str, rank: int, label: str) -> Scale:
    """The scale of one layer, from PEFT's ``adapter_config.json``.

    Arguments
    ---------
    text : str
        The content of that file.
    target : str
        Plain name of the layer.
    rank : int
        Its rank, from the shape of its factors.
    label : str
        What errors call the model.

    Returns
    -------
    Scale

    Raises
    ------
    ValueError
        Where the adapter is not plain LoRA.

    Example
    -------
    >>> text = '{"peft_type": "LORA", "lora_alpha": 8, "use_rslora": true}'
    >>> scale_of_config(text, "encoder.q_proj", 4, "an adapter").value
    4.0
    """
    where = f"{label}, adapter_config.json"
    config = _parsed(text, where)
    start = str(config.get("init_lora_weights", "")).lower()
    special = [key for key in _VARIANTS if config.get(key)]
    if config.get("peft_type") != "LORA" or special:
        raise ValueError(
            f"{label} is not plain LoRA (peft_type {config.get('peft_type')!r}"
            f"{''.join(', ' + key for key in special)}). "
            "Fold it with PEFT itself: model.merge_and_unload()."
        )
    if start.startswith(_CHANGES_BASE):
        raise ValueError(
            f"{label} was initialised by '{start}', which changed the base. "
            "Fold it with PEFT itself: model.merge_and_unload()."
        )
    alpha = config["lora_alpha"]
    # PEFT's own rule: a pattern has to match the end of the layer's name
    left: float = MOST_WAYS
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        rule = rf"^(.*\.)?({pattern})$"
        if find(rule, target, f"{where}, key 'alpha_pattern'", left):
            alpha = own
            break
        left -= ways(rule, len(target))
    return Scale(
        scale_value(alpha, rank, bool(config.get("use_rslora"))),
        bool(config.get("fan_in_fan_out")),
    )


@lru_cache(maxsize=8)
def _parsed(text, where):
    """The configuration, which is asked for each layer anew."""
    return _config(parse_json(text, where), where)


def adapter_arguments(source) -> dict:
    """The arguments that make the `AdaptedModel` of a merged adapter.

    SpeechBrain stores the factors of LoRA alone; `merge_adapters` and
    `extract_lora` store in the file what else it takes to load them.

    Arguments
    ---------
    source : any source of `open_weights`
        A file that they wrote for SpeechBrain.

    Returns
    -------
    dict
        ``target_layers``, and ``adapter_kwargs`` with ``rank`` and ``alpha``.

    Raises
    ------
    ValueError
        Where the file does not have them.
    """
    with open_weights(source) as weights:
        if ADAPTER_KEY not in weights.metadata:
            raise ValueError(
                f"{weights.label} does not say its rank and alpha: it was not "
                "written by speechbrain_merge for SpeechBrain's AdaptedModel."
            )
        where = f"{weights.label}, metadata '{ADAPTER_KEY}'"
        return _arguments(
            parse_json(weights.metadata[ADAPTER_KEY], where), where
        )


def scale_value(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """alpha / rank, or alpha / √rank where rank-stabilised.

    Arguments
    ---------
    alpha : float
        LoRA's alpha.
    rank : int
        Columns of the up factor.
    rank_stabilised : bool
        PEFT's `use_rslora`.

    Returns
    -------
    float
    """
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def unwrapped(name: str) -> str:
    """A name without what wrapping a layer or a model put into it.

    Arguments
    ---------
    name : str
        The stored name.

    Returns
    -------
    str

    Example
    -------
    >>> unwrapped("model.adapted_model.fc.pretrained_module.weight")
    'model.fc.weight'
    """
    for pattern, plain in _WRAPPERS:
        name = pattern.sub(plain, name)
    return name
