"""Pairs of projections of two models, attention layer by attention layer.

Merging attention takes the queries, keys and values of a source into a target
that may be another kind of model: BERT's into HuBERT. ``pair_attention`` finds
for each projection of the target the one of the source, by what it is and not
by its name, and says in one error all that does not fit.

Example
-------
>>> import torch
>>> target = {
...     f"hubert.encoder.layers.{layer}.attention.{name}_proj.weight": (
...         torch.zeros(4, 4)
...     )
...     for layer in range(2)
...     for name in "qkv"
... }
>>> source = {
...     f"encoder.layer.{layer}.attention.self.{name}.weight": torch.ones(4, 4)
...     for layer in range(2)
...     for name in ("query", "key", "value")
... }
>>> pairs = pair_attention(target, source, layers=[1])
>>> len(pairs)
3
>>> pairs[0][0].name
'hubert.encoder.layers.1.attention.q_proj.weight'
>>> pairs[0][1].name
'encoder.layer.1.attention.self.query.weight'

Authors
 * The speechbrain_merge authors 2026
"""

from functools import partial
from typing import Optional

import torch

from speechbrain.utils.logger import get_logger
from speechbrain_merge.methods.attention.layers import source_layers
from speechbrain_merge.methods.attention.names import (
    CROSS,
    attention_depths,
    attention_projections,
)
from speechbrain_merge.weights import (
    Entry,
    IncompatibleWeights,
    Weights,
    matches,
    open_weights,
)

logger = get_logger(__name__)

MOST_LINES = 12


def pair_attention(
    target,
    source,
    include=None,
    layers=None,
    layer_map=None,
    stack_map: Optional[dict] = None,
    heads: Optional[int] = None,
    same_heads: bool = True,
) -> list:
    """The projections of a target that are merged, each with the source's.

    Arguments
    ---------
    target : any source of ``open_weights``
        The model that takes.
    source : any source of ``open_weights``
        The model that gives.
    include : str or list of str, optional
        Which attention of the target, as patterns of
        ``speechbrain_merge.weights.matches``: ``encoder``,
        ``decoder.attention``, ``cross_attention``, … Default: all.
    layers : list of int, str or dict, optional
        Which layers of the target, from 0: ``[12, 13]``, ``"12-19"``,
        ``"0,4-6"``, or one of these by stack, ``{"encoder": "4-11"}``.
        Default: all.
    layer_map : dict, list or "even", optional
        Which layer of the source belongs to which of the target, where they
        have not the same number of layers: layer of the target to layer of
        the source, or ``"even"`` for the source's layers spread evenly, first
        to first and last to last. Given by stack, too. A dict without
        ``layers`` chooses the layers that it names. Not in the paper, which
        merges models of one depth.
    stack_map : dict, optional
        Stack of the target to stack of the source, where they differ:
        ``{"encoder": "decoder"}``. Two models with one stack each need none.
    heads : int, optional
        Number of attention heads, where a fused projection needs it and
        nothing says it.
    same_heads : bool
        Whether both must have the same number of heads, as the models of the
        papers do. Matrices of one shape can be mixed without: with half as
        many heads in the target, each of them gets the rows of two of the
        source's.

    Returns
    -------
    list of (AttentionProjection, AttentionProjection)
        Target's and source's, in the order of the target.

    Raises
    ------
    IncompatibleWeights
        Where the two do not fit; one error that names both models and each
        fault.
    ValueError
        Where nothing is chosen.

    Example
    -------
    >>> import torch
    >>> six, three = (
    ...     {
    ...         f"encoder.layers.{layer}.self_attn.q_proj.weight": torch.ones(
    ...             1, 1
    ...         )
    ...         for layer in range(depth)
    ...     }
    ...     for depth in (6, 3)
    ... )
    >>> pairs = pair_attention(six, three, layer_map="even")
    >>> [taker.key.layer for taker, _ in pairs]
    [0, 1, 2, 3, 4, 5]
    >>> [giver.key.layer for _, giver in pairs]
    [0, 0, 1, 1, 2, 2]
    """
    with open_weights(target) as taking, open_weights(source) as giving:
        labels = taking.label, giving.label
        known = [
            attention_projections(model, heads) for model in (taking, giving)
        ]
        strangers = [
            f"{model.label} has no attention that is known: names like "
            f"{', '.join(model.names()[:2])}"
            for model, found in zip((taking, giving), known)
            if not found
        ]
        if strangers:
            raise IncompatibleWeights(
                _message(strangers, *labels)
                + "\nKnown names are in speechbrain_merge/weights/part_names.py"
            )
    there, here = known
    told = {found.heads for one in known for found in one.values()}
    if heads is not None and heads not in told:
        raise ValueError(
            f"{heads} attention heads were given, and {labels[0]} and "
            f"{labels[1]} say that they have {sorted(told)}: leave it out."
        )
    chosen = {
        key: projection
        for key, projection in there.items()
        if _included(projection.name, include)
    }
    if not chosen:
        raise ValueError(
            f"No attention of {labels[0]} matches include={include!r}. It has "
            f"{_stacks(there)}."
        )
    faults, pairs, unknown = [], [], []
    for stack, role in dict.fromkeys((key.stack, key.role) for key in chosen):
        keys = [key for key in chosen if (key.stack, key.role) == (stack, role)]
        giver = _giver(stack, role, there, here, stack_map or {})
        depths = [
            attention_depths(there)[stack, role],
            attention_depths(here).get((giver, role)),
        ]
        if depths[1] is None:
            faults.append(
                f"{labels[1]} has no {_words(giver, role)}; it has "
                f"{_stacks(here)}. Choose by `include`, or by `stack_map`"
            )
            continue
        try:
            sources = source_layers(stack, depths, layers, layer_map)
        except ValueError as error:
            faults.append(f"{_words(stack, role)}: {error}")
            continue
        for key in keys:
            if key.layer not in sources:
                continue
            wanted = key._replace(stack=giver, layer=sources[key.layer])
            if wanted not in here:
                faults.append(f"{labels[1]} has no {wanted} for {key}")
                continue
            ours, theirs = there[key], here[wanted]
            if (ours.size, ours.width) != (theirs.size, theirs.width):
                faults.append(
                    f"{ours.name} is {ours.size}×{ours.width}, {theirs.name} "
                    f"is {theirs.size}×{theirs.width}: the same width is needed"
                )
                continue
            if same_heads and ours.heads != theirs.heads:
                if ours.heads and theirs.heads:
                    faults.append(_other_heads(ours, theirs))
                    continue
                unknown.append((ours, theirs))
            pairs.append((ours, theirs))
    if faults:
        raise IncompatibleWeights(_message(faults, *labels))
    if not pairs:
        raise ValueError(
            f"No layer of {labels[0]} is chosen by layers={layers!r}, "
            f"layer_map={layer_map!r}, include={include!r}."
        )
    if unknown:
        _warn_of_unknown_heads(*unknown[0], *labels)
    return pairs


