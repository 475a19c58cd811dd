"""Fold a model into plain weights: weight norm and LoRA are multiplied out.

Merging adds up weights, so it needs the weights that a layer computes with,
not the factors that it stores. `fold` returns them under the names that the
plain model has; each is computed when it is read, so a folded model is as
cheap to open as any other and can be given to a merge as an expert.

An adapter's checkpoint often holds the adapter alone (SpeechBrain's
`AdaptedModel` saves only what was trained; so does PEFT). It is folded into the
base that it was trained on: ``fold(adapter, base=…)``.

Example
-------
>>> import torch
>>> from speechbrain.nnet.adapters import AdaptedModel, LoRA
>>> from speechbrain_merge.weights import fold
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
>>> adapted = AdaptedModel(model, LoRA, all_linear=True)
>>> fold(adapted).names()
['0.weight', '0.bias']

Authors
 * The speechbrain_merge authors 2026
"""

from typing import Optional

import torch

from speechbrain_merge.weights.adapter_scales import (
    ADAPTER_KEY,
    Scale,
    check_alpha,
    scale_on_record,
    scale_value,
    scales_of_module,
)
from speechbrain_merge.weights.adapters import (
    adapted_entry,
    adapter_names,
    check_factor_dtypes,
    factor_of,
    has_adapters,
    plain_name,
    refuse_unfoldable,
    trained_last,
)
from speechbrain_merge.weights.dtypes import WIDER_BASE, common_dtype, held
from speechbrain_merge.weights.head_count import heads_metadata
from speechbrain_merge.weights.mapping import Entry, Weights, from_tensors
from speechbrain_merge.weights.parametrized import computed_state, is_computed
from speechbrain_merge.weights.source import open_weights
from speechbrain_merge.weights.weight_norm import (
    weight_norm_entry,
    weight_norm_pairs,
)


