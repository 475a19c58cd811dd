r"""Low-rank adapters: which tensors belong to them, and what they add.

LoRA leaves a weight W as it is and adds a product of two thin matrices: the
layer computes with W + s·B·A, with s = alpha / rank. Averaging A and B of two
models is not averaging B·A, so the product is added to W before merging.

This file knows how SpeechBrain (`speechbrain.nnet.adapters`) and PEFT name
these tensors; `speechbrain_merge.weights.fold` is the door.

Reference: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
2021, https://arxiv.org/abs/2106.09685

By what the product is multiplied is in
`speechbrain_merge.weights.adapter_scales`.

Example
-------
>>> factor_of("encoder.q_proj.lora_A.default.weight")
Factor(target='encoder.q_proj', side='down', adapter='default', kind='weight')
>>> plain_name("whisper.adapted_model.fc1.pretrained_module.weight", None)
'whisper.fc1.weight'

Authors
 * The speechbrain_merge authors 2026
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch

from speechbrain.nnet.adapters import AdaptedModel
from speechbrain_merge.weights.adapter_scales import Scale, unwrapped
from speechbrain_merge.weights.dtypes import WIDER_BASE, common_dtype, held
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

_SAVED_MODULE = re.compile(
    r"(?P<start>(?:.+\.)?)modules_to_save\.(?P<adapter>[^.]+)\.(?P<end>.+)"
)
_ORIGINAL = "original_module."
# With `bias="all"` PEFT's files have the bias of such a module under this name
# and the original one, beside its proper name
_SAVED_TWICE = re.compile(r"(^|\.)modules_to_save\.[^.]+$")

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


@lru_cache(maxsize=65536)
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
                unwrapped(f"{found['target'] or ''}.")[:-1],
                _SIDES[found["side"]],
                found.get("adapter"),
                found["kind"],
            )
    return None


def refuse_unfoldable(weights):
    """Refuses adapters that are not a sum of weights.

    Arguments
    ---------
    weights : Weights
        Open weights.

    Raises
    ------
    ValueError
        Names a tensor of such an adapter, and what to do.
    """
    for what, (pattern, advice) in UNFOLDABLE.items():
        for name in weights:
            if re.search(pattern, name):
                raise ValueError(
                    f"{weights.label}: '{name}' belongs to {what}, which "
                    f"cannot be folded. {advice}"
                )


def has_adapters(source) -> bool:
    """Whether a model has adapters, or was made for them.

    Arguments
    ---------
    source : torch.nn.Module or iterable of str
        A module, or all stored names.

    Returns
    -------
    bool
        True also for a SpeechBrain `AdaptedModel` without factors: before its
        adapters are inserted its names are those of an adapted model already.

    Example
    -------
    >>> has_adapters(["fc.weight", "fc.adapter_up_proj.weight"])
    True
    """
    names = source
    if isinstance(source, torch.nn.Module):
        if any(isinstance(each, AdaptedModel) for each in source.modules()):
            return True
        names = source.state_dict()
    return any(factor_of(name) for name in names)


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
        None for a module that was trained in full for another adapter, and
        for what is stored twice.
    """
    name = unwrapped(name)
    if _SAVED_TWICE.search(name):
        return None
    saved = _SAVED_MODULE.match(name)
    if saved is None:
        return name
    if saved["adapter"] != adapter:
        return None
    return saved["start"] + saved["end"]


def trained_last(names) -> list:
    """Stored names, the trained module behind the original of that name.

    Arguments
    ---------
    names : iterable of str
        All stored names.

    Returns
    -------
    list of str
        Where two have one `plain_name`, the last is what the model computes
        with.

    Example
    -------
    >>> trained_last(["fc.bias", "fc.original_module.bias"])
    ['fc.original_module.bias', 'fc.bias']
    """
    names = list(names)
    originals = {unwrapped(each) for each in names if _ORIGINAL in each}

    def is_trained(name):
        replaces = _ORIGINAL not in name and unwrapped(name) in originals
        return replaces or is_saved_module(name)

    return sorted(names, key=is_trained)


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


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_factor_dtypes(down: Entry, up: Entry, title: str):
    """Refuses factors that a product would truncate.

    Arguments
    ---------
    down, up : Entry
        A and B.
    title : str
        What errors call the layer.

    Raises
    ------
    ValueError
        Where one is of whole or complex numbers, or of eight bits.
    """
    for entry in (down, up):
        if entry.dtype not in _DTYPES:
            raise ValueError(
                f"{title}: a factor is of dtype {entry.dtype}. Expected one of "
                f"{', '.join(map(str, _DTYPES))}: convert it first."
            )


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
        Where the factors do not make up a matrix of W's shape; when it is
        read, where W's dtype cannot hold the sum.
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
        wide = common_dtype([weight.dtype, torch.float32])
        a = down.read().to(wide).flatten(1)
        b = up.read().to(wide).flatten(1)
        # An untrained adapter leaves every bit as it was, a negative zero too
        if not a.any() or not b.any():
            return weight.read()
        added = (b @ a) * scale.value
        added = added.T if transposed else added
        values = weight.read()
        both = values.to(wide) + added.reshape(values.shape)
        return held(both, weight.dtype, title, WIDER_BASE)

    return Entry(weight.shape, weight.dtype, read)