def with_biases(
    pairs: list, target, source, heads: Optional[int] = None
) -> list:
    """The biases that belong to pairs of weights.

    Arguments
    ---------
    pairs : list of (AttentionProjection, AttentionProjection)
        From ``pair_attention``.
    target, source : any source of ``open_weights``
        The two models.
    heads : int, optional
        As for ``pair_attention``.

    Returns
    -------
    list of (AttentionProjection, AttentionProjection or None)
        None where the source has no such bias. What the target does not have
        is not listed.
    """
    ours = attention_projections(target, heads, kind="bias")
    theirs = attention_projections(source, heads, kind="bias")
    return [
        (ours[taker.key], theirs.get(giver.key))
        for taker, giver in pairs
        if taker.key in ours
    ]


def under_names_of(target: Weights, source: Weights, pairs: list) -> Weights:
    """The target with another model's attention, under the target's names.

    Arguments
    ---------
    target, source : Weights
        The two models, open.
    pairs : list
        From ``pair_attention`` and ``with_biases``. A fused tensor of the
        target is taken whole: all three of its projections are in the list.

    Returns
    -------
    Weights
        Lazy; names, shapes and types of the target.
    """
    entries = {name: target.entry(name) for name in target.names()}
    by_name = {}
    for taker, giver in pairs:
        by_name.setdefault(taker.name, []).append((taker, giver))
    for name, inside in by_name.items():
        entries[name] = Entry(
            target.shape(name),
            target.dtype(name),
            partial(_read_taken, target, source, inside),
        )
    return Weights(entries, source.label, source.metadata, target.tied)


def _read_taken(target, source, inside):
    """One tensor of the target, as the source has it."""
    first, giver = inside[0]
    kind = target.dtype(first.name)
    if not first.layout and giver is not None:
        return giver.take(source[giver.name]).to(kind)
    made = torch.zeros(target.shape(first.name), dtype=kind)
    for taker, giver in inside:
        # a bias that the source does not have is zero
        if giver is not None:
            made[taker.rows()] = giver.take(source[giver.name]).to(kind)
    return made


def _other_heads(ours, theirs):
    """The message for two projections with different numbers of heads."""
    return (
        f"{ours.name} has {ours.heads} heads of {ours.size // ours.heads} "
        f"rows, {theirs.name} {theirs.heads} of {theirs.size // theirs.heads}: "
        "rows of several heads of the one would be mixed into one head of the "
        "other. Take a source with as many heads; for experts of one base, "
        "whose heads correspond, space='task_vectors' is SA-Merge, and with "
        "heads=0.6 HSA-Merge. same_heads=False mixes the rows all the same"
    )


def _warn_of_unknown_heads(ours, theirs, target, source):
    """Warns that numbers of heads are unknown, and says how to give them."""
    known, other = (source, target) if theirs.heads else (target, source)
    logger.warning(
        f"{known} has {theirs.heads or ours.heads} attention heads, and nothing "
        f"says how many {other} has: they were not compared. Give the other's "
        "module or Hugging Face folder, whose configuration tells, or "
        "number_of_heads."
    )


def _included(name, include):
    """Whether the patterns choose a projection."""
    if include is None:
        return True
    patterns = [include] if isinstance(include, str) else include
    return any(matches(name, pattern) for pattern in patterns)


def _giver(stack, role, target, source, stack_map):
    """The source's stack for one of the target's."""
    if stack in stack_map:
        return stack_map[stack]
    stacks = {key.stack for key in source}
    alone = len(stacks) == 1 and len({key.stack for key in target}) == 1
    # two models that are one stack each can only be meant one way
    return stacks.pop() if alone and role != CROSS else stack


def _words(stack, role):
    kind = "cross-attention" if role == CROSS else "self-attention"
    return f"{stack or 'unnamed stack'} {kind}"


def _stacks(projections):
    """Names the stacks with attention of a model, for messages."""
    return ", ".join(
        f"{_words(*where)} of {depth} layers"
        for where, depth in attention_depths(projections).items()
    )


def _message(faults, target, source):
    lines = [
        f"the attention of the source ({source}) cannot be merged into that of "
        f"the target ({target}):"
    ]
    lines += [f"  {fault}" for fault in faults[:MOST_LINES]]
    if len(faults) > MOST_LINES:
        lines.append(f"  … and {len(faults) - MOST_LINES} more")
    return "\n".join(lines)
