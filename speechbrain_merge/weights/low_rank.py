r"""A LoRA adapter as layers: the two factors of each, and what multiplies them.

`open_adapter` reads adapters of SpeechBrain and PEFT alike, without the model
that they were trained in: of each layer A, B and s with ΔW = s·B·A, and the
tensors that were trained in full beside them (biases, a new head).

Example
-------
>>> import torch
>>> state = {
...     "adapted_model.fc.adapter_down_proj.weight": torch.ones(2, 3),
...     "adapted_model.fc.adapter_up_proj.weight": torch.ones(4, 2),
...     "adapted_model.head.bias": torch.ones(4),
... }
>>> adapter = open_adapter(from_tensors(state), alpha=1.0)
>>> adapter.layers["fc"].scale.value, list(adapter.plain)
(0.5, ['head.bias'])

Authors
 * The speechbrain_merge authors 2026
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

import torch

from speechbrain.nnet.adapters import AdaptedModel
from speechbrain_merge.weights.adapter_scales import (
    ADAPTER_KEY,
    Scale,
    check_alpha,
    config_of_adapter,
    scale_on_record,
    scale_value,
    scales_of_module,
)
from speechbrain_merge.weights.adapters import (
    adapter_names,
    check_factor_dtypes,
    factor_of,
    plain_name,
    refuse_unfoldable,
    trained_last,
)
from speechbrain_merge.weights.mapping import Entry, Weights, from_tensors

FORMATS = ("speechbrain", "peft")

_FACTOR_END = re.compile(r"\.(adapter_(down|up)_proj|lora_(embedding_)?[AB])\b")
_SAVED = re.compile(r"modules_to_save\.[^.]+\.")
_UP_BIAS = ("up", "bias")


@dataclass(frozen=True)
class AdaptedLayer:
    """The adapter of one layer: ΔW = s·B·A, and Δb = s·b with a bias.

    Arguments
    ---------
    stem : str
        The layer's stored name.
    down : Entry
        A: (rank, in), (rank, in, …) of a convolution, (rank, number) of an
        embedding.
    up : Entry
        B: (out, rank), (out, rank, 1, …), (size, rank).
    bias : Entry or None
        b: (out), PEFT's `lora_bias`.
    scale : Scale
        s.
    embedding : bool
        Whether the factors are of an embedding, so that ΔW is transposed.
    """

    stem: str
    down: Entry
    up: Entry
    bias: Optional[Entry]
    scale: Scale
    embedding: bool

    @property
    def rank(self) -> int:
        """Columns of B and rows of A."""
        return self.down.shape[0]

    @property
    def transposed(self) -> bool:
        """Whether the layer stores the transposed of B·A."""
        return self.embedding or self.scale.transposed


@dataclass(frozen=True)
class Adapter:
    """An adapter, open.

    Arguments
    ---------
    label : str
        What errors call it.
    layers : dict
        Plain name of a layer to its `AdaptedLayer`.
    plain : dict
        Plain name of a tensor that was trained in full to its stored name and
        its `Entry`.
    format : str
        "speechbrain" or "peft".
    config : dict
        The content of PEFT's ``adapter_config.json``; empty without one.
    """

    label: str
    layers: dict
    plain: dict
    format: str
    config: dict


def open_adapter(weights: Weights, alpha: Optional[float] = None) -> Adapter:
    """Reads which layers an adapter changes, and by what factors.

    Arguments
    ---------
    weights : Weights
        Open weights: PEFT's folder, or what SpeechBrain's `AdaptedModel`
        saves.
    alpha : float, optional
        LoRA's alpha, where the weights do not say it: a checkpoint of
        SpeechBrain does not.

    Returns
    -------
    Adapter
        Its entries read through the weights.

    Raises
    ------
    ValueError
        Where it is no LoRA, not plain LoRA, or its alpha is not known.
    """
    refuse_unfoldable(weights)
    names = adapter_names(weights)
    if len(names) > 1:
        raise ValueError(
            f"{weights.label} has the adapters {names}: save the one to merge "
            "with PEFT's save_pretrained(folder, selected_adapters=[name])."
        )
    (own,) = names or [None]
    config = _config(weights)
    factors: dict = {}
    plain = {}
    peft = bool(config)
    for name in trained_last(weights):
        factor = factor_of(name)
        if factor is None:
            kept = plain_name(name, own)
            if kept is not None:
                plain[kept] = (_SAVED.sub("", name), weights.entry(name))
        else:
            peft = peft or factor.kind != "weight" or "lora_" in name
            layer = factors.setdefault(factor.target, {})
            known = layer.setdefault((factor.side, factor.kind), name)
            if known != name:
                raise ValueError(
                    f"{weights.label}: '{known}' and '{name}' are one factor "
                    "of one layer. Which of them counts is not known: save "
                    "the adapter anew."
                )
    if not factors:
        raise ValueError(
            f"{weights.label} holds no LoRA factors. Give an adapter: a folder "
            "of PEFT's save_pretrained, or what SpeechBrain's AdaptedModel "
            "saved."
        )
    layers = {
        target: _layer(weights, target, found, alpha)
        for target, found in factors.items()
    }
    return Adapter(weights.label, layers, plain, FORMATS[peft], config)


def module_adapter(module: AdaptedModel) -> Weights:
    """What SpeechBrain's `AdaptedModel` would save, and its alpha.

    Arguments
    ---------
    module : AdaptedModel
        With LoRA in it.

    Returns
    -------
    Weights
        The tensors that are trained.

    Raises
    ------
    ValueError
        Where its layers differ in alpha.
    """
    label = f"a module of class {type(module).__name__}"
    if not isinstance(module, AdaptedModel):
        raise ValueError(
            f"{label} is not SpeechBrain's AdaptedModel. Save the adapter "
            "(with PEFT: model.save_pretrained(folder)) and give the folder."
        )
    return from_tensors(*_trained(module, label))


def trained_adapter(modules: Mapping) -> Weights:
    """What was trained of modules with SpeechBrain's LoRA in them.

    Arguments
    ---------
    modules : dict
        Name to torch.nn.Module, in which `AdaptedModel` has put the LoRA.

    Returns
    -------
    Weights
        Called `<name>.<parameter>`, and with the alpha.

    Raises
    ------
    ValueError
        Where there is no LoRA, or its layers differ in rank or alpha.

    Example
    -------
    >>> from speechbrain.nnet.adapters import LoRA
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> _ = AdaptedModel(model, LoRA, all_linear=True)
    >>> trained_adapter({"model": model}).names()
    ['model.0.adapter_down_proj.weight', 'model.0.adapter_up_proj.weight']
    """
    label = f"the training of {', '.join(modules)}"
    return from_tensors(*_trained(torch.nn.ModuleDict(modules), label))


def _trained(module, label):
    """The tensors of a module that are trained, its label, and the alpha."""
    state = {
        name: tensor.detach()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if tensor.requires_grad
    }
    layers = {
        name: len(layer.adapter_down_proj.weight)
        for name, layer in module.named_modules()
        if hasattr(layer, "adapter_down_proj") and hasattr(layer, "scaling")
    }
    if not layers:
        raise ValueError(
            f"{label} has no LoRA: put it in with SpeechBrain's AdaptedModel, "
            "before the first checkpoint is saved."
        )
    scales = {each.value for each in scales_of_module(module, None).values()}
    if len(scales) != 1 or len(set(layers.values())) != 1:
        raise ValueError(
            f"{label} has layers of ranks {sorted(set(layers.values()))} and "
            f"scales {sorted(scales)}: give an AdaptedModel with LoRA of one "
            "rank and alpha."
        )
    (rank,) = set(layers.values())
    metadata = speechbrain_metadata(list(layers), rank, scales.pop())
    return state, label, metadata


def speechbrain_metadata(stems: list, rank: int, scale: float) -> dict:
    """The metadata that say how to make the `AdaptedModel` of an adapter.

    Arguments
    ---------
    stems : list of str
        Stored names of its layers.
    rank : int
        Of all layers.
    scale : float
        alpha / rank of all layers.

    Returns
    -------
    dict
        One entry, see `adapter_arguments`.
    """
    arguments = {
        "target_layers": [stem.split("adapted_model.")[-1] for stem in stems],
        "adapter_kwargs": {"rank": rank, "alpha": scale * rank},
    }
    return {ADAPTER_KEY: json.dumps(arguments)}


def _config(weights):
    """PEFT's configuration, checked; empty where there is none."""
    if "adapter_config" not in weights.metadata:
        return {}
    where = f"{weights.label}, adapter_config.json"
    config = config_of_adapter(weights.metadata["adapter_config"], where)
    if config.get("layer_replication"):
        raise ValueError(
            f"{where}: 'layer_replication' makes another model of the base. "
            "Fold it with PEFT itself: model.merge_and_unload()."
        )
    return config


