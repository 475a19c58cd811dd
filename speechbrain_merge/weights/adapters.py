r"""Low-rank adapters: which tensors belong to them, and what they add.

LoRA leaves a weight W as it is and adds a product of two thin matrices: the
layer computes with W + s·B·A, with s = alpha / rank. Averaging A and B of two
models is not averaging B·A, so the product is added to W before merging.

This file knows how SpeechBrain (`speechbrain.nnet.adapters`) and PEFT name
these tensors; `speechbrain_merge.weights.fold` is the door.

Reference: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
2021, https://arxiv.org/abs/2106.09685

Example
-------
>>> factor_of("encoder.q_proj.lora_A.default.weight")
Factor(target='encoder.q_proj', side='down', adapter='default', kind='weight')
>>> plain_name("whisper.adapted_model.fc1.pretrained_module.weight", None)
'whisper.fc1.weight'

Authors
 * The speechbrain_merge authors 2026
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Optional

import torch

from speechbrain_merge.weights.mapping import Entry

# How the factors of a layer are named: down (A) reads the input, up (B) writes
FACTOR_NAMES = (
    # SpeechBrain's LoRA
    r"adapter_(?P<side>down|up)_proj\.(?P<kind>weight)",
    # PEFT, in a module's state dict (with the adapter's name) or in a file
    r"lora_(?P<side>A|B)(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)",
    # PEFT, on an embedding: its factors act on the transposed weight
    r"(?P<kind>lora_embedding)_(?P<side>A|B)(?:\.(?P<adapter>[^.]+))?",
)
_FACTORS = tuple(
    re.compile(rf"^(?:(?P<target>.+)\.)?{name}$") for name in FACTOR_NAMES
)
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}

# What wrapping a layer or a model puts into names, and what stands there
# without it
_WRAPPERS = (
    (re.compile(r"(^|\.)base_model\.model\."), r"\1"),  # PEFT
    (re.compile(r"(^|\.)adapted_model\."), r"\1"),  # SpeechBrain
    (re.compile(r"(^|\.)pretrained_module\."), r"\1"),  # SpeechBrain
    (re.compile(r"(^|\.)base_layer\."), r"\1"),  # PEFT
    (re.compile(r"(^|\.)original_module\."), r"\1"),  # PEFT
)
_SAVED_MODULE = re.compile(
    r"(?P<start>(?:.+\.)?)modules_to_save\.(?P<adapter>[^.]+)\.(?P<end>.+)"
)

# Adapters that are not a sum of weights
UNFOLDABLE = {
    "a Houlsby adapter": (
        r"(^|\.)(pretrained_linear\.|adapter_(down|up)_proj\.bias$)",
        "It has an activation inside, so no plain weight computes the same. "
        "Merge the adapters' own tensors among experts of one base instead.",
    ),
    "a PEFT adapter other than plain LoRA": (
        r"(^|\.)(lora_magnitude_vector|lora_E|ia3_l|hada_|lokr_|oft_|boft_|"
        r"hra_|vera_|vblora_|randlora_|prompt_encoder|token_adapter|"
        r"trainable_tokens)",
        "Fold it with PEFT itself: model.merge_and_unload().",
    ),
}
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
class Factor:
    """One of the two thin matrices of a layer.

    Arguments
    ---------
    target : str
        Plain name of the adapted layer.
    side : str
        "down" (A) or "up" (B).
    adapter : str or None
        PEFT's name of the adapter.
    kind : str
        "weight", "bias", or "lora_embedding" for the factors of an embedding.
    """

    target: str
    side: str
    adapter: Optional[str]
    kind: str


@dataclass(frozen=True)
class Scale:
    """What multiplies the product of the factors of one layer.

    Arguments
    ---------
    value : float
        alpha / rank, or alpha / √rank where rank-stabilised.
    transposed : bool
        Whether the layer stores its weight as (input, output).
    """

    value: float
    transposed: bool = False


def factor_of(name: str) -> Optional[Factor]:
    """Which factor of which layer a tensor is.

    Arguments
    ---------
    name : str
        The stored name.

    Returns
    -------
    Factor or None
        None for every tensor that is no LoRA factor.
    """
    for pattern in _FACTORS:
        match = pattern.match(name)
        if match:
            found = match.groupdict()
            return Factor(
                _unwrapped(f"{found['target'] or ''}.")[:-1],
                _SIDES[found["side"]],
                found.get("adapter"),
                found["kind"],
            )
    return None


def plain_name(name: str, adapter: Optional[str]) -> Optional[str]:
    """The name that a tensor of an adapted model has in the plain model.

    Arguments
    ---------
    name : str
        The stored name, not of a factor.
    adapter : str, optional
        PEFT's name of the adapter whose fully trained modules to take.

    Returns
    -------
    str or None
        None for a module that was trained in full for another adapter.
    """
    name = _unwrapped(name)
    saved = _SAVED_MODULE.match(name)
    if saved is None:
        return name
    if saved["adapter"] != adapter:
        return None
    return saved["start"] + saved["end"]


def is_saved_module(name: str) -> bool:
    """Whether a tensor is of a module that PEFT trained in full.

    Arguments
    ---------
    name : str
        The stored name.

    Returns
    -------
    bool
    """
    return _SAVED_MODULE.match(name) is not None


def adapter_names(names) -> list:
    """PEFT's names of the adapters in a state dict.

    Arguments
    ---------
    names : iterable of str
        All stored names.

    Returns
    -------
    list of str
        Empty for SpeechBrain's adapters and for PEFT's own files.
    """
    found = {}
    for name in names:
        factor = factor_of(name)
        saved = _SAVED_MODULE.match(name)
        if factor is not None and factor.adapter is not None:
            found[factor.adapter] = None
        elif saved:
            found[saved["adapter"]] = None
    return list(found)


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
        target = _unwrapped(f"{path}.")[:-1]
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
    config = json.loads(text)
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
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", target):
            alpha = own
            break
    return Scale(
        scale_value(alpha, rank, bool(config.get("use_rslora"))),
        bool(config.get("fan_in_fan_out")),
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


def adapted_entry(
    weight: Entry, down: Entry, up: Entry, scale: Scale, kind: str, title: str
) -> Entry:
    """The entry of W + s·B·A, computed when it is read.

    Arguments
    ---------
    weight : Entry
        W, of a linear layer (out, in), a convolution (out, in, …) or an
        embedding (number, size).
    down : Entry
        A: (rank, in), (rank, in, …), or (rank, number) for an embedding.
    up : Entry
        B: (out, rank), (out, rank, 1, …), or (size, rank).
    scale : Scale
        s.
    kind : str
        The kind of the factors, see `Factor`.
    title : str
        What errors call the layer.

    Returns
    -------
    Entry
        Of W's shape and dtype; computed in at least float32.

    Raises
    ------
    ValueError
        Where the factors do not make up a matrix of W's shape.
    """
    rank = down.shape[0]
    transposed = scale.transposed or kind == "lora_embedding"
    delta = (up.shape[0], *down.shape[1:])
    if transposed:
        delta = delta[::-1]
    if math.prod(up.shape) != up.shape[0] * rank or delta != weight.shape:
        raise ValueError(
            f"{title}: factors of shapes {list(down.shape)} and "
            f"{list(up.shape)} do not fit a weight of shape "
            f"{list(weight.shape)}. Grouped convolutions cannot be folded; "
            "else the base is another model's."
        )

    def read():
        wide = torch.promote_types(weight.dtype, torch.float32)
        a = down.read().to(wide).flatten(1)
        b = up.read().to(wide).flatten(1)
        added = (b @ a) * scale.value
        added = added.T if transposed else added
        values = weight.read()
        return (values.to(wide) + added.reshape(values.shape)).to(weight.dtype)

    return Entry(weight.shape, weight.dtype, read)


def _unwrapped(name):
    for pattern, plain in _WRAPPERS:
        name = pattern.sub(plain, name)
    return name