def fold(
    source,
    base=None,
    alpha: Optional[float] = None,
    rank: Optional[int] = None,
    rank_stabilised: bool = False,
    adapter: Optional[str] = None,
    weight_norm: bool = True,
) -> Weights:
    """The plain weights that a model computes with.

    Folded are weight norm, SpeechBrain's LoRA and PEFT's LoRA on linear
    layers, convolutions and embeddings. A model without any of them comes
    back as it is.

    Arguments
    ---------
    source : any source of `open_weights`
        A whole model, or the checkpoint of an adapter alone.
    base : any source of `open_weights`, optional
        The model under the adapter, plain, where `source` does not hold it.
        Tensors of the source that are no factors (layers that were trained in
        full) take the place of the base's.
    alpha : float, optional
        LoRA's alpha, where nothing else tells: a module knows it, and so does
        ``adapter_config.json`` in a PEFT folder, but a SpeechBrain checkpoint
        does not. SpeechBrain's own default is 1. Another than the known one is
        refused.
    rank : int, optional
        LoRA's rank, to be checked against the factors, whose shapes tell it.
    rank_stabilised : bool
        Whether alpha is divided by √rank (PEFT's `use_rslora`) instead of
        rank. Used with `alpha` only.
    adapter : str, optional
        PEFT's name of the adapter, where a module has several.
    weight_norm : bool
        False leaves weight norm as it is, but on layers with an adapter.

    Returns
    -------
    Weights
        Read-only and lazy, in the stored dtypes; folding itself is computed
        in at least float32. Closing it closes the source and the base. Its
        ``folded`` says whether there were "weight norm" or "adapters" to fold.

    Raises
    ------
    ValueError
        Where something cannot be folded, or is missing.

    Example
    -------
    >>> state = {
    ...     "fc.adapter_down_proj.weight": torch.ones(2, 3),
    ...     "fc.adapter_up_proj.weight": torch.ones(4, 2),
    ... }
    >>> base = {"fc.weight": torch.zeros(4, 3), "fc.bias": torch.zeros(4)}
    >>> folded = fold(state, base=base, alpha=1.0)
    >>> folded["fc.weight"][0]
    tensor([1., 1., 1.])
    """
    is_module = isinstance(source, torch.nn.Module)
    if is_module and is_computed(source):
        weights = from_tensors(
            computed_state(source),
            f"a module of class {type(source).__name__}",
            heads_metadata(source),
        )
    else:
        weights = open_weights(source)
    refuse_unfoldable(weights)
    adapter = _choose_adapter(weights, adapter)
    factors = {}
    plain = {}
    adapted = "adapter_config" in weights.metadata or has_adapters(
        source if is_module else weights
    )
    # Modules trained in full come last, to take the place of the original ones
    for name in trained_last(weights):
        factor = factor_of(name)
        if factor is None:
            kept = plain_name(name, adapter) if adapted else name
            if kept is not None:
                plain[kept] = (weights, name)
        elif factor.adapter in (adapter, None):
            layer = factors.setdefault(factor.target, {})
            side = (factor.side, factor.kind)
            _, known = layer.setdefault(side, (weights, name))
            if known != name:
                raise ValueError(
                    f"{weights.label}: '{known}' and '{name}' are one factor "
                    "of one layer. Which of them counts is not known: save "
                    "the adapter anew."
                )
    under = open_weights(base) if base is not None else None
    if under is not None:
        plain = _over_base(plain, under, weights)

    targets = None if weight_norm else {_weight(target) for target in factors}
    pairs = _pairs(plain, weights.label, targets)
    folded = _fold_weight_norm(plain, weights.label, pairs)
    scales = {}
    if is_module:
        scales = scales_of_module(source, adapter)

    def find_scale(target, own_rank):
        if rank is not None and rank != own_rank:
            raise ValueError(
                f"{weights.label}: '{target}' has rank {own_rank}, not {rank}"
            )
        own = scales.get(target)
        if own is None:
            own = scale_on_record(weights, target, own_rank)
        if alpha is not None:
            given = scale_value(alpha, own_rank, rank_stabilised)
            if own is None:
                return Scale(given)
            check_alpha(own, given, f"{weights.label}: '{target}'")
        if own is not None:
            return own
        raise ValueError(
            f"{weights.label} holds LoRA factors, but not their alpha. Give "
            "alpha= as in the YAML of its training (SpeechBrain's default is "
            "1), or open PEFT's folder, with adapter_config.json, not its file."
        )

    _add_products(folded, factors, find_scale, weights.label)
    if under is None and not (adapted or factors or pairs or weights.folded):
        return weights  # the very object, whose reader may hash what it reads

    def close():
        weights.close()
        if under is not None:
            under.close()

    return Weights(
        {name: entry for name, (entry, _) in folded.items()},
        weights.label,
        {
            key: value
            for key, value in weights.metadata.items()
            if key not in ("tied", "adapter_config", ADAPTER_KEY)
        },
        _ties(folded),
        close,
        [
            kind
            for kind, found in (("weight norm", pairs), ("adapters", factors))
            if found
        ],
    )


def plain_state(module: torch.nn.Module) -> dict:
    """The tensors of a module, without adapters: what a pool stores of it.

    Full experts and LoRA experts of any rank have the same names so, and what
    is merged is what they compute with; the same goes for foldable
    parametrisations (`speechbrain_merge.weights.parametrized`). Weight norm
    stays as it is stored, which is how a full expert has it.

    Arguments
    ---------
    module : torch.nn.Module
        With or without LoRA.

    Returns
    -------
    dict
        Name to tensor. Without LoRA, the module's own.

    Raises
    ------
    ValueError
        Where an adapter cannot be folded.

    Example
    -------
    >>> from speechbrain.nnet.adapters import AdaptedModel, LoRA
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> before = {name: t.clone() for name, t in model.state_dict().items()}
    >>> adapted = AdaptedModel(model, LoRA, all_linear=True)
    >>> after = plain_state(adapted)
    >>> all(torch.equal(after[name], before[name]) for name in before)
    True
    """
    if not has_adapters(module):
        return computed_state(module)
    with fold(module, weight_norm=False) as folded:
        tied = folded.tied
        read = {name: folded[name] for name in folded if name not in tied}
        return {name: read[tied.get(name, name)] for name in folded}


