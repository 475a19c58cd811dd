r"""Queries, keys and values out of one fused matrix, and heads out of each.

Some attention layers store the three projections of the input as one matrix
of 3E rows, and not all in the same order of rows:

``interleaved``
    SpeechBrain's `RelPosMHAXL` and `RoPEMHA` in self-attention reshape the
    output to (heads, 3·E/heads) and cut each head's part in three. So the
    rows are q, k, v of the first head, then q, k, v of the second:
    ``[q₀; k₀; v₀; q₁; k₁; v₁; …]``.
``stacked``
    torch's `MultiheadAttention` (in SpeechBrain: ``….att.in_proj_weight``)
    cuts the matrix in three: ``[q₀; q₁; …; k₀; k₁; …; v₀; v₁; …]``, and so do
    SpeechBrain's own layers where query and key differ (cross-attention).

Taking one for the other mixes queries with values without any error of shape.

Example
-------
>>> import torch
>>> fused = torch.arange(12.0).reshape(12, 1)  # 2 heads of size 2
>>> name = "encoder.layers.0.mha_layer.in_proj_weight"
>>> split_projection(name, fused, heads=2)["q"].flatten()
tensor([0., 1., 6., 7.])
>>> name = "encoder.layers.0.self_att.att.in_proj_weight"
>>> split_projection(name, fused, heads=2)["q"].flatten()
tensor([0., 1., 2., 3.])

Authors
 * The speechbrain_merge authors 2026
"""

import re
from typing import Optional

import torch

from speechbrain_merge.weights.head_count import attention_heads, heads_at
from speechbrain_merge.weights.mapping import Weights
from speechbrain_merge.weights.parts import part

LAYOUTS = ("interleaved", "stacked")
PROJECTIONS = ("q", "k", "v")

# The first pattern that a name matches tells the layout of its rows
_LAYOUT_OF_NAME = (
    # SpeechBrain's wrapper keeps torch's layer under `att`
    (r"(^|\.)att\.in_proj_(weight|bias)$", "stacked"),
    # Cross-attention, whichever class it is of
    (r"(^|\.)multihead_attn\.in_proj_(weight|bias)$", "stacked"),
    (r"(^|\.)decoder\.layers\.\d+\.mha_layer\.in_proj_weight$", "stacked"),
    # Only torch's layer has a bias
    (r"(^|\.)in_proj_bias$", "stacked"),
    # RelPosMHAXL and RoPEMHA in SpeechBrain's encoders
    (r"(^|\.)(mha_layer|self_att)\.in_proj_weight$", "interleaved"),
)


def projection_layout(name: str) -> str:
    """How the rows of a fused projection are ordered, by its name.

    Arguments
    ---------
    name : str
        The name of the tensor.

    Returns
    -------
    str
        "interleaved" or "stacked".

    Raises
    ------
    ValueError
        Where the name does not tell.

    Example
    -------
    >>> projection_layout("1.encoder.layers.0.mha_layer.in_proj_weight")
    'interleaved'
    """
    for pattern, layout in _LAYOUT_OF_NAME:
        if re.search(pattern, name):
            return layout
    raise ValueError(
        f"'{name}' does not tell how its queries, keys and values are ordered. "
        f"Give layout= as one of {', '.join(LAYOUTS)}: torch's "
        "MultiheadAttention is stacked, SpeechBrain's RelPosMHAXL and RoPEMHA "
        "are interleaved in self-attention."
    )


def layout_of(name: str, weights: Weights, heads: Optional[int] = None):
    """How the rows of a fused projection are ordered, and by how many heads.

    Arguments
    ---------
    name : str
        The name of the tensor.
    weights : Weights
        The model, open.
    heads : int, optional
        Number of heads, where neither the model says it
        (``speechbrain_merge.weights.head_count``) nor anything beside the
        projection.

    Returns
    -------
    layout : str
        "interleaved" or "stacked".
    heads : int or None
        None where it is not known.

    Raises
    ------
    ValueError
        Where neither the name nor anything beside it tells.
    """
    beside = name.rpartition(".")[0] + ".pos_bias_u"
    # only self-attention whose rows are interleaved has this bias
    if beside in weights and part(name).role == "attention":
        return "interleaved", weights.shape(beside)[1]
    told = heads_at(attention_heads(weights), name, part(name).stack)
    return projection_layout(name), told or heads