def _layer(weights, target, found, alpha):
    kinds = {kind for _, kind in found if kind != "bias"}
    halves = sorted(side for side, kind in found if kind != "bias")
    if len(kinds) != 1 or halves != ["down", "up"]:
        raise ValueError(
            f"{weights.label}: '{target}' has only one of the two factors of "
            "LoRA. The file was not written to its end, or is no adapter."
        )
    (kind,) = kinds
    down, up = (weights.entry(found[side, kind]) for side in ("down", "up"))
    rank = down.shape[0] if down.shape else 0
    if (
        rank < 1
        or len(down.shape) < 2
        or len(up.shape) < 2
        or up.shape[1] != rank
        or any(size != 1 for size in up.shape[2:])
    ):
        raise ValueError(
            f"{weights.label}: the factors of '{target}' have the shapes "
            f"{list(down.shape)} and {list(up.shape)}, which do not make a "
            "product."
        )
    check_factor_dtypes(down, up, f"{weights.label}: '{target}'")
    bias = found.get(_UP_BIAS)
    stem = _FACTOR_END.split(found["down", kind])[0]
    return AdaptedLayer(
        stem,
        down,
        up,
        None if bias is None else weights.entry(bias),
        _scale(weights, target, rank, alpha),
        kind == "lora_embedding",
    )


def _scale(weights, target, rank, alpha):
    own = scale_on_record(weights, target, rank)
    if own is None and alpha is not None:
        return Scale(scale_value(alpha, rank, False))
    if own is not None:
        if alpha is not None:
            given = scale_value(alpha, rank, False)
            check_alpha(own, given, f"{weights.label}: '{target}'")
        return own
    raise ValueError(
        f"{weights.label} holds LoRA factors, but not their alpha. Give "
        "alpha= as in the YAML of its training (SpeechBrain's default is 1), "
        "or open PEFT's folder, with adapter_config.json, not its file."
    )
