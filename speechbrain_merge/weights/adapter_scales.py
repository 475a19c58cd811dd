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
    one_of,
    optional,
    text as text_of,
    truth,
    whole,
)
from speechbrain_merge.records.patterns import MOST_WAYS, find, ways
from speechbrain_merge.records.reading import parse_json
from speechbrain_merge.weights.source import open_weights

_MOST_PATTERNS = 4000
_check_config = fields(
    {},
    {
        "lora_alpha": number(-1e9, 1e9),
        "alpha_pattern": optional(
            mapped(number(-1e9, 1e9), limit=_MOST_PATTERNS)
        ),
        "r": optional(whole(1)),
        "rank_pattern": optional(mapped(whole(1), limit=_MOST_PATTERNS)),
        "use_rslora": optional(truth),
        "fan_in_fan_out": optional(truth),
        "peft_type": optional(text_of(100)),
        "init_lora_weights": anything(),
        "bias": optional(one_of("none", "all", "lora_only")),
        "base_model_name_or_path": optional(text_of(4096)),
        "task_type": optional(text_of(100)),
        "modules_to_save": optional(listed(text_of(4096))),
        "auto_mapping": optional(mapped(optional(text_of(4096)))),
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
        Where the adapter is not plain LoRA, or has another rank on record.

    Example
    -------
    >>> text = '{"peft_type": "LORA", "lora_alpha": 8, "use_rslora": true}'
    >>> scale_of_config(text, "encoder.q_proj", 4, "an adapter").value
    4.0
    """
    where = f"{label}, adapter_config.json"
    config = config_of_adapter(text, where)
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
    if "lora_alpha" not in config:
        raise ValueError(f"{where}: expected 'lora_alpha', which is missing")
    check_rank(
        _of_layer(config, "rank_pattern", config.get("r"), target, where),
        rank,
        f"{where}: layer '{target}'",
    )
    alpha = _of_layer(
        config, "alpha_pattern", config["lora_alpha"], target, where
    )
    return Scale(
        scale_value(alpha, rank, bool(config.get("use_rslora"))),
        bool(config.get("fan_in_fan_out")),
    )


def scale_on_record(weights, target: str, rank: int) -> Optional[Scale]:
    """The scale of one layer, from what is stored beside its factors.

    Arguments
    ---------
    weights : Weights
        Open weights.
    target : str
        Plain name of the layer.
    rank : int
        Its rank, from the shape of its factors.

    Returns
    -------
    Scale or None
        None where nothing is stored.

    Raises
    ------
    ValueError
        Where the adapter is not plain LoRA, or has another rank on record.
    """
    if "adapter_config" in weights.metadata:
        return scale_of_config(
            weights.metadata["adapter_config"], target, rank, weights.label
        )
    if ADAPTER_KEY in weights.metadata:
        known = adapter_arguments(weights)["adapter_kwargs"]
        check_rank(known["rank"], rank, f"{weights.label}: layer '{target}'")
        return Scale(scale_value(known["alpha"], rank, False))
    return None


def check_alpha(own: Scale, given: float, where: str):
    """Refuses an alpha that is not the adapter's own.

    Arguments
    ---------
    own : Scale
        As the adapter has it on record.
    given : float
        The scale by the alpha that was given.
    where : str
        What errors call the layer.

    Raises
    ------
    ValueError
        Where they differ.
    """
    if not math.isclose(own.value, given, rel_tol=1e-6):
        raise ValueError(
            f"{where} is multiplied by {own.value:g} as it was trained, and by "
            f"{given:g} with the `alpha` that was given. Leave `alpha` out."
        )


def check_rank(recorded: Optional[int], rank: int, where: str):
    """Refuses factors of another rank than the one on record.

    Its alpha was chosen for that rank: with another, the product would be
    multiplied by a wrong number.

    Arguments
    ---------
    recorded : int or None
        The rank on record; None where there is none.
    rank : int
        That of the factors.
    where : str
        What errors call the layer.

    Raises
    ------
    ValueError
        Where they differ.
    """
    if recorded is not None and recorded != rank:
        raise ValueError(
            f"{where} has rank {recorded} on record, and its factors have "
            f"rank {rank}. They do not belong together: save the adapter anew."
        )


def _of_layer(config, key, usual, target, where):
    """A setting of one layer, which a pattern may say."""
    # PEFT's own rule: a pattern has to match the end of the layer's name
    left: float = MOST_WAYS
    for pattern, own in (config.get(key) or {}).items():
        rule = rf"^(.*\.)?({pattern})$"
        if find(rule, target, f"{where}, key '{key}'", left):
            return own
        left -= ways(rule, len(target))
    return usual


@lru_cache(maxsize=8)
def config_of_adapter(text: str, where: str) -> dict:
    """PEFT's ``adapter_config.json``, checked.

    Arguments
    ---------
    text : str
        Its content.
    where : str
        What errors call it.

    Returns
    -------
    dict
        Not to be changed: it is asked for each layer anew.

    Raises
    ------
    RecordError
        Where it is no JSON, or an entry is of another type.
    """
    return _check_config(parse_json(text, where), where)


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


@lru_cache(maxsize=65536)
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