def split_projection(
    name: str, tensor: torch.Tensor, heads: int, layout: Optional[str] = None
) -> dict:
    """The three projections of a fused one.

    Arguments
    ---------
    name : str
        The name of the tensor, which tells its layout.
    tensor : torch.Tensor
        Weight (3E, input) or bias (3E,).
    heads : int
        Number of attention heads.
    layout : str, optional
        "interleaved" or "stacked", where the name does not tell.

    Returns
    -------
    dict
        "q", "k" and "v", each (E, input) or (E,), rows ordered by head. Views
        where the layout allows it: not to be changed in place.

    Raises
    ------
    ValueError
        Where the rows do not divide into three projections of so many heads.
    """
    grouped = _grouped(name, tensor, heads, layout or projection_layout(name))
    return {
        projection: grouped[:, index].reshape(-1, *tensor.shape[1:])
        for index, projection in enumerate(PROJECTIONS)
    }


def join_projection(
    name: str, parts: dict, heads: int, layout: Optional[str] = None
) -> torch.Tensor:
    """The fused projection of three; the inverse of `split_projection`.

    Arguments
    ---------
    name : str
        The name of the fused tensor.
    parts : dict
        "q", "k" and "v", each (E, input) or (E,), rows ordered by head.
    heads : int
        Number of attention heads.
    layout : str, optional
        "interleaved" or "stacked", where the name does not tell.

    Returns
    -------
    torch.Tensor
        (3E, input) or (3E,).

    Raises
    ------
    ValueError
        Where the parts do not fit each other.

    Example
    -------
    >>> name = "encoder.layers.0.mha_layer.in_proj_weight"
    >>> fused = torch.randn(12, 4)
    >>> parts = split_projection(name, fused, heads=2)
    >>> torch.equal(join_projection(name, parts, heads=2), fused)
    True
    """
    layout = _checked(layout or projection_layout(name))
    shapes = {
        projection: tuple(parts[projection].shape) for projection in parts
    }
    if set(parts) != set(PROJECTIONS) or len(set(shapes.values())) != 1:
        raise ValueError(
            f"'{name}' is joined from q, k and v of one shape, not from {shapes}"
        )
    if shapes["q"][0] % heads:
        raise ValueError(
            f"'{name}': {shapes['q'][0]} rows do not divide into {heads} heads"
        )
    if layout == "stacked":
        return torch.cat([parts[projection] for projection in PROJECTIONS])
    by_head = [parts[each].unflatten(0, (heads, -1)) for each in PROJECTIONS]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def heads(tensor: torch.Tensor, number: int, axis: int = 0) -> torch.Tensor:
    """A view of a projection by head.

    Arguments
    ---------
    tensor : torch.Tensor
        A projection of queries, keys or values, weight (E, input) or bias
        (E,). For the projection of the output, (output, E), take axis 1. For
        SpeechBrain's `pos_bias_u` and `pos_bias_v`, give the flattened
        tensor: their shape is (E / heads, heads), but `RelPosMHAXL` reads
        them as (heads, E / heads).
    number : int
        Number of heads H.
    axis : int
        The axis along which the heads lie.

    Returns
    -------
    torch.Tensor
        That axis in two, (H, E / H): a view, not to be changed in place.

    Raises
    ------
    ValueError
        Where the axis does not divide into so many heads.

    Example
    -------
    >>> heads(torch.randn(8, 5), 2).shape
    torch.Size([2, 4, 5])
    >>> heads(torch.randn(5, 8), 2, axis=1).shape
    torch.Size([5, 2, 4])
    """
    size = tensor.shape[axis]
    if number < 1 or size % number:
        raise ValueError(
            f"{size} rows do not divide into {number} heads (shape "
            f"{list(tensor.shape)}, axis {axis})"
        )
    return tensor.unflatten(axis, (number, size // number))


def _checked(layout):
    if layout not in LAYOUTS:
        raise ValueError(
            f"layout is one of {', '.join(LAYOUTS)}, not {layout!r}"
        )
    return layout


def _grouped(name, tensor, number, layout):
    """The rows as (heads, 3, rows of a head, …)."""
    rows = tensor.shape[0]
    if number < 1 or rows % (3 * number):
        raise ValueError(
            f"'{name}' of shape {list(tensor.shape)} does not divide into "
            f"three projections of {number} heads"
        )
    size = rows // (3 * number)
    if _checked(layout) == "interleaved":
        return tensor.unflatten(0, (number, 3, size))
    return tensor.unflatten(0, (3, number, size)).transpose(0, 1)
