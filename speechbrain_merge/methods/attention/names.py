"""Where a model has its queries, keys and values.

Attention is the same thing in every Transformer, and stored differently in
each: as three matrices or as one, under a dozen names, the rows of the one
stacked or interleaved head by head. ``attention_projections`` lists what there
is by what it is: stack, layer, self- or cross-attention, and q, k or v. For
each it gives the tensor and the rows in it. So the attention of two models can
be compared even if they have no name in common.

Example
-------
>>> import torch
>>> from transformers import BertConfig, BertModel
>>> bert = BertModel(
...     BertConfig(
...         vocab_size=8,
...         hidden_size=4,
...         num_hidden_layers=2,
...         num_attention_heads=2,
...         intermediate_size=4,
...     )
... )
>>> found = attention_projections(bert)
>>> len(found)
6
>>> found["encoder", 1, "attention", "k"].name
'encoder.layer.1.attention.self.key.weight'

SpeechBrain's Conformer has the three in one matrix, head by head:

>>> fused = {
...     "encoder.layers.0.mha_layer.in_proj_weight": torch.randn(12, 4),
...     "encoder.layers.0.mha_layer.pos_bias_u": torch.randn(2, 2),
... }
>>> keys = attention_projections(fused)["encoder", 0, "attention", "k"]
>>> keys.rows()
tensor([2, 3, 8, 9])
>>> keys.rows(head=1)
tensor([8, 9])

Authors
 * The speechbrain_merge authors 2026
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch

from speechbrain_merge.weights import (
    Weights,
    attention_heads,
    heads_at,
    layout_of,
    open_weights,
    part,
)

SELF, CROSS = "attention", "cross_attention"
PROJECTIONS = ("q", "k", "v")

# Tensors beside the projections that have one entry a head along some axis
_ONE_A_HEAD = (
    # Hugging Face's Conformers; SpeechBrain's RelPosMHAXL has it the other way
    ("pos_bias_u", 0),
    # WavLM
    ("gru_rel_pos_const", 1),
    ("rel_attn_embed.weight", 1),
    # BEATs
    ("grep_a", 1),
    ("relative_attention_bias.weight", 1),
)


class AttentionKey(NamedTuple):
    """Stack, layer and kind of a projection. Compares like a tuple.

    Arguments
    ---------
    stack : str
        "encoder", "decoder" or "".
    layer : int
        From 0.
    role : str
        "attention" (of a stack to itself) or "cross_attention".
    projection : str
        "q", "k" or "v".
    """

    stack: str
    layer: int
    role: str
    projection: str

    def __str__(self):
        stack = f"{self.stack}." if self.stack else ""
        return f"{stack}layers.{self.layer}.{self.role}.{self.projection}"


@dataclass(frozen=True)
class AttentionProjection:
    """One projection of one attention layer: a tensor, and its rows in it.

    Arguments
    ---------
    key : AttentionKey
        What it is.
    name : str
        The tensor that holds it.
    size : int
        Rows of the projection, E.
    width : int
        Columns of the projection: the size of what it projects. 1 for a bias.
    layout : str
        "" where the tensor holds nothing else, "stacked" or "interleaved"
        where it holds all three (``speechbrain_merge.weights.projections``).
    heads : int or None
        Number of heads, where it is known.
    """

    key: AttentionKey
    name: str
    size: int
    width: int
    layout: str
    heads: Optional[int]

    def rows(self, head: Optional[int] = None) -> torch.Tensor:
        """The rows of the tensor that are this projection's, head after head.

        Arguments
        ---------
        head : int, optional
            Only those of this head.

        Returns
        -------
        torch.Tensor
            Of int64: (E,), or (E / heads,) for one head.

        Raises
        ------
        ValueError
            Where a head is asked for and the number of heads is not known.
        """
        rows = torch.arange(self.size)
        place = PROJECTIONS.index(self.key.projection)
        if self.layout == "stacked":
            rows = rows + place * self.size
        elif self.layout == "interleaved":
            rows = torch.arange(3 * self.size).unflatten(0, (self.heads, 3, -1))
            rows = rows[:, place].flatten()
        if head is None:
            return rows
        self.check_heads()
        return rows.unflatten(0, (self.heads, -1))[head]

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """This projection out of its tensor, rows ordered by head.

        Arguments
        ---------
        tensor : torch.Tensor
            The tensor of this name.

        Returns
        -------
        torch.Tensor
            (E, input) or (E,). May be the tensor itself: not to be changed in
            place.
        """
        return tensor[self.rows()] if self.layout else tensor

    def check_heads(self):
        """Raises a ValueError where the heads are not known."""
        if not self.heads or self.size % self.heads:
            known = f"{self.heads} heads" if self.heads else "no head count"
            raise ValueError(
                f"{self.name} has {self.size} rows a projection and {known}: "
                "give `number_of_heads`, as in the model's configuration."
            )


def attention_projections(
    source, heads: Optional[int] = None, kind: str = "weight"
) -> dict:
    """All projections to queries, keys and values that a model has.

    Known are the attention layers of SpeechBrain's Transformer, Conformer and
    Branchformer, of BEATs, Whisper, wav2vec2, HuBERT, WavLM, BERT, ViT, and
    of what is named like one of these; see
    ``speechbrain_merge.weights.part_names``.

    Arguments
    ---------
    source : any source of ``open_weights``
        A model. Fold LoRA first.
    heads : int, optional
        Number of attention heads, where neither the source (a module, or a
        Hugging Face folder) nor anything beside the projection says it. The
        rows of SpeechBrain's `RoPEMHA` cannot be told apart without.
    kind : str
        "weight" or "bias".

    Returns
    -------
    dict
        ``AttentionKey`` (or plain tuple) to ``AttentionProjection``, in the
        order of the model. Empty where no attention is known.

    Raises
    ------
    ValueError
        Where two tensors are the same projection, or the order of the rows of
        a fused one is not known.
    """
    found = {}
    with open_weights(source) as weights:
        counts = attention_heads(weights)
        for name in weights.names():
            where = part(name)
            if where.role not in (SELF, CROSS) or where.kind != kind:
                continue
            if where.layer is None:
                continue
            fused = where.projection == "qkv"
            if not fused and where.projection not in PROJECTIONS:
                continue
            rows, *columns = weights.shape(name)
            if fused:
                layout, number = _layout(name, weights, heads)
                rows = rows // 3
            else:
                layout, number = "", _heads_beside(name, weights)
                number = number or heads_at(counts, name, where.stack) or heads
            for projection in PROJECTIONS if fused else (where.projection,):
                key = AttentionKey(
                    where.stack, where.layer, where.role, projection
                )
                if key in found:
                    raise ValueError(
                        f"{weights.label}: {found[key].name} and {name} are "
                        f"both {key}. A model has one of each: give a single "
                        "model (one recoverable of a checkpoint), with LoRA "
                        "folded."
                    )
                found[key] = AttentionProjection(
                    key,
                    name,
                    rows,
                    columns[0] if columns else 1,
                    layout,
                    number,
                )
    return found


def attention_depths(projections: dict) -> dict:
    """How many layers with attention each stack has.

    Arguments
    ---------
    projections : dict
        From ``attention_projections``.

    Returns
    -------
    dict
        (stack, role) to number of layers.
    """
    depths = {}
    for key in projections:
        known = depths.get((key.stack, key.role), 0)
        depths[key.stack, key.role] = max(known, key.layer + 1)
    return depths


def _heads_beside(name: str, weights: Weights) -> Optional[int]:
    """The number of heads, where something in the attention layer tells."""
    layer = name.rsplit(".", 2)[0]
    for ending, axis in _ONE_A_HEAD:
        if f"{layer}.{ending}" in weights:
            return weights.shape(f"{layer}.{ending}")[axis]
    return None


def _layout(name, weights, heads):
    """How the rows of a fused projection are ordered, and by how many heads."""
    layout, heads = layout_of(name, weights, heads)
    rows = weights.shape(name)[0]
    if layout == "interleaved" and heads is None:
        raise ValueError(
            f"{weights.label}: {name} holds queries, keys and values, head "
            "after head, and nothing beside it says how many heads there are: "
            "give the number of heads, as in the model's nhead."
        )
    if rows % 3 or (layout == "interleaved" and rows % (3 * heads)):
        raise ValueError(
            f"{weights.label}: the {rows} rows of {name} do not divide into "
            f"queries, keys and values of {heads or 1} heads."
        )
    return layout, heads