def _choose_adapter(weights, adapter):
    there = adapter_names(weights)
    if adapter is None and len(there) == 1:
        return there[0]
    if (
        adapter is None
        and there
        or adapter is not None
        and adapter not in there
    ):
        raise ValueError(
            f"{weights.label} has the adapters {there}: choose one by "
            f"adapter=, not {adapter!r}"
        )
    return adapter


def _over_base(plain, base, weights):
    strangers = [name for name in plain if name not in base]
    if strangers:
        raise ValueError(
            f"{weights.label} has {len(strangers)} tensors that the base "
            f"{base.label} does not have, e.g. {strangers[:3]}. Give the base "
            "under the same names (recoverable= opens one part of a folder)."
        )
    return {name: plain.get(name, (base, name)) for name in base}


def _pairs(plain, label, targets):
    """The weight norm that is to be folded: all, or that of some weights."""
    shapes = {name: model.shape(own) for name, (model, own) in plain.items()}
    return {
        weight: pair
        for weight, pair in weight_norm_pairs(shapes, label).items()
        if targets is None or weight in targets
    }


def _fold_weight_norm(plain, label, pairs):
    """Name to entry, and the stored tensors that it is computed from."""
    directions = {v: name for name, (_, v) in pairs.items()}
    magnitudes = {g for g, _ in pairs.values()}
    folded = {}
    for name, (model, own) in plain.items():
        if name in magnitudes:
            continue
        if name in directions:
            weight = directions[name]
            if weight in plain:
                raise ValueError(
                    f"{label} has both '{weight}' and its weight norm "
                    f"'{name}'. Keep one of them."
                )
            g_model, g_own = plain[pairs[weight][0]]
            entry = weight_norm_entry(g_model.entry(g_own), model.entry(own))
            parts = (_place(g_model, g_own), _place(model, own))
            folded[weight] = (entry, parts)
        else:
            folded[name] = (model.entry(own), (_place(model, own),))
    return folded


def _add_products(folded, factors, find_scale, label):
    for target, found in factors.items():
        title = f"{label}: '{target}'"
        kinds = {kind for _, kind in found if kind != "bias"}
        halves = [side for side, kind in found if kind != "bias"]
        if len(kinds) != 1 or sorted(halves) != ["down", "up"]:
            raise ValueError(f"{title} has only one of the two factors of LoRA")
        (kind,) = kinds
        name = _weight(target)
        if name not in folded:
            raise ValueError(
                f"{title} is adapted, but there is no '{name}' to add to. "
                "Where the file holds the adapter alone, give base=. Layers "
                "that store no 'weight' (torch's MultiheadAttention) cannot "
                "be folded here: use PEFT's merge_and_unload()."
            )
        (down, up) = (
            found[side, kind][0].entry(found[side, kind][1])
            for side in ("down", "up")
        )
        check_factor_dtypes(down, up, title)
        if not down.shape or not down.shape[0]:
            raise ValueError(
                f"{title}: a factor of shape {list(down.shape)} has no rank"
            )
        scale = find_scale(target, down.shape[0])
        weight, places = folded[name]
        folded[name] = (
            adapted_entry(weight, down, up, scale, kind, title),
            (*places, title),
        )
        if ("up", "bias") in found:
            model, own = found["up", "bias"]
            bias = f"{target}.bias"
            folded[bias] = (
                _added(folded[bias][0], model.entry(own), scale.value, title),
                (title, "bias"),
            )


def _weight(target):
    return f"{target}.weight" if target else "weight"


def _added(bias, extra, scale, title):
    def read():
        wide = common_dtype([bias.dtype, torch.float32])
        # As for the weight: nothing added leaves every bit as it was
        if not extra.read().any():
            return bias.read()
        both = bias.read().to(wide) + scale * extra.read().to(wide)
        return held(both, bias.dtype, f"{title}, bias", WIDER_BASE)

    return Entry(bias.shape, bias.dtype, read)


def _place(model, name):
    # Tied names are one place, so that what is computed from them is tied too
    return id(model), model.tied.get(name, name)


def _ties(folded):
    first = {}
    ties = {}
    for name, (_, places) in folded.items():
        kept = first.setdefault(places, name)
        if kept != name:
            ties[name] = kept
    return ties
